//! `vmward check`.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::domain::Domain;
use crate::qemu;

use super::CliError;
use super::input::Input;
use super::program;

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
    input.understand(args.allow_unsupported, |root, diagnostics| {
        let mut domain = Domain::from_xml(root, diagnostics)?;
        // A host without QEMU is no fault of the XML.
        let capabilities = program::capabilities(&domain, args.assume_latest)
            .unwrap_or_else(|_| qemu::Capabilities::latest());
        qemu::build(&mut domain, &capabilities, diagnostics)
    })?;
    Ok(ExitCode::SUCCESS)
}
