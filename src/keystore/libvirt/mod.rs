//! `libvirt:DIR`, the secrets of a libvirt on this host, read only: for a host that has one, and for moving over.
//!
//! `UUID.xml` is a definition; `UUID.base64` its value, or since libvirt 12.1 `UUID.aes256cbc`: the base64 of an IV and
//! the value in AES-256-CBC. There is no MAC: a wrong key is noticed by the padding, in all but one of 256 cases.

mod key;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use aes::cipher::block_padding::Pkcs7;
use aes::cipher::{BlockModeDecrypt, KeyIvInit};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::fcntl::OFlag;
use uuid::Uuid;

use crate::secret::{IV_LEN, SecretDefinition, SecretLookup, SecretValue, Usage, UsageKind, wiping_stack};
use crate::xml::{Diagnostics, Keyword};

use super::file::disk;
use super::kinds::Opened;
use super::query::Parts;
use super::{Keystore, KeystoreError, Listing, StoreOptions, only_one};
use key::KeySources;

/// Where libvirt's system daemon keeps them.
pub const DEFAULT_DIR: &str = "/etc/libvirt/secrets";
const PLAIN: &str = "base64";
const ENCRYPTED: &str = "aes256cbc";

/// The directory of a libvirt's secrets.
pub(super) struct LibvirtStore {
    uri: String,
    dir: PathBuf,
    key: KeySources,
    by_usage: Mutex<Option<Index>>,
}

/// Which secrets have which usage, made when the directory was last changed then.
struct Index {
    made: SystemTime,
    uuids: HashMap<Usage, Uuid>,
    /// Whether there are definitions that could not be read.
    complete: bool,
}

impl LibvirtStore {
    /// `libvirt:/directory?key=/file`.
    pub(super) fn from_uri(uri: &str, options: &StoreOptions) -> Opened<dyn Keystore> {
        let Parts { path, query } = Parts::of(uri, "libvirt")?;
        let dir = PathBuf::from(if path.is_empty() { DEFAULT_DIR } else { &path });
        if !dir.is_absolute() {
            return Err(format!("the directory must be an absolute path, as in libvirt:{DEFAULT_DIR}"));
        }
        let credentials = options.identity.credentials.clone();
        let mut named = None;
        for (name, value) in query {
            if name != "key" {
                return Err(format!("'{name}' is not key"));
            }
            named = match value.strip_prefix("credential:") {
                Some(name) if !name.is_empty() && !name.contains('/') => {
                    let dir = credentials.as_ref().ok_or("$CREDENTIALS_DIRECTORY is not set")?;
                    Some(dir.join(name))
                }
                None if value.starts_with('/') => Some(value.into()),
                _ => {
                    return Err("?key= takes the absolute path of a file or credential:NAME, never the key"
                        .to_owned());
                }
            };
        }
        let key = KeySources { named, config: dir.with_file_name("secret.conf"), credentials };
        Ok(Box::new(Self { uri: uri.to_owned(), dir, key, by_usage: Mutex::default() }))
    }

    fn path(&self, uuid: Uuid, extension: &str) -> PathBuf {
        self.dir.join(format!("{uuid}.{extension}"))
    }

