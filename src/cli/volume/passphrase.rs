//! Whose passphrase a volume gets: that of a secret that is there, or of one that is made with it.

use std::path::Path;
use std::process::ExitCode;

use uuid::Uuid;

use crate::cli::input::Input;
use crate::cli::keystore_failure::{keystore_failure, unresolved_failure};
use crate::cli::recipients::RecipientArgs;
use crate::cli::{CliError, Exit};
use crate::keystore::{KeystoreError, Keystores, Unresolved};
use crate::secret::{SecretDefinition, SecretLookup, SecretRef, SecretValue, Usage, UsageKind};
use crate::volume::VolumeError;
use crate::xml::Span;

use super::failure::failure;

#[derive(clap::Args)]
#[group(multiple = false)]
pub(super) struct SecretArgs {
    /// The secret with its passphrase
    #[arg(long, value_name = "UUID|USAGE")]
    pub(super) secret: Option<String>,
    /// Make a secret with the volume's path as its usage and print its UUID
    #[arg(long)]
    pub(super) generate: bool,
}

/// What becomes of a secret that is made with the volume.
#[derive(clap::Args)]
pub(super) struct NewSecretArgs {
    /// Keep the new secret in the kernel's memory until the next boot, never on disk
    #[arg(long)]
    ephemeral: bool,
    #[command(flatten)]
    recipients: RecipientArgs,
}

/// Where the passphrase comes from.
pub(super) enum PassphraseSource {
    Named(SecretRef),
    New(NewSecret),
}

/// A secret that is made with the volume.
#[derive(Default)]
pub(super) struct NewSecret {
    ephemeral: bool,
    recipients: Vec<String>,
}

impl PassphraseSource {
    /// What the options say.
    pub(super) fn from_args(secret: &SecretArgs, new: &NewSecretArgs) -> Result<Self, CliError> {
        match (&secret.secret, secret.generate) {
            (Some(name), _) => Self::Named(named(name)).with(new),
            (None, true) => Self::New(NewSecret::default()).with(new),
            (None, false) => Err(CliError::new(Exit::Usage, "a volume needs a secret with its passphrase")
                .hint("name one with --secret UUID, or have one made with --generate")),
        }
    }

    /// Takes what the options say of a new secret.
    pub(super) fn with(self, new: &NewSecretArgs) -> Result<Self, CliError> {
        let NewSecretArgs { ephemeral, recipients } = new;
        match self {
            Self::New(_) => {
                Ok(Self::New(NewSecret { ephemeral: *ephemeral, recipients: recipients.keys()? }))
            }
            Self::Named(_) if *ephemeral || !recipients.is_empty() => {
                let message = "--ephemeral and --recipient are about a secret that is made with the volume";
                Err(CliError::new(Exit::Usage, message).hint("leave them out, or say --generate"))
            }
            named => Ok(named),
        }
    }
}

/// The secret that an option names.
pub(super) fn named(name: &str) -> SecretRef {
    SecretRef {
        text: true,
        lookup: SecretLookup::named(name),
        kind: UsageKind::Volume,
        span: Span::default(),
    }
}

/// The passphrase and whose it is.
pub(super) struct Passphrase {
    pub(super) uuid: Uuid,
    pub(super) value: SecretValue,
    is_new: bool,
}

impl Passphrase {
    /// Finds the secret, or makes it with the volume's path as its usage.
    pub(super) fn take(
        keystores: &Keystores,
        source: &PassphraseSource,
        path: &Path,
        input: Option<&Input>,
    ) -> Result<Self, CliError> {
        let found = match source {
            PassphraseSource::Named(secret) => Self::find(keystores, secret).map_err(|error| match input {
                Some(input) => {
                    let unresolved = Unresolved { secret: secret.clone(), error: error.into() };
                    unresolved_failure(&[unresolved], &input.name, &input.source)
                }
                None => keystore_failure(error),
            }),
            PassphraseSource::New(new) => Self::generate(keystores, path, new),
        }?;
        // Said before the derivation of a key that could not be used.
        found.value.as_passphrase().map_err(|e| failure(VolumeError::Passphrase(e)))?;
        Ok(found)
    }

    fn find(keystores: &Keystores, secret: &SecretRef) -> Result<Self, KeystoreError> {
        let found = keystores.find(&secret.lookup, Some(secret.kind))?;
        let uuid = found.definition.uuid;
        Ok(Self { uuid, value: found.value()?, is_new: false })
    }

    fn generate(keystores: &Keystores, path: &Path, new: &NewSecret) -> Result<Self, CliError> {
        let id = path.to_str().ok_or_else(|| {
            CliError::new(Exit::Usage, "a secret's usage is UTF-8 text, which this path is not")
                .hint("make a secret of another usage, and name it with --secret")
        })?;
        let definition = SecretDefinition {
            uuid: Uuid::new_v4(),
            ephemeral: new.ephemeral,
            private: false,
            description: None,
            value_uri: None,
            recipients: new.recipients.clone(),
            usage: Some(Usage { kind: UsageKind::Volume, id: id.to_owned() }),
        };
        let uuid = definition.uuid;
        let taken = |error| match error {
            KeystoreError::Definition(_) => keystore_failure(error)
                .hint(format!("there is a secret for this path already: use it with --secret {id}")),
            _ => keystore_failure(error),
        };
        let (_, value) = keystores.generate(&definition).map_err(taken)?;
        Ok(Self { uuid, value, is_new: true })
    }

    /// Takes the secret back if it was made for a volume that did not come about.
    pub(super) fn forget(&self, keystores: &Keystores, mut failure: CliError) -> CliError {
        let undefine = || {
            let found = keystores.find(&SecretLookup::Uuid(self.uuid), None)?;
            found.store.undefine(&found.definition)
        };
        if self.is_new
            && let Err(e) = undefine()
        {
            failure = failure.hint(format!("the new secret {} could not be removed again: {e}", self.uuid));
        }
        failure
    }
}

/// How a command ends whose volume did not come about: as a shell shows it where a signal ended it.
pub(super) fn ended(
    error: VolumeError,
    told: impl FnOnce(CliError) -> CliError,
) -> Result<ExitCode, CliError> {
    let signal = match &error {
        VolumeError::Interrupted(signal) => Some(*signal),
        _ => None,
    };
    let failure = told(failure(error));
    match signal {
        Some(signal) => {
            failure.report();
            Ok(ExitCode::from(128 + signal as u8))
        }
        None => Err(failure),
    }
}
