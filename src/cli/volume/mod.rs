//! `vmward volume`.

mod convert;
mod create;
mod delete;
mod failure;
mod info;
mod opening;
mod passphrase;
mod progress;
mod resize;
mod target;

use std::process::ExitCode;

use clap::Subcommand;

use super::{CliError, Global};

/// Arguments of `vmward volume`.
#[derive(clap::Args)]
pub(crate) struct VolumeArgs {
    #[command(subcommand)]
    command: VolumeCommand,
}

#[derive(Subcommand)]
enum VolumeCommand {
    /// Make an encrypted volume
    Create(Box<create::CreateArgs>),
    /// Show what a volume is, without its secret
    Info(info::InfoArgs),
    /// Give a volume another size
    Resize(resize::ResizeArgs),
    /// Copy an image into a new volume, of another format or under another key
    Convert(Box<convert::ConvertArgs>),
    /// Destroy a volume: its keys first, then its file
    Delete(delete::DeleteArgs),
}

/// Runs `vmward volume`.
pub(crate) fn run(global: &Global, args: VolumeArgs) -> Result<ExitCode, CliError> {
    match args.command {
        VolumeCommand::Create(args) => create::run(global, *args),
        VolumeCommand::Info(args) => info::run(global, &args),
        VolumeCommand::Resize(args) => resize::run(global, &args),
        VolumeCommand::Convert(args) => convert::run(global, &args),
        VolumeCommand::Delete(args) => delete::run(global, &args),
    }
}
