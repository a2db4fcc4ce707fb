//! Which QEMU a guest is run by, and what that can do.

use std::path::{Path, PathBuf};

use crate::domain::Domain;
use crate::qemu::{Capabilities, ProbeError};

use super::{CliError, Exit};

/// The QEMU of guests that name no `<emulator>`.
pub(crate) const DEFAULT_EMULATOR: &str = "/usr/bin/qemu-system-x86_64";

/// The program that runs a guest.
pub(crate) fn emulator(domain: &Domain) -> PathBuf {
    PathBuf::from(domain.devices.emulator.as_deref().unwrap_or(DEFAULT_EMULATOR))
}

/// What that program can do; with `assume_latest` the host is not looked at.
pub(crate) fn capabilities(domain: &Domain, assume_latest: bool) -> Result<Capabilities, CliError> {
    if assume_latest {
        return Ok(Capabilities::latest());
    }
    Capabilities::of_program(&emulator(domain), Path::new("/var/cache/vmward")).map_err(|e| {
        let hint = match e {
            ProbeError::Missing(_) => "install QEMU (Debian: qemu-system-x86), or name it in <emulator>",
            _ => "`vmward check` and `vmward argv --assume-latest` work without it",
        };
        CliError::new(Exit::Unavailable, "there is no QEMU to run the guest").caused_by(e).hint(hint)
    })
}
