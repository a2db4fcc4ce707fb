//! The passphrases of an image that is there.

use crate::cli::keystore_failure::keystore_failure;
use crate::cli::{CliError, Exit};
use crate::keystore::{KeystoreError, Keystores};
use crate::secret::{SecretLookup, SecretRef, UsageKind};
use crate::volume::{self, Source, VolumeError};

use super::failure::failure;

/// Gives every encrypted layer its passphrase: the top one that of a secret, if it is named, all others that of the
/// secret whose usage is their path.
pub(super) fn unlock(
    source: &mut Source,
    keystores: impl FnOnce() -> Result<Keystores, CliError>,
    named: Option<&SecretRef>,
) -> Result<(), CliError> {
    let mut layers = source.layers_mut().enumerate().filter(|(_, layer)| layer.is_encrypted()).peekable();
    if layers.peek().is_none() {
        return match named {
            None => Ok(()),
            Some(_) => Err(CliError::new(Exit::Usage, "the image is not encrypted and takes no secret")),
        };
    }
    let keystores = keystores()?;
    for (n, layer) in layers {
        let found = match named {
            Some(secret) if n == 0 => {
                keystores.find(&secret.lookup, Some(secret.kind)).map_err(keystore_failure)?
            }
            _ => {
                let path = volume::canonical(layer.path());
                let usage = SecretLookup::Usage(path.to_string_lossy().into_owned());
                keystores.find(&usage, Some(UsageKind::Volume)).map_err(|e| {
                    let unknown = matches!(e, KeystoreError::NotDefined { .. });
                    match keystore_failure(e) {
                        failure if unknown && n == 0 => failure.hint("name the image's secret"),
                        failure => failure,
                    }
                })?
            }
        };
        let value = found.value().map_err(keystore_failure)?;
        layer.unlock(value).map_err(|e| failure(VolumeError::Passphrase(e)))?;
    }
    Ok(())
}
