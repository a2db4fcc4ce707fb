//! The user that QEMU runs as.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

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

    /// The owner of a file, if that is somebody else than the supervisor's user.
    pub(super) fn of(file: &Metadata) -> Option<Self> {
        let uid = Uid::from_raw(file.uid());
        let named = nix::unistd::User::from_uid(uid).ok().flatten();
        let name = named.map_or_else(|| uid.to_string(), |user| user.name);
        (uid != geteuid()).then(|| Self { name, uid, gid: Gid::from_raw(file.gid()) })
    }

    fn find(name: &str) -> Result<Option<Self>, SupervisorError> {
        let found = nix::unistd::User::from_name(name)
            .map_err(|e| SupervisorError::io("/etc/passwd", "searched")(e.into()))?;
        Ok(found.map(|u| Self { name: u.name, uid: u.uid, gid: u.gid }))
    }
}
