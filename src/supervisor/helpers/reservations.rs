//! qemu-pr-helper: SCSI persistent reservations. They take CAP_SYS_RAWIO, which QEMU does not have.

use std::path::Path;

use crate::qemu::Reservations;
use crate::supervisor::SupervisorError;

use super::{HelperProgram, Invocation, Place, found};

/// The program.
pub(super) const PR_HELPER: &str = "qemu-pr-helper";

impl HelperProgram for Reservations {
    fn name(&self) -> &'static str {
        PR_HELPER
    }

    fn gives(&self) -> String {
        "persistent reservations on its disks".to_owned()
    }

    fn without(&self) -> &'static str {
        "can make no persistent reservations until it is started anew"
    }

    fn keeps_rights(&self) -> bool {
        true
    }

    fn can_restart(&self) -> bool {
        true
    }

    fn invocation(&self, socket: &Path, _: &Place<'_>) -> Result<Invocation, SupervisorError> {
        let arguments = vec!["--socket".to_owned(), socket.display().to_string()];
        Ok(Invocation { program: found(PR_HELPER)?, arguments, descriptors: Vec::new() })
    }
}
