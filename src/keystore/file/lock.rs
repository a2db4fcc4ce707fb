//! Writers of a store take turns, and readers of its index wait for them.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::keystore::KeystoreError;

const LOCK: &str = ".lock";

/// Held for as long as it lives; the kernel gives it back when the process dies.
pub(super) struct StoreLock {
    _file: Flock<File>,
}

impl StoreLock {
    /// Waits for everybody else.
    pub(super) fn exclusive(dir: &Path) -> Result<Self, KeystoreError> {
        let path = dir.join(LOCK);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(KeystoreError::io(&path, "opened"))?;
        Self::take(&path, file, FlockArg::LockExclusive)
    }

    /// Waits for writers. `None` where there is no lock that this user may take: nobody writes an index there.
    pub(super) fn shared(dir: &Path) -> Result<Option<Self>, KeystoreError> {
        let path = dir.join(LOCK);
        match File::open(&path) {
            Ok(file) => Self::take(&path, file, FlockArg::LockShared).map(Some),
            Err(_) => Ok(None),
        }
    }

    fn take(path: &Path, mut file: File, how: FlockArg) -> Result<Self, KeystoreError> {
        loop {
            match Flock::lock(file, how) {
                Ok(locked) => return Ok(Self { _file: locked }),
                Err((back, Errno::EINTR)) => file = back,
                Err((_, e)) => return Err(KeystoreError::io(path, "locked")(e.into())),
            }
        }
    }
}