    /// Whether there is a directory; one that others can write is refused.
    fn exists(&self) -> Result<bool, KeystoreError> {
        match File::open(&self.dir) {
            Ok(dir) => disk::check_owner(&self.dir, &dir).map(|()| true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(KeystoreError::io(&self.dir, "read")(e)),
        }
    }

    fn definition(&self, uuid: Uuid) -> Result<Option<SecretDefinition>, KeystoreError> {
        let path = self.path(uuid, "xml");
        let Some(text) = disk::read_text(&path)? else { return Ok(None) };
        let mut diagnostics = Diagnostics::new();
        match SecretDefinition::parse(&text, &mut diagnostics).filter(|d| d.uuid == uuid) {
            // Never from here: libvirt knows no values that are elsewhere.
            Some(definition) if definition.value_uri.is_none() => Ok(Some(definition)),
            _ => {
                let said = diagnostics.sorted().iter().map(|d| d.message.clone()).collect::<Vec<_>>();
                let why =
                    if said.is_empty() { "it describes another secret".to_owned() } else { said.join("; ") };
                Err(KeystoreError::Damaged { path, why })
            }
        }
    }

    fn scan(&self) -> Result<Listing, KeystoreError> {
        let error = || KeystoreError::io(&self.dir, "read");
        let mut listing = Listing::default();
        let mut uuids = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(error())? {
            let name = entry.map_err(error())?.file_name();
            let stem = name.to_str().and_then(|name| name.strip_suffix(".xml"));
            uuids.extend(stem.and_then(|stem| Uuid::try_parse(stem).ok().filter(|u| u.to_string() == stem)));
        }
        uuids.sort_unstable();
        for uuid in uuids {
            match self.definition(uuid) {
                Ok(definition) => listing.definitions.extend(definition),
                Err(e) => listing.broken.push(e),
            }
        }
        Ok(listing)
    }

    /// The secrets with that usage of any kind. libvirt has no index: one is made, and used until the directory changes.
    fn with_usage(&self, kinds: &[UsageKind], id: &str) -> Result<Vec<SecretDefinition>, KeystoreError> {
        let changed = fs::metadata(&self.dir)
            .and_then(|metadata| metadata.modified())
            .map_err(KeystoreError::io(&self.dir, "read"))?;
        let mut by_usage = self.by_usage.lock().unwrap_or_else(PoisonError::into_inner);
        if by_usage.as_ref().is_none_or(|index| index.made != changed) {
            let listing = self.scan()?;
            let complete = listing.broken.is_empty();
            let of_usage = |d: SecretDefinition| Some((d.usage?, d.uuid));
            let uuids = listing.definitions.into_iter().filter_map(of_usage).collect();
            *by_usage = Some(Index { made: changed, uuids, complete });
        }
        let Some(index) = by_usage.as_ref() else { return Ok(Vec::new()) };
        let usage = |kind: &UsageKind| Usage { kind: *kind, id: id.to_owned() };
        let uuids: Vec<_> = kinds.iter().filter_map(|kind| index.uuids.get(&usage(kind))).copied().collect();
        let complete = index.complete;
        drop(by_usage);
        let mut found = Vec::new();
        for uuid in uuids {
            found.extend(self.definition(uuid)?);
        }
        // It may be one of those that cannot be read.
        if found.is_empty()
            && !complete
            && let Some(broken) = self.scan()?.broken.into_iter().next()
        {
            return Err(broken);
        }
        Ok(found)
    }

    fn plain(&self, uuid: Uuid) -> Result<Option<SecretValue>, KeystoreError> {
        let path = self.path(uuid, PLAIN);
        let Some(text) = read(&path, uuid)? else { return Ok(None) };
        decode(&text, &path, uuid).map(Some)
    }

    fn encrypted(&self, uuid: Uuid) -> Result<Option<SecretValue>, KeystoreError> {
        let path = self.path(uuid, ENCRYPTED);
        let Some(text) = read(&path, uuid)? else { return Ok(None) };
        let sealed = decode(&text, &path, uuid)?;
        let (key, from) = self.key.load(uuid)?;
        let damaged = |why: &str| KeystoreError::Damaged { path: path.clone(), why: why.to_owned() };
        match wiping_stack(|| decrypt(sealed, &key)) {
            Ok(Some(value)) => Ok(Some(value)),
            Ok(None) => Err(KeystoreError::WrongIdentity { uuid, tried: vec![from.display().to_string()] }),
            Err(why) => Err(damaged(why)),
        }
    }
}

impl Keystore for LibvirtStore {
    fn uri(&self) -> &str {
        &self.uri
    }

    fn is_writable(&self) -> bool {
        false
    }

