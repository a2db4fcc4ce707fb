//! The user that QEMU runs as.

use nix::unistd::{Gid, Uid, geteuid};

use super::SupervisorError;

/// The user that root runs QEMU as when none is named, if it exists.
pub const DEFAULT_USER: &str = "vmward-qemu";

/// An unprivileged user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its number.
    pub uid: Uid,
    /// Its group.
    pub gid: Gid,
}

impl User {
    /// The user that QEMU is to run as; `None` is the supervisor's own.
    pub fn for_qemu(wanted: Option<&str>) -> Result<Option<Self>, SupervisorError> {
        match wanted {
            None if !geteuid().is_root() => Ok(None),
            None => Self::find(DEFAULT_USER),
            Some(name) => {
                let user = Self::find(name)?.ok_or_else(|| SupervisorError::NoSuchUser(name.to_owned()))?;
                match () {
                    () if user.uid == geteuid() => Ok(None),
                    () if geteuid().is_root() => Ok(Some(user)),
                    () => Err(SupervisorError::NotRoot(user.name)),
                }
            }
        }
    }

    fn find(name: &str) -> Result<Option<Self>, SupervisorError> {
        let found = nix::unistd::User::from_name(name)
            .map_err(|e| SupervisorError::io("/etc/passwd", "searched")(e.into()))?;
        Ok(found.map(|u| Self { name: u.name, uid: u.uid, gid: u.gid }))
    }
}
