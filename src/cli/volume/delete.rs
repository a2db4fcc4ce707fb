//! `vmward volume delete`.

use std::io::{self, BufRead, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::config::Config;
use crate::cli::keystore_failure::keystore_failure;
use crate::cli::{CliError, Exit, Global};
use crate::keystore::{KeystoreError, Keystores};
use crate::secret::{SecretLookup, UsageKind};
use crate::volume::{self, VolumeError};

use super::failure::failure;

/// Arguments of `vmward volume delete`.
#[derive(clap::Args)]
pub(super) struct DeleteArgs {
    /// The volume
    path: PathBuf,
    /// Remove the secret whose usage is this path as well
    #[arg(long)]
    secret: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

/// Runs `vmward volume delete`.
pub(super) fn run(global: &Global, args: &DeleteArgs) -> Result<ExitCode, CliError> {
    if args.path.symlink_metadata().is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
        return Err(failure(VolumeError::Missing(args.path.clone())));
    }
    let keystores = match args.secret {
        true => Some(Config::load(global)?.open_keystores()?),
        false => None,
    };
    let path = volume::canonical(&args.path);
    let secret = match &keystores {
        Some(keystores) => Some(secret_of(keystores, &path)?),
        None => None,
    };
    if !args.yes {
        confirm(args)?;
    }
    // The keys of the volume before the secret: without the volume a secret does no harm, without the secret
    // a volume that could not be destroyed would be lost and yet there.
    volume::destroy(&args.path).map_err(|e| match e {
        VolumeError::NotEncrypted(_) => {
            failure(e).hint("vmward destroys encrypted volumes only; remove other files with rm")
        }
        e => failure(e),
    })?;
    if let (Some(keystores), Some(uuid)) = (&keystores, secret) {
        let removed = keystores
            .find(&SecretLookup::Uuid(uuid), None)
            .and_then(|found| found.store.undefine(&found.definition));
        removed.map_err(|e| {
            keystore_failure(e)
                .hint(format!("the volume is gone; remove its secret with `vmward secret undefine {uuid}`"))
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

fn secret_of(keystores: &Keystores, path: &std::path::Path) -> Result<uuid::Uuid, CliError> {
    let id = path.to_string_lossy().into_owned();
    keystores
        .find(&SecretLookup::Usage(id), Some(UsageKind::Volume))
        .map(|found| found.definition.uuid)
        .map_err(|e| {
            let not_defined = matches!(e, KeystoreError::NotDefined { .. });
            let failure = keystore_failure(e);
            if not_defined {
                failure.hint("leave --secret out, and undefine the right one by its UUID")
            } else {
                failure
            }
        })
}

fn confirm(args: &DeleteArgs) -> Result<(), CliError> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err(CliError::new(Exit::Usage, "a volume is not destroyed without being asked")
            .hint("say --yes where nobody can be asked"));
    }
    eprint!(
        "Destroy {}{}? Nobody can bring it back. [yes/no] ",
        args.path.display(),
        if args.secret { " and its secret" } else { "" }
    );
    let mut answer = String::new();
    stdin
        .lock()
        .read_line(&mut answer)
        .map_err(|e| CliError::new(Exit::NoInput, "there was no answer").caused_by(e))?;
    match answer.trim() {
        "yes" | "y" => Ok(()),
        _ => Err(CliError::new(Exit::Usage, "nothing was destroyed")),
    }
}
