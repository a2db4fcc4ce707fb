//! `vmward volume`.

use std::process::ExitCode;

use super::{CliError, Global};

/// Arguments of `vmward volume`.
#[derive(clap::Args)]
pub(crate) struct VolumeArgs {}

/// Runs `vmward volume`.
pub(crate) fn run(_global: &Global, _args: VolumeArgs) -> Result<ExitCode, CliError> {
    Ok(ExitCode::SUCCESS)
}
