//! The configured keystores as one.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::secret::{
    DefinitionError, SecretDefinition, SecretLookup, SecretValue, UsageKind, ValueError, os_random,
};

use super::keyring::KeyringStore;
use super::kinds::{StoreOptions, open_object, open_store};
use super::{Keystore, KeystoreError};

/// The configured keystores, in the order in which they are searched.
pub struct Keystores {
    /// The stores.
    pub stores: Vec<Box<dyn Keystore>>,
    options: StoreOptions,
}

/// A secret and the store that has its definition.
pub struct SecretFound<'a> {
    /// The store.
    pub store: &'a dyn Keystore,
    /// What is known of it.
    pub definition: SecretDefinition,
    options: &'a StoreOptions,
}

impl SecretFound<'_> {
    /// The value, wherever it is. One that is defined and has none is an error, and so is an empty one.
    pub fn value(&self) -> Result<SecretValue, KeystoreError> {
        let uuid = self.definition.uuid;
        let value = match &self.definition.value_uri {
            Some(uri) => open_object(uri, self.options)?.value()?,
            None => self.store.value(&self.definition)?,
        };
        match value {
            None => Err(KeystoreError::NoValue { uuid, place: self.definition.value_uri.clone() }),
            Some(value) if value.is_empty() => Err(KeystoreError::Value { uuid, source: ValueError::Empty }),
            Some(value) => Ok(value),
        }
    }

    /// Whether there is a value, without reading it.
    pub fn has_value(&self) -> Result<bool, KeystoreError> {
        match &self.definition.value_uri {
            Some(uri) => open_object(uri, self.options)?.exists(),
            None => self.store.has_value(&self.definition),
        }
    }

    /// Sets or replaces the value, wherever it is.
    pub fn set_value(&self, value: &SecretValue) -> Result<(), KeystoreError> {
        match &self.definition.value_uri {
            Some(uri) => open_object(uri, self.options)?.set_value(value),
            None => self.store.set_value(&self.definition, value),
        }
    }
}

impl Keystores {
    /// The stores of these URIs, and last the kernel keyring, where ephemeral secrets always are, and what others
    /// add to. Nothing is read or made yet.
    pub fn open<S: AsRef<str>>(uris: &[S], options: &StoreOptions) -> Result<Self, KeystoreError> {
        let configured = uris.iter().map(|uri| uri.as_ref().to_owned()).collect();
        let options = StoreOptions { configured, ..options.clone() };
        let mut stores =
            uris.iter().map(|uri| open_store(uri.as_ref(), &options)).collect::<Result<Vec<_>, _>>()?;
        if !stores.iter().any(|s| s.is_ephemeral()) {
            stores.push(Box::new(KeyringStore));
        }
        stores.sort_by_key(|store| store.is_shared());
        Ok(Self { stores, options })
    }

    /// A secret of one of the stores.
    pub fn secret<'a>(&'a self, store: &'a dyn Keystore, definition: SecretDefinition) -> SecretFound<'a> {
        SecretFound { store, definition, options: &self.options }
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
                (_, usage) => Ok(self.secret(store.as_ref(), SecretDefinition { usage, ..definition })),
            };
        }
        Err(KeystoreError::NotDefined { lookup: lookup.clone(), kind })
    }

    /// Adds a definition, or changes it where it is. Returns the store that has it now: a new secret goes to the
    /// first one that keeps secrets of its kind, ephemeral or not.
    pub fn define(&self, definition: &SecretDefinition) -> Result<&dyn Keystore, KeystoreError> {
        definition.check_text().map_err(KeystoreError::Definition)?;
        if let Some(uri) = &definition.value_uri {
            open_object(uri, &self.options)?;
        }
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
            .or_else(|| {
                self.stores.iter().find(|s| s.is_writable() && s.is_ephemeral() == definition.ephemeral)
            })
            .ok_or(KeystoreError::NoStore)?;
        if !definition.recipients.is_empty() && !store.takes_recipients() {
            return Err(KeystoreError::Unsupported {
                store: store.uri().to_owned(),
                what: "encrypt a value to keys that its definition names",
            });
        }
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
        let definition = SecretDefinition::of_uuid(uuid);
        for store in &self.stores {
            match store.undefine(&definition) {
                Err(KeystoreError::NotDefined { .. }) => {}
                done => return done,
            }
        }
        Err(error)
    }

    /// Makes a secret with a new random value: 256 bits as base64, which is text and so a LUKS passphrase. The value is
    /// given back, because who may add a secret need not be able to read one.
    pub fn generate(
        &self,
        definition: &SecretDefinition,
    ) -> Result<(SecretFound<'_>, SecretValue), KeystoreError> {
        let uuid = definition.uuid;
        match self.find(&SecretLookup::Uuid(uuid), None) {
            Err(KeystoreError::NotDefined { .. }) => {}
            Err(e) => return Err(e),
            Ok(_) => return Err(KeystoreError::Definition(DefinitionError::Exists(uuid))),
        }
        let value = random_passphrase().map_err(|source| KeystoreError::Value { uuid, source })?;
        let secret = self.secret(self.define(definition)?, definition.clone());
        if let Err(e) = secret.set_value(&value) {
            // Of the two errors the first one says what is wrong.
            let _ = secret.store.undefine(definition);
            return Err(e);
        }
        Ok((secret, value))
    }
}

/// 256 random bits as base64, which is text and so a LUKS passphrase.
pub fn random_passphrase() -> Result<SecretValue, ValueError> {
    const RANDOM_LEN: usize = 32;
    let random = SecretValue::random(RANDOM_LEN, &mut os_random())?;
    let mut text = SecretValue::zeroed(RANDOM_LEN.div_ceil(3) * 4)?;
    let len = STANDARD.encode_slice(random.expose(), text.expose_mut()).map_err(|_| ValueError::TooLong)?;
    text.truncate(len);
    Ok(text)
}
