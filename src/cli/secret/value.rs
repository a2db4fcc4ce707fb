//! `vmward secret set-value` and `get-value`.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::cli::keystore_failure::keystore_failure;
use crate::cli::value_source::ValueSource;
use crate::cli::{CliError, Exit};
use crate::keystore::Keystores;
use crate::secret::{SecretValue, UsageKind};

use super::SecretName;

/// Arguments of `vmward secret set-value`.
#[derive(clap::Args)]
pub(super) struct SetValueArgs {
    #[command(flatten)]
    name: SecretName,
    #[command(flatten)]
    source: ValueSource,
}

/// Arguments of `vmward secret get-value`.
#[derive(clap::Args)]
pub(super) struct GetValueArgs {
    #[command(flatten)]
    name: SecretName,
    /// Print it in base64, as virsh does
    #[arg(long)]
    base64: bool,
}

/// Runs `vmward secret set-value`.
pub(super) fn set_value(keystores: &Keystores, args: &SetValueArgs) -> Result<ExitCode, CliError> {
    // Before the value is asked for: nobody types a passphrase for nothing.
    let found = args.name.find(keystores)?;
    let value = args.source.read()?;
    let for_volume = found.definition.usage.as_ref().is_some_and(|u| u.kind == UsageKind::Volume);
    if for_volume && value.as_passphrase().is_err() {
        eprintln!(
            "warning: QEMU opens LUKS images only with passphrases that are UTF-8 text without NUL, and this value is not"
        );
    }
    found.set_value(&value).map_err(keystore_failure)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `vmward secret get-value`.
pub(super) fn get_value(keystores: &Keystores, args: &GetValueArgs) -> Result<ExitCode, CliError> {
    let found = args.name.find(keystores)?;
    let uuid = found.definition.uuid;
    if found.definition.private {
        return Err(CliError::new(
            Exit::NoPermission,
            format!("the secret {uuid} is private: its value is used, never shown"),
        ));
    }
    let value = found.value().map_err(keystore_failure)?;
    print_value(&value, args.base64)
        .map_err(|e| CliError::new(Exit::Unavailable, "the value could not be printed").caused_by(e))?;
    Ok(ExitCode::SUCCESS)
}

fn print_value(value: &SecretValue, base64: bool) -> io::Result<()> {
    let stdout = io::stdout();
    // Not through the standard library's buffer, which nobody zeroizes.
    let mut out = File::from(stdout.as_fd().try_clone_to_owned()?);
    if base64 {
        let mut text = Zeroizing::new(STANDARD.encode(value.expose()));
        text.push('\n');
        return out.write_all(text.as_bytes());
    }
    if stdout.is_terminal() {
        if !value.as_passphrase().is_ok_and(|text| !text.chars().any(char::is_control)) {
            return Err(io::Error::other(
                "it is not plain text, which a terminal could take for commands; use --base64",
            ));
        }
        out.write_all(value.expose())?;
        return out.write_all(b"\n");
    }
    out.write_all(value.expose())
}
