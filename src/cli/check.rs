//! `vmward check`.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::supervisor::{self, User};

use super::config::Config;
use super::input::{Allow, Input};
use super::program::{self, Target};
use super::{CliError, Exit, Global};

/// Arguments of `vmward check`.
#[derive(clap::Args)]
pub(crate) struct CheckArgs {
    /// The guest's domain XML; - reads it from the standard input
    #[arg(value_name = "GUEST.xml")]
    guest: PathBuf,
    /// What vmward does not honour is a warning
    #[arg(long)]
    allow_unsupported: bool,
    /// Check against QEMU 9.1 instead of the QEMU of this host
    #[arg(long)]
    assume_latest: bool,
    /// Fetch the guest's secrets as a start would, and say all that is wrong with them
    #[arg(long)]
    secrets: bool,
}

/// Says everything that is wrong with a guest's XML.
pub(crate) fn run(global: &Global, args: &CheckArgs) -> Result<ExitCode, CliError> {
    let input = Input::read(&args.guest)?;
    let config = Config::load(global)?;
    let target = if args.assume_latest { Target::Latest } else { Target::Host(&config) };
    // Whom QEMU would run as, if nobody is named.
    let user = User::for_qemu(None).unwrap_or_default();
    let secrets = input.understand(Allow::unsupported_if(args.allow_unsupported), |root, diagnostics| {
        program::check(root, target, user.as_ref(), diagnostics)
    })?;
    if args.secrets {
        supervisor::harden().map_err(|e| CliError::new(Exit::Internal, e.to_string()))?;
        program::require_secrets(&secrets, &config, &input)?;
    }
    Ok(ExitCode::SUCCESS)
}
