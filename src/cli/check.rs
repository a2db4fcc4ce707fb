//! `vmward check`.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::supervisor::User;

use super::CliError;
use super::config::Paths;
use super::input::{Allow, Input};
use super::program::{self, Target};

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
}

/// Says everything that is wrong with a guest's XML.
pub(crate) fn run(args: &CheckArgs) -> Result<ExitCode, CliError> {
    let input = Input::read(&args.guest)?;
    let paths = Paths::from_environment()?;
    let target = if args.assume_latest { Target::Latest } else { Target::Host(&paths) };
    // Whom QEMU would run as, if nobody is named.
    let user = User::for_qemu(None).unwrap_or_default();
    input.understand(Allow::unsupported_if(args.allow_unsupported), |root, diagnostics| {
        program::check(root, target, user.as_ref(), diagnostics)
    })?;
    Ok(ExitCode::SUCCESS)
}
