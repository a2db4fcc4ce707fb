//! `file:DIR`: a directory with one `UUID.xml` and one `UUID.age` per secret. [`group`] is the same for several users.
//!
//! Values are age files for the public keys in `recipients.txt`; `age -d -i keystore.key UUID.age` reads them
//! as well. Files are replaced in one step, writers take turns on `.lock`, and a lookup by UUID reads nothing
//! but that secret's files.

mod bound;
pub(super) mod disk;
mod group;
mod health;
mod identity;
mod index;
mod lock;
#[cfg(feature = "pkcs11")]
mod sealed;

#[cfg(any(feature = "pkcs11", feature = "vault"))]
pub(super) use disk::check_owner;
pub use identity::{IDENTITY_CREDENTIAL, IdentitySources, parse_identities};

use std::cell::Cell;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use age::x25519::Recipient;
use age::{DecryptError, Decryptor, Encryptor};
use uuid::Uuid;

use crate::secret::{DefinitionError, SecretDefinition, SecretLookup, SecretValue, UsageKind};
use crate::xml::{Diagnostics, Keyword};

use super::kinds::Opened;
use super::{Health, Keystore, KeystoreError, Listing, StoreOptions, only_one};
use bound::{Binding, BoundIdentity};
use group::GroupStore;
use lock::StoreLock;

/// The public keys of a store, as `age -R` takes them.
const RECIPIENTS: &str = "recipients.txt";

/// A keystore in a directory.
pub struct FileStore {
    uri: String,
    dir: PathBuf,
    identity: IdentitySources,
}

impl FileStore {
    /// The store in that directory. It is made when the first secret is defined.
    pub fn new(dir: PathBuf, identity: IdentitySources) -> Self {
        Self { uri: format!("file:{}", dir.display()), dir, identity }
    }

    /// `file:/directory`, or `file:/directory?owner=NAME&group=NAME`.
    pub(super) fn from_uri(uri: &str, options: &StoreOptions) -> Opened<dyn Keystore> {
        let rest = uri.strip_prefix("file:").unwrap_or_default();
        let (dir, query) = rest.split_once('?').map_or((rest, None), |(dir, query)| (dir, Some(query)));
        if !dir.starts_with('/') {
            return Err("the directory must be an absolute path, as in file:/directory".to_owned());
        }
        let store = Self::new(dir.into(), options.identity.clone());
        match query {
            Some(query) => Ok(Box::new(GroupStore::new(Self { uri: uri.to_owned(), ..store }, query)?)),
            None => Ok(Box::new(store)),
        }
    }

    fn definition_path(&self, uuid: Uuid) -> PathBuf {
        self.dir.join(format!("{uuid}.xml"))
    }

    pub(super) fn value_path(&self, uuid: Uuid) -> PathBuf {
        self.dir.join(format!("{uuid}.age"))
    }

    /// Whether the store is there; a directory that others can write is refused.
    fn exists(&self) -> Result<bool, KeystoreError> {
        match File::open(&self.dir) {
            Ok(dir) => disk::check_owner(&self.dir, &dir).map(|()| true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(KeystoreError::io(&self.dir, "read")(e)),
        }
    }

    fn definition(&self, uuid: Uuid) -> Result<Option<SecretDefinition>, KeystoreError> {
        let path = self.definition_path(uuid);
        disk::read_text(&path)?.map(|text| parse(path, uuid, &text)).transpose()
    }

    /// The UUIDs of all definitions, sorted.
    fn uuids(&self) -> Result<Vec<Uuid>, KeystoreError> {
        let error = || KeystoreError::io(&self.dir, "read");
        let mut uuids = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(error())? {
            let name = entry.map_err(error())?.file_name();
            // Only the form in which the store writes them, so that no secret is listed twice.
            if let Some(stem) = name.to_str().and_then(|n| n.strip_suffix(".xml"))
                && let Ok(uuid) = Uuid::try_parse(stem)
                && uuid.to_string() == stem
            {
                uuids.push(uuid);
            }
        }
        uuids.sort_unstable();
        Ok(uuids)
    }

    fn scan(&self) -> Result<Listing, KeystoreError> {
        self.listing(|uuid| self.definition(uuid))
    }

    fn listing(
        &self,
        definition: impl Fn(Uuid) -> Result<Option<SecretDefinition>, KeystoreError>,
    ) -> Result<Listing, KeystoreError> {
        let mut listing = Listing::default();
        for uuid in self.uuids()? {
            match definition(uuid) {
                Ok(definition) => listing.definitions.extend(definition),
                Err(e) => listing.broken.push(e),
            }
        }
        Ok(listing)
    }

    /// Refuses what is not kept in files, or could not be encrypted later.
    fn check_kept(&self, definition: &SecretDefinition) -> Result<(), KeystoreError> {
        if definition.ephemeral {
            return Err(KeystoreError::Unsupported {
                store: self.uri.clone(),
                what: "keep an ephemeral secret, whose value must not be on disk",
            });
        }
        own_recipients(definition).map(drop)
    }

    /// Decrypts a value. One that is `bound` must say that it is of this secret.
    fn open(&self, uuid: Uuid, content: &[u8], bound: bool) -> Result<SecretValue, KeystoreError> {
        let path = || self.value_path(uuid);
        let damaged = |e: DecryptError| KeystoreError::Damaged { path: path(), why: e.to_string() };
        let decryptor = Decryptor::new_buffered(content).map_err(damaged)?;
        let (identities, tried) = self.identity.load(uuid)?;
        let foreign = Cell::new(false);
        let identities: Vec<Box<dyn age::Identity + '_>> = match bound {
            true => identities.iter().map(|i| Box::new(BoundIdentity::new(i, uuid, &foreign)) as _).collect(),
            false => identities.into_iter().map(|i| Box::new(i) as _).collect(),
        };
        let plain = match decryptor.decrypt(identities.iter().map(AsRef::as_ref)) {
            Ok(plain) => plain,
            Err(DecryptError::NoMatchingKeys) if foreign.get() => {
                let why = "it does not say that it is this secret's value".to_owned();
                return Err(KeystoreError::Foreign { path: path(), why });
            }
            Err(DecryptError::NoMatchingKeys | DecryptError::KeyDecryptionFailed) => {
                return Err(KeystoreError::WrongIdentity { uuid, tried });
            }
            Err(e) => return Err(damaged(e)),
        };
        SecretValue::read_from(plain).map_err(|source| KeystoreError::Value { uuid, source })
    }

