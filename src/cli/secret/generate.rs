//! `vmward secret generate`.

use std::process::ExitCode;

use uuid::Uuid;

use crate::cli::keystore_failure::keystore_failure;
use crate::cli::output;
use crate::cli::recipients::RecipientArgs;
use crate::cli::{CliError, Exit};
use crate::keystore::Keystores;
use crate::secret::{SecretDefinition, Usage, UsageKind};

/// Arguments of `vmward secret generate`.
#[derive(clap::Args)]
pub(super) struct GenerateArgs {
    #[command(flatten)]
    usage: UsageArgs,
    /// A note for people
    #[arg(long)]
    description: Option<String>,
    /// Never show the value again, only use it
    #[arg(long)]
    private: bool,
    /// Keep it in the kernel's memory until the next boot, never on disk
    #[arg(long)]
    ephemeral: bool,
    /// Keep the value in this object of another keystore instead of beside its definition
    #[arg(long, value_name = "URI", conflicts_with = "ephemeral")]
    value_uri: Option<String>,
    #[command(flatten)]
    recipients: RecipientArgs,
    /// Give it this UUID instead of a random one
    #[arg(long)]
    uuid: Option<Uuid>,
    /// Print an object with its UUID, its usage and its keystore
    #[arg(long)]
    json: bool,
}

/// What the secret is for.
#[derive(clap::Args)]
#[group(multiple = false)]
struct UsageArgs {
    /// It is the passphrase of this volume
    #[arg(long, value_name = "PATH")]
    usage_volume: Option<String>,
    /// It is the key of this Ceph user
    #[arg(long, value_name = "NAME")]
    usage_ceph: Option<String>,
    /// It is the password of this iSCSI target
    #[arg(long, value_name = "TARGET")]
    usage_iscsi: Option<String>,
    /// It is the passphrase of this TLS key
    #[arg(long, value_name = "NAME")]
    usage_tls: Option<String>,
    /// It is the key of this virtual TPM's state
    #[arg(long, value_name = "NAME")]
    usage_vtpm: Option<String>,
}

impl UsageArgs {
    fn usage(self) -> Option<Usage> {
        [
            (UsageKind::Volume, self.usage_volume),
            (UsageKind::Ceph, self.usage_ceph),
            (UsageKind::Iscsi, self.usage_iscsi),
            (UsageKind::Tls, self.usage_tls),
            (UsageKind::Vtpm, self.usage_vtpm),
        ]
        .into_iter()
        .find_map(|(kind, id)| Some(Usage { kind, id: id? }))
    }
}

/// Runs `vmward secret generate`.
pub(super) fn generate(keystores: &Keystores, args: GenerateArgs) -> Result<ExitCode, CliError> {
    if args.value_uri.is_some() && !args.recipients.is_empty() {
        return Err(CliError::new(Exit::Usage, "a value that is elsewhere is not encrypted to keys")
            .hint("who can read it is decided there: leave out --recipient"));
    }
    let definition = SecretDefinition {
        uuid: args.uuid.unwrap_or_else(Uuid::new_v4),
        ephemeral: args.ephemeral,
        private: args.private,
        description: args.description,
        value_uri: args.value_uri,
        recipients: args.recipients.keys()?,
        usage: args.usage.usage(),
    };
    let (secret, _value) = keystores.generate(&definition).map_err(keystore_failure)?;
    if args.json {
        output::line(super::list::as_json(&definition, Some(true), secret.store.uri()))?;
    } else {
        output::line(definition.uuid)?;
    }
    Ok(ExitCode::SUCCESS)
}
