//! The files from which a store takes what it is asked with: tokens, ids, certificates and their keys.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::secret::SecretValue;

use super::file::check_owner;
use super::{KeystoreError, StoreOptions};

/// A file with a credential of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CredentialFile {
    path: PathBuf,
    /// Whether it is in `$CREDENTIALS_DIRECTORY`: systemd guards what is there by an access list, whose mask shows as
    /// group bits.
    by_systemd: bool,
}

impl CredentialFile {
    /// An absolute path, or the name of a credential that systemd gave this service (`LoadCredential=`). Nothing is
    /// read yet.
    pub(super) fn named(name: &str, options: &StoreOptions) -> Result<Self, String> {
        if name.starts_with('/') {
            return Ok(Self { path: name.into(), by_systemd: false });
        }
        match &options.identity.credentials {
            Some(dir) if !name.is_empty() && name != ".." && !name.contains('/') => {
                Ok(Self { path: dir.join(name), by_systemd: true })
            }
            _ => Err(format!(
                "'{name}' is neither an absolute path nor a credential in $CREDENTIALS_DIRECTORY; \
                 what is asked with is in a file, never in the URI"
            )),
        }
    }

    /// What to call it.
    pub(super) fn path(&self) -> &PathBuf {
        &self.path
    }

    /// What is secret in it: others must not be able to read it.
    pub(super) fn secret(&self) -> Result<SecretValue, KeystoreError> {
        self.read(true)
    }

    /// What is public in it: others must not be able to write it.
    pub(super) fn public(&self) -> Result<SecretValue, KeystoreError> {
        self.read(false)
    }

    fn read(&self, secret: bool) -> Result<SecretValue, KeystoreError> {
        let path = &self.path;
        let file = File::open(path).map_err(KeystoreError::io(path, "read"))?;
        check_owner(path, &file)?;
        let mode = file.metadata().map_err(KeystoreError::io(path, "read"))?.mode();
        if secret && !self.by_systemd && mode & 0o077 != 0 {
            return Err(KeystoreError::Unsafe {
                path: path.clone(),
                why: format!("others may read this credential (its mode is {:04o}, not 0600)", mode & 0o7777),
            });
        }
        SecretValue::read_from(file)
            .map_err(|e| KeystoreError::Damaged { path: path.clone(), why: e.to_string() })
    }

    /// One line of secret text, without the end of the line.
    pub(super) fn line(&self) -> Result<SecretValue, KeystoreError> {
        let mut content = self.secret()?;
        content.truncate(content.expose().trim_ascii_end().len());
        let is_word = |byte: &u8| byte.is_ascii_graphic();
        if content.is_empty() || !content.expose().iter().all(is_word) {
            let why = "there should be one line of text in it".to_owned();
            return Err(KeystoreError::Damaged { path: self.path.clone(), why });
        }
        Ok(content)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::keystore::file::IdentitySources;

    fn options(credentials: Option<PathBuf>) -> StoreOptions {
        StoreOptions::new(IdentitySources { credentials, key_file: "/nonexistent".into() })
    }

    #[test]
    fn a_credential_is_a_path_or_one_of_systemds() {
        let named = |name: &str| CredentialFile::named(name, &options(Some("/run/credentials/x".into())));
        assert_eq!(named("/etc/token").unwrap().path, PathBuf::from("/etc/token"));
        assert_eq!(named("token").unwrap().path, PathBuf::from("/run/credentials/x/token"));
        for bad in ["", "../token", "..", "a/b"] {
            assert!(named(bad).is_err(), "{bad}");
        }
        let e = CredentialFile::named("token", &options(None)).unwrap_err();
        assert!(e.contains("$CREDENTIALS_DIRECTORY"), "{e}");
    }

    #[test]
    fn what_others_can_read_or_write_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, "s.abc\n").unwrap();
        let file = CredentialFile::named(path.to_str().unwrap(), &options(None)).unwrap();
        let mode = |mode| fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        mode(0o600);
        assert_eq!(file.line().unwrap().expose(), b"s.abc");
        mode(0o644);
        assert!(matches!(file.line(), Err(KeystoreError::Unsafe { .. })));
        assert!(file.public().is_ok());
        mode(0o622);
        assert!(matches!(file.public(), Err(KeystoreError::Unsafe { .. })));
        mode(0o600);
        for bad in ["", "\n", "two words", "two\nlines\n", "nul\0"] {
            fs::write(&path, bad).unwrap();
            assert!(matches!(file.line(), Err(KeystoreError::Damaged { .. })), "{bad:?}");
        }
        fs::remove_file(&path).unwrap();
        assert!(matches!(file.line(), Err(KeystoreError::Io { .. })));
    }
}