    /// Encrypts a value to the store's keys and the secret's own.
    fn seal(
        &self,
        recipients: Vec<Recipient>,
        secret: &SecretDefinition,
        value: &SecretValue,
        bound: bool,
    ) -> Result<Vec<u8>, KeystoreError> {
        let (own, binding) = (own_recipients(secret)?, Binding(secret.uuid));
        let recipients = recipients.iter().chain(&own).map(|r| r as &dyn age::Recipient);
        let binding = bound.then_some(&binding as &dyn age::Recipient);
        encrypt(recipients.chain(binding), value)
            .map_err(KeystoreError::io(self.value_path(secret.uuid), "encrypted"))
    }

    /// Makes the directory if need be and takes the writers' turn.
    fn write_lock(&self) -> Result<StoreLock, KeystoreError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(KeystoreError::io(&self.dir, "made"))?;
        self.exists()?;
        let lock = StoreLock::exclusive(&self.dir)?;
        self.sweep()?;
        Ok(lock)
    }

    /// Removes what a writer that was killed has left. No other writer is at work while the lock is held.
    fn sweep(&self) -> Result<(), KeystoreError> {
        let error = || KeystoreError::io(&self.dir, "read");
        for entry in fs::read_dir(&self.dir).map_err(error())? {
            let entry = entry.map_err(error())?;
            if entry.file_name().as_encoded_bytes().starts_with(disk::TEMPORARY.as_bytes()) {
                disk::remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Adds a definition, or changes it.
    fn define_locked(&self, lock: &StoreLock, definition: &SecretDefinition) -> Result<(), KeystoreError> {
        let same_uuid = self.definition(definition.uuid)?;
        let same_usage = match &definition.usage {
            Some(usage) => self.find_usage_locked(lock, usage.kind, &usage.id)?,
            None => None,
        };
        definition.check_against(same_uuid.iter().chain(&same_usage)).map_err(KeystoreError::Definition)?;
        let path = self.definition_path(definition.uuid);
        let xml = definition.to_xml().to_string();
        self.keeping_index(lock, || {
            disk::replace(&path, xml.as_bytes())?;
            match (&same_uuid, &definition.usage) {
                (None, Some(usage)) => self.add_to_index(usage, definition.uuid),
                _ => Ok(()),
            }
        })
    }

    /// The public keys that values are encrypted to. A store without any gets those of the user's identity.
    fn recipients(&self) -> Result<Vec<Recipient>, KeystoreError> {
        let path = self.dir.join(RECIPIENTS);
        if let Some(recipients) = identity::read_recipients(&path)? {
            return Ok(recipients);
        }
        let recipients = self.identity.recipients_or_new()?;
        let mut text = "# The public keys to which the values in this directory are encrypted.\n".to_owned();
        for recipient in &recipients {
            text.push_str(&format!("{recipient}\n"));
        }
        disk::replace(&path, text.as_bytes())?;
        Ok(recipients)
    }
}

impl Keystore for FileStore {
    fn uri(&self) -> &str {
        &self.uri
    }

    fn takes_recipients(&self) -> bool {
        true
    }

    fn find(
        &self,
        lookup: &SecretLookup,
        kind: Option<UsageKind>,
    ) -> Result<Option<SecretDefinition>, KeystoreError> {
        if !self.exists()? {
            return Ok(None);
        }
        find(lookup, kind, |uuid| self.definition(uuid), |kind, id| self.find_usage(kind, id))
    }

    fn value(&self, secret: &SecretDefinition) -> Result<Option<SecretValue>, KeystoreError> {
        let content = disk::read(&self.value_path(secret.uuid))?;
        content.map(|content| self.open(secret.uuid, &content, false)).transpose()
    }

    fn has_value(&self, secret: &SecretDefinition) -> Result<bool, KeystoreError> {
        let path = self.value_path(secret.uuid);
        path.try_exists().map_err(KeystoreError::io(path, "read"))
    }

    fn list(&self) -> Result<Listing, KeystoreError> {
        if self.exists()? { self.scan() } else { Ok(Listing::default()) }
    }

    fn define(&self, definition: &SecretDefinition) -> Result<(), KeystoreError> {
        self.check_kept(definition)?;
        let lock = self.write_lock()?;
        // Now, so that whoever only has the public half can add values from here on.
        self.recipients()?;
        self.define_locked(&lock, definition)
    }

    fn set_value(&self, secret: &SecretDefinition, value: &SecretValue) -> Result<(), KeystoreError> {
        let uuid = secret.uuid;
        let lock = self.write_lock()?;
        let definition = self.definition(uuid)?.ok_or_else(|| not_defined(uuid))?;
        let sealed = self.seal(self.recipients()?, &definition, value, false)?;
        self.keeping_index(&lock, || disk::replace(&self.value_path(uuid), &sealed))
    }

    fn undefine(&self, secret: &SecretDefinition) -> Result<(), KeystoreError> {
        let uuid = secret.uuid;
        let lock = self.write_lock()?;
        // A definition that cannot be read can still be removed.
        let path = self.definition_path(uuid);
        if !path.try_exists().map_err(KeystoreError::io(&path, "read"))? {
            return Err(not_defined(uuid));
        }
        self.keeping_index(&lock, || {
            disk::remove(&self.value_path(uuid))?;
            disk::remove(&path)?;
            disk::sync_dir(&self.dir)
        })
    }

    fn health(&self) -> Result<Vec<Health>, KeystoreError> {
        self.own_health()
    }
}

/// What a lookup finds: by UUID, or by a usage whose kind may not be known.
fn find(
    lookup: &SecretLookup,
    kind: Option<UsageKind>,
    by_uuid: impl Fn(Uuid) -> Result<Option<SecretDefinition>, KeystoreError>,
    by_usage: impl Fn(UsageKind, &str) -> Result<Option<SecretDefinition>, KeystoreError>,
) -> Result<Option<SecretDefinition>, KeystoreError> {
    match (lookup, kind) {
        (SecretLookup::Uuid(uuid), _) => by_uuid(*uuid),
        (SecretLookup::Usage(id), Some(kind)) => by_usage(kind, id),
        (SecretLookup::Usage(id), None) => {
            let mut found = Vec::new();
            for (_, kind) in UsageKind::WORDS {
                found.extend(by_usage(*kind, id)?);
            }
            only_one(found, lookup)
        }
    }
}

fn not_defined(uuid: Uuid) -> KeystoreError {
    KeystoreError::NotDefined { lookup: SecretLookup::Uuid(uuid), kind: None }
}

/// The definition in a file that is named after it.
fn parse(path: PathBuf, uuid: Uuid, text: &str) -> Result<SecretDefinition, KeystoreError> {
    let mut diagnostics = Diagnostics::new();
    match SecretDefinition::parse(text, &mut diagnostics) {
        Some(definition) if definition.uuid == uuid => Ok(definition),
        Some(definition) => {
            let why = format!("it describes the secret {}", definition.uuid);
            Err(KeystoreError::Damaged { path, why })
        }
        None => {
            let said = diagnostics.sorted().iter().map(|d| d.message.clone()).collect::<Vec<_>>().join("; ");
            // Somebody else may have written what is quoted here, for a terminal to take as commands.
            Err(KeystoreError::Damaged { path, why: said.replace(char::is_control, "?") })
        }
    }
}

/// The keys that a definition names.
fn own_recipients(secret: &SecretDefinition) -> Result<Vec<Recipient>, KeystoreError> {
    let key = |(n, key): (usize, &String)| {
        key.parse().map_err(|_| KeystoreError::Definition(DefinitionError::NotAPublicKey(n + 1)))
    };
    secret.recipients.iter().enumerate().map(key).collect()
}

/// A value as an age file.
pub(super) fn encrypt<'a>(
    recipients: impl Iterator<Item = &'a dyn age::Recipient>,
    value: &SecretValue,
) -> io::Result<Vec<u8>> {
    let encryptor = Encryptor::with_recipients(recipients).map_err(io::Error::other)?;
    let mut sealed = Vec::new();
    let mut writer = encryptor.wrap_output(&mut sealed)?;
    writer.write_all(value.expose())?;
    writer.finish()?;
    Ok(sealed)
}

#[cfg(test)]
mod tests;
