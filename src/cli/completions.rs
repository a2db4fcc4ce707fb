//! `vmward completions`: for shells, and the manual.

use std::io;
use std::process::ExitCode;

use clap::{Command, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{CliError, Exit};

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
    let shell = match args.format {
        Format::Bash => Shell::Bash,
        Format::Elvish => Shell::Elvish,
        Format::Fish => Shell::Fish,
        Format::Zsh => Shell::Zsh,
        Format::Man => {
            return Man::new(command).render(&mut io::stdout()).map(|()| ExitCode::SUCCESS).map_err(|e| {
                CliError::new(Exit::Unavailable, "the manual page could not be printed").caused_by(e)
            });
        }
    };
    clap_complete::generate(shell, &mut command, "vmward", &mut io::stdout());
    Ok(ExitCode::SUCCESS)
}
