//! nbdkit: files over SFTP whose server asks for a password, which QEMU's own driver cannot give.

use std::path::Path;

use crate::qemu::SshFile;
use crate::supervisor::SupervisorError;

use super::{HelperProgram, Invocation, Place, found, piped};

/// The program.
pub(super) const NBDKIT: &str = "nbdkit";
/// What it has the password's pipe as.
const PASSWORD_FD: i32 = 3;

impl HelperProgram for SshFile {
    fn name(&self) -> &'static str {
        NBDKIT
    }

    fn gives(&self) -> String {
        format!("the file {} on {}", self.path, self.host)
    }

    fn without(&self) -> &'static str {
        "cannot read and write the disk until that is plugged in again, or the guest is started anew"
    }

    fn invocation(&self, socket: &Path, place: &Place<'_>) -> Result<Invocation, SupervisorError> {
        let mut arguments =
            vec!["--foreground".to_owned(), "--unix".to_owned(), socket.display().to_string()];
        if self.readonly {
            arguments.push("--readonly".to_owned());
        }
        arguments.push("ssh".to_owned());
        let mut parameter = |name: &str, value: &str| arguments.push(format!("{name}={value}"));
        parameter("host", &self.host);
        parameter("port", &self.port.to_string());
        parameter("user", &self.user);
        parameter("path", &self.path);
        // nbdkit-ssh-plugin(1): a minus sign and the number of a descriptor.
        parameter("password", &format!("-{PASSWORD_FD}"));
        if let Some(file) = &self.known_hosts {
            parameter("known-hosts", file);
        }
        let password = piped(&self.password, "an SSH password", PASSWORD_FD, place)?;
        Ok(Invocation { program: found(NBDKIT)?, arguments, descriptors: vec![password] })
    }
}
