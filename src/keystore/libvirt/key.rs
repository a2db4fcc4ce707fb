//! The key to libvirt's encrypted values: 32 raw bytes in a file, named by its `secret.conf` or handed to its daemon as a
//! systemd credential.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::keystore::KeystoreError;
use crate::keystore::file::disk;
use crate::secret::SecretValue;

/// The name of the credential with which libvirt's daemon is started.
const CREDENTIAL: &str = "secrets-encryption-key";
/// AES-256's.
const KEY_LEN: usize = 32;

/// Where the key is looked for.
#[derive(Debug)]
pub(super) struct KeySources {
    /// As the store's URI says.
    pub(super) named: Option<PathBuf>,
    /// libvirt's configuration, which may name it.
    pub(super) config: PathBuf,
    /// `$CREDENTIALS_DIRECTORY`.
    pub(super) credentials: Option<PathBuf>,
}

impl KeySources {
    /// The key, and the file that it is from: the first of the places that say there is one, as in libvirt.
    pub(super) fn load(&self, uuid: Uuid) -> Result<(SecretValue, PathBuf), KeystoreError> {
        let configured = match &self.named {
            Some(file) => Some(file.clone()),
            None => self.configured()?,
        };
        let credential = self.credentials.as_ref().map(|dir| dir.join(CREDENTIAL));
        let Some(path) = configured.or(credential) else {
            let tried = vec![
                "the file that ?key= names in the keystore's URI".to_owned(),
                format!("the one that secrets_encryption_key names in {}", self.config.display()),
                format!("the systemd credential {CREDENTIAL}"),
            ];
            return Err(KeystoreError::NoIdentity { uuid, tried });
        };
        // systemd guards its credentials by an access list, whose mask shows as group bits.
        let by_systemd = self.credentials.as_ref().is_some_and(|dir| path.starts_with(dir));
        match read(&path, !by_systemd)? {
            Some(key) => Ok((key, path)),
            None => Err(KeystoreError::NoIdentity { uuid, tried: vec![path.display().to_string()] }),
        }
    }

    /// What `secret.conf` names.
    fn configured(&self) -> Result<Option<PathBuf>, KeystoreError> {
        match fs::read_to_string(&self.config) {
            Ok(text) => Ok(setting(&text, "secrets_encryption_key").map(PathBuf::from)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(KeystoreError::io(&self.config, "read")(e)),
        }
    }
}

/// A setting of one of libvirt's configuration files: `name = "value"`, `#` begins a comment.
fn setting<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().rev().find_map(|line| {
        let value = line.trim().strip_prefix(name)?.trim_start().strip_prefix('=')?.trim_start();
        let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        value[1..].split_once(quote).map(|(value, _)| value)
    })
}

/// The key in a file; `None` if there is no such file.
fn read(path: &Path, private: bool) -> Result<Option<SecretValue>, KeystoreError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(KeystoreError::io(path, "read")(e)),
    };
    disk::check_owner(path, &file)?;
    let mode = file.metadata().map_err(KeystoreError::io(path, "read"))?.mode();
    if private && mode & 0o077 != 0 {
        let why = format!("others may read this key (its mode is {:04o}, not 0600)", mode & 0o7777);
        return Err(KeystoreError::Unsafe { path: path.to_owned(), why });
    }
    let damaged = |why: String| KeystoreError::Damaged { path: path.to_owned(), why };
    // One byte more than a key tells what only begins with 32 bytes.
    let key = SecretValue::read_from(file.take(KEY_LEN as u64 + 1)).map_err(|e| damaged(e.to_string()))?;
    match key.len() {
        KEY_LEN => Ok(Some(key)),
        _ => Err(damaged(format!(
            "it is not a key of {KEY_LEN} bytes (one that systemd-creds has sealed must be decrypted first)"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_found_where_they_are_set() {
        let get = |text| setting(text, "secrets_encryption_key");
        assert_eq!(get("encrypt_data = 1\nsecrets_encryption_key = \"/a/b c\" # mine\n"), Some("/a/b c"));
        assert_eq!(get("  secrets_encryption_key='/a'"), Some("/a"));
        assert_eq!(get("#secrets_encryption_key = \"/a\"\n"), None);
        assert_eq!(get("secrets_encryption_key_old = \"/a\"\nsecrets_encryption_key = /a\n"), None);
        assert_eq!(get("secrets_encryption_key = \"/a"), None);
    }
}
