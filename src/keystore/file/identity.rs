//! The keys of a file keystore: the public half stands in its directory, the identity does not.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use age::secrecy::ExposeSecret;
use age::x25519::{Identity, Recipient};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::keystore::KeystoreError;
use crate::secret::SecretValue;

use super::disk;

/// The name of the systemd credential that holds the identity.
pub const IDENTITY_CREDENTIAL: &str = "vmward-keystore";

/// Where identities are looked for.
#[derive(Debug, Clone)]
pub struct IdentitySources {
    /// `$CREDENTIALS_DIRECTORY`, if systemd set it.
    pub credentials: Option<PathBuf>,
    /// The key file, made on first use.
    pub key_file: PathBuf,
}

impl IdentitySources {
    /// The credential, where there is a directory of them.
    fn credential(&self) -> Option<PathBuf> {
        self.credentials.as_ref().map(|dir| dir.join(IDENTITY_CREDENTIAL))
    }

    /// The identities of all places, read anew: they do not stay in memory longer than they are needed.
    pub(super) fn load(&self, uuid: Uuid) -> Result<(Vec<Identity>, Vec<String>), KeystoreError> {
        let places = [self.credential(), Some(self.key_file.clone())];
        let (mut identities, mut from, mut tried) = (Vec::new(), Vec::new(), Vec::new());
        for path in places.into_iter().flatten() {
            tried.push(path.display().to_string());
            if let Some(mut some) = read(&path, path == self.key_file)? {
                identities.append(&mut some);
                from.push(path.display().to_string());
            }
        }
        if identities.is_empty() {
            return Err(KeystoreError::NoIdentity { uuid, tried });
        }
        Ok((identities, from))
    }

    /// The public halves of the first place that has an identity; if there is none, one is made in the key file.
    pub(super) fn recipients_or_new(&self) -> Result<Vec<Recipient>, KeystoreError> {
        if let Some(path) = self.credential()
            && let Some(identities) = read(&path, false)?
        {
            return Ok(identities.iter().map(Identity::to_public).collect());
        }
        if let Some(identities) = read(&self.key_file, true)? {
            return Ok(identities.iter().map(Identity::to_public).collect());
        }
        make(&self.key_file)
    }
}

/// The identities of a file as `age-keygen` writes it, or `None` if there is no such file.
fn read(path: &Path, private: bool) -> Result<Option<Vec<Identity>>, KeystoreError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(KeystoreError::io(path, "read")(e)),
    };
    disk::check_owner(path, &file)?;
    let mode = file.metadata().map_err(KeystoreError::io(path, "read"))?.mode();
    // systemd guards its credentials by an access list, whose mask shows as group bits.
    if private && mode & 0o077 != 0 {
        return Err(KeystoreError::Unsafe {
            path: path.to_owned(),
            why: format!("others may read this key (its mode is {:04o}, not 0600)", mode & 0o7777),
        });
    }
    let damaged = |why: &str| KeystoreError::Damaged { path: path.to_owned(), why: why.to_owned() };
    let text = SecretValue::read_from(file.take(64 << 10)).map_err(|e| damaged(&e.to_string()))?;
    parse_identities(text.expose()).map(Some).map_err(damaged)
}

/// The identities in what `age-keygen` writes, or what is wrong with it.
pub fn parse_identities(text: &[u8]) -> Result<Vec<Identity>, &'static str> {
    let text = std::str::from_utf8(text).map_err(|_| "it is not text")?;
    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    let identities: Vec<_> = lines
        .map(|line| line.parse().map_err(|_| "a line in it is not an age identity"))
        .collect::<Result<_, _>>()?;
    if identities.is_empty() { Err("there is no age identity in it") } else { Ok(identities) }
}

/// Makes the key file. Two processes may get here at once: the one whose link comes second takes the other's.
fn make(path: &Path) -> Result<Vec<Recipient>, KeystoreError> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir).map_err(KeystoreError::io(dir, "made"))?;
    let identity = Identity::generate();
    let recipient = identity.to_public();
    let text = Zeroizing::new(format!(
        "# The key to the secrets of vmward's file keystore. Keep a copy in a safe place: without it they are lost.\n\
         # public key: {recipient}\n{}\n",
        identity.to_string().expose_secret()
    ));
    let mut temporary = disk::temporary(dir).map_err(KeystoreError::io(path, "written"))?;
    temporary
        .write_all(text.as_bytes())
        .and_then(|()| temporary.as_file().sync_all())
        .map_err(KeystoreError::io(path, "written"))?;
    match temporary.persist_noclobber(path) {
        Ok(_) => {}
        Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => {
            let identities = read(path, true)?.unwrap_or_default();
            return Ok(identities.iter().map(Identity::to_public).collect());
        }
        Err(e) => return Err(KeystoreError::io(path, "written")(e.error)),
    }
    disk::sync_dir(dir)?;
    Ok(vec![recipient])
}

/// The public keys to which a store's values are encrypted, or `None` if the store has none yet. There may be
/// several: a second one, whose identity lies in a safe, is the way back when the first is lost.
pub(super) fn read_recipients(path: &Path) -> Result<Option<Vec<Recipient>>, KeystoreError> {
    disk::read_text(path)?.map(|text| parse_recipients(path, &text)).transpose()
}

/// The public keys in the text of that file.
pub(super) fn parse_recipients(path: &Path, text: &str) -> Result<Vec<Recipient>, KeystoreError> {
    let damaged = |why: &str| KeystoreError::Damaged { path: path.to_owned(), why: why.to_owned() };
    let mut recipients = Vec::new();
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        recipients.push(line.parse().map_err(|_| damaged("a line in it is not an age public key"))?);
    }
    if recipients.is_empty() {
        return Err(damaged("there is no age public key in it"));
    }
    Ok(recipients)
}
