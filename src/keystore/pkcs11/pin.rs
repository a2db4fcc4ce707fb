//! The PIN of a token, in a file that only its owner reads.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::keystore::KeystoreError;
use crate::keystore::credential_file::CredentialFile;
use crate::secret::SecretValue;

/// Longer than any token takes.
const MAX_PIN_LEN: usize = 1024;

/// Which file a PIN was in, in which state of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct PinId {
    path: PathBuf,
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

impl PinId {
    pub(super) fn of(file: &CredentialFile) -> Result<Self, KeystoreError> {
        let path = file.path().clone();
        let metadata = fs::metadata(&path).map_err(KeystoreError::io(&path, "read"))?;
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        Ok(Self { path, device: metadata.dev(), inode: metadata.ino(), changed })
    }
}

/// Reads a PIN. A newline at the end, as editors leave it, is no part of it.
pub(super) fn read(file: &CredentialFile) -> Result<SecretValue, KeystoreError> {
    let mut pin = file.secret()?;
    let len = pin.expose().strip_suffix(b"\n").map_or(pin.len(), <[u8]>::len);
    pin.truncate(len);
    match pin.len() {
        1..=MAX_PIN_LEN => Ok(pin),
        _ => {
            let why = "there should be a PIN in it, and nothing else".to_owned();
            Err(KeystoreError::Damaged { path: file.path().clone(), why })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keystore::StoreOptions;
    use crate::keystore::file::IdentitySources;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_pin_is_a_files_content_and_known_by_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pin");
        let options =
            StoreOptions::new(IdentitySources { credentials: None, key_file: "/nonexistent".into() });
        let file = CredentialFile::named(path.to_str().unwrap(), &options).unwrap();
        let write = |pin: &str| {
            fs::write(&path, pin).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        };
        write("12 34\n");
        assert_eq!(read(&file).unwrap().expose(), b"12 34");
        let id = PinId::of(&file).unwrap();
        assert_eq!(PinId::of(&file).unwrap(), id);
        for bad in ["", "\n", &"x".repeat(2000)] {
            write(bad);
            assert!(matches!(read(&file), Err(KeystoreError::Damaged { .. })));
        }
        fs::remove_file(&path).unwrap();
        write("12 34\n");
        assert_ne!(PinId::of(&file).unwrap(), id);
    }
}
