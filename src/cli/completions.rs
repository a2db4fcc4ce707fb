//! `vmward completions`: for shells, and the manual.

use std::process::ExitCode;

use clap::{Command, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{CliError, Exit};
use crate::cli::output;

/// Arguments of `vmward completions`.
#[derive(clap::Args)]
pub(crate) struct CompletionsArgs {
    /// The shell, or man for the manual page
    #[arg(value_enum)]
    format: Format,
}

/// What is printed.
#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Bash,
    Elvish,
    Fish,
    Zsh,
    Man,
}

/// Runs `vmward completions`.
pub(crate) fn run(mut command: Command, args: &CompletionsArgs) -> Result<ExitCode, CliError> {
    let mut out = Vec::new();
    let shell = match args.format {
        Format::Bash => Shell::Bash,
        Format::Elvish => Shell::Elvish,
        Format::Fish => Shell::Fish,
        Format::Zsh => Shell::Zsh,
        Format::Man => {
            Man::new(command).render(&mut out).map_err(|e| {
                CliError::new(Exit::Internal, "the manual page could not be made").caused_by(e)
            })?;
            return printed(&out);
        }
    };
    clap_complete::generate(shell, &mut command, "vmward", &mut out);
    printed(&out)
}

fn printed(out: &[u8]) -> Result<ExitCode, CliError> {
    output::text(String::from_utf8_lossy(out))?;
    Ok(ExitCode::SUCCESS)
}
