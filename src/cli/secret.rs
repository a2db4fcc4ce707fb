//! `vmward secret`.

use std::process::ExitCode;

use super::{CliError, Global};

/// Arguments of `vmward secret`.
#[derive(clap::Args)]
pub(crate) struct SecretArgs {}

/// Runs `vmward secret`.
pub(crate) fn run(_global: &Global, _args: SecretArgs) -> Result<ExitCode, CliError> {
    Ok(ExitCode::SUCCESS)
}