    fn find(
        &self,
        lookup: &SecretLookup,
        kind: Option<UsageKind>,
    ) -> Result<Option<SecretDefinition>, KeystoreError> {
        if !self.exists()? {
            return Ok(None);
        }
        match (lookup, kind) {
            (SecretLookup::Uuid(uuid), _) => self.definition(*uuid),
            (SecretLookup::Usage(id), Some(kind)) => Ok(self.with_usage(&[kind], id)?.pop()),
            (SecretLookup::Usage(id), None) => {
                let kinds: Vec<_> = UsageKind::WORDS.iter().map(|(_, kind)| *kind).collect();
                only_one(self.with_usage(&kinds, id)?, lookup)
            }
        }
    }

    /// Where both files are there, libvirt takes the plain one, which may be what was left of before it began to
    /// encrypt. Here the two must agree.
    fn value(&self, secret: &SecretDefinition) -> Result<Option<SecretValue>, KeystoreError> {
        let uuid = secret.uuid;
        match (self.plain(uuid)?, self.encrypted(uuid)?) {
            (Some(plain), Some(encrypted)) if plain != encrypted => Err(KeystoreError::Damaged {
                path: self.path(uuid, PLAIN),
                why: format!(
                    "{uuid}.{ENCRYPTED} beside it has another value, and libvirt would use this one, which may be \
                     an old one: remove the one that is wrong"
                ),
            }),
            (plain, encrypted) => Ok(encrypted.or(plain)),
        }
    }

    fn has_value(&self, secret: &SecretDefinition) -> Result<bool, KeystoreError> {
        for extension in [PLAIN, ENCRYPTED] {
            let path = self.path(secret.uuid, extension);
            if path.try_exists().map_err(KeystoreError::io(&path, "read"))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn list(&self) -> Result<Listing, KeystoreError> {
        if self.exists()? { self.scan() } else { Ok(Listing::default()) }
    }
}

/// The content of a file that nobody else can have written, in protected memory; `None` if it is not there.
fn read(path: &Path, uuid: Uuid) -> Result<Option<SecretValue>, KeystoreError> {
    let file = match OpenOptions::new().read(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(KeystoreError::io(path, "read")(e)),
    };
    disk::check_owner(path, &file)?;
    SecretValue::read_from(file).map(Some).map_err(|source| KeystoreError::Value { uuid, source })
}

/// Decodes a file's base64. Its cause is not named: it would show a byte of the value.
fn decode(text: &SecretValue, path: &Path, uuid: Uuid) -> Result<SecretValue, KeystoreError> {
    let text = text.expose().trim_ascii();
    let mut decoded = SecretValue::zeroed(base64::decoded_len_estimate(text.len()))
        .map_err(|source| KeystoreError::Value { uuid, source })?;
    let len = STANDARD
        .decode_slice(text, decoded.expose_mut())
        .map_err(|_| KeystoreError::Damaged { path: path.to_owned(), why: "it is not base64".to_owned() })?;
    decoded.truncate(len);
    Ok(decoded)
}

/// Decrypts an IV and what follows it, where it is; `None` if the key is another one.
fn decrypt(mut sealed: SecretValue, key: &SecretValue) -> Result<Option<SecretValue>, &'static str> {
    if sealed.len() < 2 * IV_LEN || !sealed.len().is_multiple_of(IV_LEN) {
        return Err("it is not an IV and blocks of AES");
    }
    let mut iv = [0; IV_LEN];
    iv.copy_from_slice(&sealed.expose()[..IV_LEN]);
    let cipher = cbc::Decryptor::<aes::Aes256>::new_from_slices(key.expose(), &iv)
        .map_err(|_| "there is no key of the right length for it")?;
    let Ok(value) = cipher.decrypt_padded::<Pkcs7>(&mut sealed.expose_mut()[IV_LEN..]) else {
        return Ok(None);
    };
    let len = value.len();
    sealed.expose_mut().copy_within(IV_LEN..IV_LEN + len, 0);
    sealed.truncate(len);
    Ok(Some(sealed))
}

#[cfg(test)]
mod tests;
