//! QEMU's lock on an image.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::VolumeError;

/// QEMU keeps read locks on bytes from 100 (what it does with the image) and from 200 (what it lets nobody
/// else do); see `RAW_LOCK_PERM_BASE` and `RAW_LOCK_SHARED_BASE` in its block/file-posix.c.
const FIRST: i64 = 100;
const LEN: i64 = 200;

/// Nobody else has the image open while this is held: no QEMU runs from it, and none can start.
#[derive(Debug)]
pub struct ImageLock {
    _file: File,
}

impl ImageLock {
    /// Takes the lock through a descriptor that is open for writing, or says that the image is in use.
    pub fn take(file: &File, path: &Path) -> Result<Self, VolumeError> {
        let io = VolumeError::io(path, "locked");
        let file = match file.try_clone() {
            Ok(file) => file,
            Err(e) => return Err(io(e)),
        };
        match fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&exclusive())) {
            Ok(_) => Ok(Self { _file: file }),
            Err(Errno::EAGAIN | Errno::EACCES) => Err(VolumeError::InUse(path.to_owned())),
            Err(e) => Err(io(e.into())),
        }
    }
}

/// Whether somebody has the image open as QEMU has it.
pub fn is_locked(file: &File) -> io::Result<bool> {
    let mut found = exclusive();
    fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut found))?;
    Ok(found.l_type != libc::F_UNLCK as libc::c_short)
}

/// A lock of the open file description, as QEMU's are: it ends with the last descriptor.
fn exclusive() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: FIRST,
        l_len: LEN,
        l_pid: 0,
    }
}
