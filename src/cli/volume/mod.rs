//! `vmward volume`.

mod convert;
mod create;
mod delete;
mod failure;
mod info;
mod opening;
mod passphrase;
mod progress;
mod rbd;
mod rekey;
mod resize;
mod running;
mod target;

use std::path::Path;
use std::process::ExitCode;

use clap::Subcommand;

use crate::keystore::{KeystoreError, Keystores, SecretFound};
use crate::secret::{SecretLookup, UsageKind};

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
    /// Give a volume, at rest or in a running guest, a new key and its secret the new value
    Rekey(rekey::RekeyArgs),
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
        VolumeCommand::Rekey(args) => rekey::run(global, &args),
        VolumeCommand::Delete(args) => delete::run(global, &args),
    }
}

/// The secret whose usage is a volume's path, as it is or as it was written.
fn secret_of<'a>(
    keystores: &'a Keystores,
    path: &Path,
    written: &Path,
) -> Result<Option<SecretFound<'a>>, KeystoreError> {
    for path in [path, written] {
        let Some(id) = path.to_str() else { continue };
        match keystores.find(&SecretLookup::Usage(id.to_owned()), Some(UsageKind::Volume)) {
            Err(KeystoreError::NotDefined { .. }) => {}
            found => return found.map(Some),
        }
    }
    Ok(None)
}
