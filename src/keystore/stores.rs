//! The configured keystores as one.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::secret::{
    DefinitionError, SecretDefinition, SecretLookup, SecretValue, UsageKind, ValueError, os_random,
};

use super::file::{FileStore, IdentitySources};
use super::keyring::KeyringStore;
use super::{Keystore, KeystoreError};

/// The configured keystores, in the order in which they are searched.
#[derive(Default)]
pub struct Keystores {
    /// The stores.
    pub stores: Vec<Box<dyn Keystore>>,
}

/// A secret and the store that has it.
pub struct SecretFound<'a> {
    /// The store.
    pub store: &'a dyn Keystore,
    /// What is known of it.
    pub definition: SecretDefinition,
}

impl Keystores {
    /// The stores of these URIs, and last the kernel keyring, where ephemeral secrets always are. Nothing is read
    /// or made yet.
    pub fn open<S: AsRef<str>>(uris: &[S], identity: &IdentitySources) -> Result<Self, KeystoreError> {
        let mut stores =
            uris.iter().map(|uri| open_one(uri.as_ref(), identity)).collect::<Result<Vec<_>, _>>()?;
        if !stores.iter().any(|s| s.is_ephemeral()) {
            stores.push(Box::new(KeyringStore));
        }
        Ok(Self { stores })
    }

    /// The secret that a lookup finds, in the first store that has it. A store that cannot be asked ends the
    /// search: what a later one has must not stand in for what might be in this one.
    pub fn find(
        &self,
        lookup: &SecretLookup,
        kind: Option<UsageKind>,
    ) -> Result<SecretFound<'_>, KeystoreError> {
        for store in &self.stores {
            let Some(definition) = store.find(lookup, kind)? else { continue };
            return match (kind, definition.usage) {
                // As in libvirt, a secret without a usage serves everywhere, by its UUID.
                (Some(needs), Some(has)) if has.kind != needs => {
                    Err(KeystoreError::OtherUsage { uuid: definition.uuid, has, needs })
                }
                (_, usage) => Ok(SecretFound {
                    store: store.as_ref(),
                    definition: SecretDefinition { usage, ..definition },
                }),
            };
        }
        Err(KeystoreError::NotDefined { lookup: lookup.clone(), kind })
    }

    /// Adds a definition, or changes it where it is. Returns the store that has it now: a new secret goes to the
    /// first one that keeps secrets of its kind, ephemeral or not.
    pub fn define(&self, definition: &SecretDefinition) -> Result<&dyn Keystore, KeystoreError> {
        definition.check_text().map_err(KeystoreError::Definition)?;
        let mut home = None;
        for store in &self.stores {
            let same_uuid = store.find(&SecretLookup::Uuid(definition.uuid), None)?;
            let same_usage = match &definition.usage {
                Some(usage) => store.find(&SecretLookup::Usage(usage.id.clone()), Some(usage.kind))?,
                None => None,
            };
            definition
                .check_against(same_uuid.iter().chain(&same_usage))
                .map_err(KeystoreError::Definition)?;
            if same_uuid.is_some() {
                home.get_or_insert(store);
            }
        }
        let store = home
            .or_else(|| self.stores.iter().find(|s| s.is_ephemeral() == definition.ephemeral))
            .ok_or(KeystoreError::NoStore)?;
        store.define(definition)?;
        Ok(store.as_ref())
    }

    /// Forgets a secret. One whose definition is damaged can still be removed, by its UUID.
    pub fn undefine(&self, lookup: &SecretLookup) -> Result<(), KeystoreError> {
        let damaged = match (self.find(lookup, None), lookup) {
            (Ok(found), _) => return found.store.undefine(&found.definition),
            (Err(e @ KeystoreError::Damaged { .. }), SecretLookup::Uuid(uuid)) => (e, *uuid),
            (Err(e), _) => return Err(e),
        };
        let (error, uuid) = damaged;
        let definition =
            SecretDefinition { uuid, ephemeral: false, private: false, description: None, usage: None };
        for store in &self.stores {
            match store.undefine(&definition) {
                Err(KeystoreError::NotDefined { .. }) => {}
                done => return done,
            }
        }
        Err(error)
    }

    /// Makes a secret with a new random value: 256 bits as base64, which is text and so a LUKS passphrase.
    pub fn generate(&self, definition: &SecretDefinition) -> Result<&dyn Keystore, KeystoreError> {
        let uuid = definition.uuid;
        if self.find(&SecretLookup::Uuid(uuid), None).is_ok() {
            return Err(KeystoreError::Definition(DefinitionError::Exists(uuid)));
        }
        let value = random_passphrase().map_err(|source| KeystoreError::Value { uuid, source })?;
        let store = self.define(definition)?;
        if let Err(e) = store.set_value(definition, &value) {
            // Of the two errors the first one says what is wrong.
            let _ = store.undefine(definition);
            return Err(e);
        }
        Ok(store)
    }
}

fn open_one(uri: &str, identity: &IdentitySources) -> Result<Box<dyn Keystore>, KeystoreError> {
    let bad = |why| KeystoreError::BadUri { uri: uri.to_owned(), why };
    let (scheme, rest) =
        uri.split_once(':').ok_or_else(|| bad("it needs a scheme, as in file:/directory"))?;
    match scheme {
        "file" if rest.starts_with('/') => Ok(Box::new(FileStore::new(rest.into(), identity.clone()))),
        "file" => Err(bad("the directory must be an absolute path, as in file:/directory")),
        "keyring" if rest.is_empty() => Ok(Box::new(KeyringStore)),
        "keyring" => Err(bad("keyring: takes nothing after the colon")),
        _ => Err(bad("vmward knows file:/directory and keyring:")),
    }
}

fn random_passphrase() -> Result<SecretValue, ValueError> {
    const RANDOM_LEN: usize = 32;
    let random = SecretValue::random(RANDOM_LEN, &mut os_random())?;
    let mut text = SecretValue::zeroed(RANDOM_LEN.div_ceil(3) * 4)?;
    let len = STANDARD.encode_slice(random.expose(), text.expose_mut()).map_err(|_| ValueError::TooLong)?;
    text.truncate(len);
    Ok(text)
}
