//! The PIN of a token, in a file that only its owner reads.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use crate::keystore::KeystoreError;
use crate::secret::SecretValue;

use super::uri::PinSource;

/// Longer than any token takes.
const MAX_PIN_LEN: u64 = 1024;

/// Which file a PIN was in, in which state of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct PinId {
    path: PathBuf,
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

/// A PIN and where it was.
pub(super) struct PinFile {
    /// The file.
    pub(super) path: PathBuf,
    /// The same, in its state when it was read.
    pub(super) id: PinId,
    /// The PIN.
    pub(super) value: SecretValue,
}

impl PinFile {
    /// Reads a PIN. A newline at the end, as editors leave it, is no part of it.
    pub(super) fn read(source: &PinSource, credentials: Option<&Path>) -> Result<Self, KeystoreError> {
        let path = match (source, credentials) {
            (PinSource::File(path), _) => path.clone(),
            (PinSource::Credential(name), Some(dir)) => dir.join(name),
            (PinSource::Credential(name), None) => Path::new("$CREDENTIALS_DIRECTORY").join(name),
        };
        let failed = || KeystoreError::io(&path, "read");
        let file = File::open(&path).map_err(failed())?;
        let metadata = file.metadata().map_err(failed())?;
        let unsafe_because = |why| Err(KeystoreError::Unsafe { path: path.clone(), why });
        let (uid, me, mode) = (metadata.uid(), geteuid().as_raw(), metadata.mode());
        if uid != 0 && uid != me {
            return unsafe_because(format!(
                "this PIN belongs to the user {uid}, not to root or to the user {me}"
            ));
        }
        // systemd guards its credentials by an access list, whose mask shows as group bits.
        let from_systemd = credentials.is_some_and(|dir| path.starts_with(dir));
        if mode & 0o077 != 0 && !(from_systemd && mode & 0o037 == 0) {
            return unsafe_because(format!(
                "others may read this PIN, or write it (its mode is {:04o}, not 0600)",
                mode & 0o7777
            ));
        }
        let damaged = |why: String| KeystoreError::Damaged { path: path.clone(), why };
        let mut value =
            SecretValue::read_from(file.take(MAX_PIN_LEN + 1)).map_err(|e| damaged(e.to_string()))?;
        if value.len() as u64 > MAX_PIN_LEN {
            return Err(damaged("it is too long for a PIN".to_owned()));
        }
        let len = value.expose().strip_suffix(b"\n").map_or(value.len(), <[u8]>::len);
        value.truncate(len);
        if value.is_empty() {
            return Err(damaged("there is no PIN in it".to_owned()));
        }
        let id = PinId {
            path: path.clone(),
            device: metadata.dev(),
            inode: metadata.ino(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        };
        Ok(Self { path, id, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_pin_comes_from_a_file_of_ones_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pin");
        let read = |mode| {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            PinFile::read(&PinSource::File(path.clone()), None)
        };
        fs::write(&path, "1234\n").unwrap();
        assert_eq!(read(0o600).unwrap().value.expose(), b"1234");
        for mode in [0o640, 0o604, 0o660] {
            assert!(matches!(read(mode), Err(KeystoreError::Unsafe { .. })), "{mode:o}");
        }
        for bad in ["", "\n", &"x".repeat(2000)] {
            fs::write(&path, bad).unwrap();
            assert!(matches!(read(0o600), Err(KeystoreError::Damaged { .. })));
        }
        fs::write(&path, "1234").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o440)).unwrap();
        let credential = PinSource::Credential("pin".to_owned());
        assert_eq!(PinFile::read(&credential, Some(dir.path())).unwrap().value.expose(), b"1234");
        assert!(matches!(PinFile::read(&credential, None), Err(KeystoreError::Io { .. })));
    }
}
