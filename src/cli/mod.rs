//! The command line: arguments, output, exit codes. One file per group of commands.

mod argv;
mod check;
mod config;
mod error;
mod input;
mod keystore_failure;
mod program;
mod secret;
mod value_source;
mod volume;

pub use error::{CliError, Exit};

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs one QEMU guest per process from a libvirt domain XML, with encrypted disks.
#[derive(Parser)]
#[command(name = "vmward", version, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options that every command takes.
#[derive(clap::Args)]
pub(crate) struct Global {
    /// Search this keystore (repeatable, in order) instead of the configured ones
    #[arg(long, global = true, value_name = "URI")]
    pub keystore: Vec<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Say everything that is wrong with a guest's XML
    Check(check::CheckArgs),
    /// Print the QEMU command line of a guest, its secrets redacted
    Argv(argv::ArgvArgs),
    /// Make, show and remove secrets
    Secret(secret::SecretArgs),
    /// Make and inspect encrypted disk images
    Volume(volume::VolumeArgs),
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return if e.use_stderr() { Exit::Usage.into() } else { ExitCode::SUCCESS };
        }
    };
    let result = match cli.command {
        Command::Check(args) => check::run(&args),
        Command::Argv(args) => argv::run(&args),
        Command::Secret(args) => secret::run(&cli.global, args),
        Command::Volume(args) => volume::run(&cli.global, args),
    };
    match result {
        Ok(code) => code,
        Err(e) => e.report(),
    }
}
