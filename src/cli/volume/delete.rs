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
use super::progress::interruptible;
use super::rbd::CephArgs;

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
    #[command(flatten)]
    ceph: CephArgs,
}

/// Runs `vmward volume delete`.
pub(super) fn run(global: &Global, args: &DeleteArgs) -> Result<ExitCode, CliError> {
    let image = args.ceph.target(&args.path)?;
    if image.is_none() && args.path.symlink_metadata().is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
        return Err(failure(VolumeError::Missing(args.path.clone())));
    }
    let keystores = match args.secret {
        true => Some(Config::load(global)?.open_keystores()?),
        false => None,
    };
    let path = match image {
        Some(_) => args.path.clone(),
        None => volume::canonical(&args.path),
    };
    let secret = match &keystores {
        Some(keystores) => Some(secret_of(keystores, &path)?),
        None => None,
    };
    let rbd =
        image.is_some().then(|| args.ceph.open(|| Config::load(global)?.open_keystores())).transpose()?;
    if !args.yes {
        confirm(args)?;
    }
    // The keys of the volume before the secret: without the volume a secret does no harm, without the secret
    // a volume that could not be destroyed would be lost and yet there.
    let destroyed = match image.zip(rbd) {
        Some((name, rbd)) => interruptible(async |interrupts| Ok(rbd.destroy(&name, interrupts).await))?,
        None => volume::destroy(&args.path),
    };
    match destroyed {
        Ok(_) => {}
        Err(VolumeError::Interrupted(signal)) => {
            eprintln!(
                "error: stopped by {signal}; if {} is no volume any more, `rbd rm` removes it",
                path.display()
            );
            return Ok(ExitCode::from(128 + signal as u8));
        }
        Err(e) => {
            let is_plain = matches!(e, VolumeError::NotEncrypted(_));
            let failure = failure(e);
            return Err(match is_plain {
                true => {
                    failure.hint("vmward destroys encrypted volumes only; remove others with rm or `rbd rm`")
                }
                false => failure,
            });
        }
    }
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
