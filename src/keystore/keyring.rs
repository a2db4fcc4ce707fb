//! `keyring:`, where ephemeral secrets are: the kernel's user keyring, never a disk.
//!
//! A secret is two keys of type `user`: `vmward:UUID` is its XML, `vmward-value:UUID` its value. The user keyring
//! (keyrings(7)) is one for all sessions of a user and lasts until the next boot, so that what a shell has set
//! is there for a service. A key can be read only by a process that possesses it, and a service's session keyring is
//! often one of its own, without the user's: linking the user keyring to the process keyring gives possession,
//! and neither other users nor a child process get it.

use linux_keyutils::{Key, KeyError, KeyRing, KeyRingIdentifier};
use uuid::Uuid;

use crate::secret::{SecretDefinition, SecretLookup, SecretValue, UsageKind};
use crate::xml::Diagnostics;

use super::kinds::Opened;
use super::{Keystore, KeystoreError, Listing, StoreOptions, only_one};

const URI: &str = "keyring:";
const DEFINITION: &str = "vmward:";
const VALUE: &str = "vmward-value:";
/// The largest payload of a key of type `user` (Linux, security/keys/user_defined.c).
const MAX_PAYLOAD: usize = 32767;
/// More links are not listed. A user's quota is 200 keys, root's a million.
const MAX_LINKS: usize = 1 << 16;

/// The keystore for ephemeral secrets.
pub struct KeyringStore;

impl KeyringStore {
    /// `keyring:`.
    pub(super) fn from_uri(uri: &str, _options: &StoreOptions) -> Opened<dyn Keystore> {
        match uri {
            URI => Ok(Box::new(Self)),
            _ => Err("keyring: takes nothing after the colon".to_owned()),
        }
    }
}

/// The user keyring, possessed; `None` where the kernel or a container gives none: no secret is in it then.
fn user_keyring() -> Result<Option<KeyRing>, KeystoreError> {
    let possess = || {
        KeyRing::from_special_id(KeyRingIdentifier::Process, true)?
            .link_keyring_id(KeyRingIdentifier::User)?;
        KeyRing::from_special_id(KeyRingIdentifier::User, true)
    };
    const ENOSYS: i32 = 38;
    match possess() {
        Ok(keyring) => Ok(Some(keyring)),
        Err(KeyError::PermissionDenied | KeyError::Unknown(ENOSYS)) => Ok(None),
        Err(e) => Err(failed("be reached", e)),
    }
}

fn writable_keyring() -> Result<KeyRing, KeystoreError> {
    user_keyring()?.ok_or(KeystoreError::Unsupported {
        store: URI.to_owned(),
        what: "keep anything: this kernel or container has no key management",
    })
}

fn failed(what: &'static str, error: KeyError) -> KeystoreError {
    match error {
        KeyError::QuotaExceeded => KeystoreError::KeyringFull,
        e => KeystoreError::Keyring { what, why: format!("{e:?}") },
    }
}

fn search(keyring: &KeyRing, prefix: &str, uuid: Uuid) -> Result<Option<Key>, KeystoreError> {
    match keyring.search(&format!("{prefix}{uuid}")) {
        Ok(key) => Ok(Some(key)),
        Err(e) if is_gone(e) => Ok(None),
        Err(e) => Err(failed("be searched", e)),
    }
}

/// A key that was removed while it was looked at is as good as none.
fn is_gone(error: KeyError) -> bool {
    matches!(error, KeyError::KeyDoesNotExist | KeyError::KeyRevoked | KeyError::KeyExpired)
}

fn payload(key: Key, uuid: Uuid) -> Result<Option<SecretValue>, KeystoreError> {
    // Most payloads are short; the kernel says how long a longer one is.
    let mut room = 1024;
    loop {
        let mut value = SecretValue::zeroed(room).map_err(|source| KeystoreError::Value { uuid, source })?;
        match key.read(&mut value.expose_mut()) {
            Ok(len) if len > room => room = len,
            Ok(len) => {
                value.truncate(len);
                return Ok(Some(value));
            }
            Err(e) if is_gone(e) => return Ok(None),
            Err(e) => return Err(failed("be read", e)),
        }
    }
}

fn definition(key: Key, uuid: Uuid) -> Result<Option<SecretDefinition>, KeystoreError> {
    let Some(text) = payload(key, uuid)? else { return Ok(None) };
    let damaged = || KeystoreError::Keyring {
        what: "be understood",
        why: format!("the key {DEFINITION}{uuid} is damaged"),
    };
    let text = std::str::from_utf8(text.expose()).map_err(|_| damaged())?;
    SecretDefinition::parse(text, &mut Diagnostics::new())
        .filter(|d| d.uuid == uuid && d.ephemeral)
        .map(Some)
        .ok_or_else(damaged)
}

/// The keys of this store's definitions.
fn keys(keyring: &KeyRing) -> Result<Vec<(Uuid, Key)>, KeystoreError> {
    let links = keyring.get_links(MAX_LINKS).map_err(|e| failed("be listed", e))?;
    let name = |key: Key| {
        let description = key.metadata().ok()?.get_description().to_owned();
        Some((Uuid::try_parse(description.strip_prefix(DEFINITION)?).ok()?, key))
    };
    let mut keys: Vec<_> = links.iter().filter_map(|link| name(link.as_key()?)).collect();
    keys.sort_unstable_by_key(|(uuid, _)| *uuid);
    Ok(keys)
}

impl Keystore for KeyringStore {
    fn uri(&self) -> &str {
        URI
    }

    fn is_ephemeral(&self) -> bool {
        true
    }

    fn find(
        &self,
        lookup: &SecretLookup,
        kind: Option<UsageKind>,
    ) -> Result<Option<SecretDefinition>, KeystoreError> {
        let Some(keyring) = user_keyring()? else { return Ok(None) };
        match lookup {
            SecretLookup::Uuid(uuid) => match search(&keyring, DEFINITION, *uuid)? {
                Some(key) => definition(key, *uuid),
                None => Ok(None),
            },
            // A user has room for a hundred secrets here: reading them all is no work.
            SecretLookup::Usage(id) => {
                let listing = self.list()?;
                let is_meant = |d: &SecretDefinition| {
                    d.usage.as_ref().is_some_and(|u| u.id == *id && kind.is_none_or(|k| k == u.kind))
                };
                let found = listing.definitions.into_iter().filter(is_meant).collect();
                match only_one(found, lookup)? {
                    Some(definition) => Ok(Some(definition)),
                    None => listing.broken.into_iter().next().map_or(Ok(None), Err),
                }
            }
        }
    }

    fn value(&self, secret: &SecretDefinition) -> Result<Option<SecretValue>, KeystoreError> {
        let uuid = secret.uuid;
        let Some(keyring) = user_keyring()? else { return Ok(None) };
        search(&keyring, VALUE, uuid)?.map_or(Ok(None), |key| payload(key, uuid))
    }

    fn has_value(&self, secret: &SecretDefinition) -> Result<bool, KeystoreError> {
        let Some(keyring) = user_keyring()? else { return Ok(false) };
        Ok(search(&keyring, VALUE, secret.uuid)?.is_some())
    }

    fn list(&self) -> Result<Listing, KeystoreError> {
        let mut listing = Listing::default();
        let Some(keyring) = user_keyring()? else { return Ok(listing) };
        for (uuid, key) in keys(&keyring)? {
            match definition(key, uuid) {
                Ok(definition) => listing.definitions.extend(definition),
                Err(e) => listing.broken.push(e),
            }
        }
        Ok(listing)
    }

    fn define(&self, definition: &SecretDefinition) -> Result<(), KeystoreError> {
        if !definition.ephemeral {
            return Err(KeystoreError::Unsupported {
                store: URI.to_owned(),
                what: "keep a secret beyond the next boot; it takes those with ephemeral='yes'",
            });
        }
        let keyring = writable_keyring()?;
        let existing = self.list()?.definitions;
        definition.check_against(&existing).map_err(KeystoreError::Definition)?;
        keyring
            .add_key(&format!("{DEFINITION}{}", definition.uuid), &definition.to_xml().to_string())
            .map_err(|e| failed("be written", e))?;
        Ok(())
    }

    fn set_value(&self, secret: &SecretDefinition, value: &SecretValue) -> Result<(), KeystoreError> {
        let uuid = secret.uuid;
        let keyring = writable_keyring()?;
        if search(&keyring, DEFINITION, uuid)?.is_none() {
            return Err(KeystoreError::NotDefined { lookup: SecretLookup::Uuid(uuid), kind: None });
        }
        if value.len() > MAX_PAYLOAD {
            return Err(KeystoreError::TooLong { uuid, store: URI.to_owned(), longest: MAX_PAYLOAD });
        }
        keyring.add_key(&format!("{VALUE}{uuid}"), value.expose()).map_err(|e| failed("be written", e))?;
        Ok(())
    }

    fn undefine(&self, secret: &SecretDefinition) -> Result<(), KeystoreError> {
        let uuid = secret.uuid;
        let keyring = writable_keyring()?;
        let not_defined = KeystoreError::NotDefined { lookup: SecretLookup::Uuid(uuid), kind: None };
        let definition = search(&keyring, DEFINITION, uuid)?.ok_or(not_defined)?;
        for key in search(&keyring, VALUE, uuid)?.into_iter().chain([definition]) {
            match key.invalidate() {
                Err(e) if !is_gone(e) => return Err(failed("be written", e)),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keystore::Keystores;
    use crate::keystore::file::IdentitySources;
    use crate::secret::Usage;

    /// Takes the secret out of this user's real keyring again, whatever the test does.
    struct Cleanup(SecretDefinition);

    impl Drop for Cleanup {
        fn drop(&mut self) {
            let _ = KeyringStore.undefine(&self.0);
        }
    }

    fn ephemeral() -> SecretDefinition {
        let uuid = Uuid::new_v4();
        let usage = Some(Usage { kind: UsageKind::Volume, id: format!("/test/{uuid}") });
        let (private, description, value_uri, recipients) = (false, None, None, Vec::new());
        SecretDefinition { uuid, ephemeral: true, private, description, usage, value_uri, recipients }
    }

    #[test]
    fn an_ephemeral_secret_is_found_until_it_is_undefined() {
        if user_keyring().unwrap().is_none() {
            println!("not tested: there is no kernel keyring here");
            return;
        }
        let identity = IdentitySources { credentials: None, key_file: "/nonexistent".into() };
        let stores = Keystores::open(&["keyring:"], &StoreOptions::new(identity)).unwrap();
        let (secret, rival) = (ephemeral(), ephemeral());
        let _cleanup = (Cleanup(secret.clone()), Cleanup(rival.clone()));
        let usage = SecretLookup::Usage(secret.usage.clone().unwrap().id);
        stores.define(&secret).unwrap();
        assert!(KeyringStore.value(&secret).unwrap().is_none());
        for len in [1, 1024, 1025, MAX_PAYLOAD] {
            let value = SecretValue::copy_of(&vec![b'x'; len]).unwrap();
            KeyringStore.set_value(&secret, &value).unwrap();
            assert_eq!(KeyringStore.value(&secret).unwrap(), Some(value));
        }
        assert_eq!(stores.find(&usage, Some(UsageKind::Volume)).unwrap().definition, secret);
        assert!(KeyringStore.list().unwrap().definitions.contains(&secret));
        let rival = SecretDefinition { usage: secret.usage.clone(), ..rival };
        assert!(matches!(stores.define(&rival), Err(KeystoreError::Definition(_))));
        let lasting = SecretDefinition { ephemeral: false, ..rival };
        assert!(matches!(KeyringStore.define(&lasting), Err(KeystoreError::Unsupported { .. })));
        let long = SecretValue::zeroed(MAX_PAYLOAD + 1).unwrap();
        assert!(matches!(KeyringStore.set_value(&secret, &long), Err(KeystoreError::TooLong { .. })));
        KeyringStore.undefine(&secret).unwrap();
        assert!(matches!(stores.find(&usage, None), Err(KeystoreError::NotDefined { .. })));
        assert!(KeyringStore.value(&secret).unwrap().is_none());
    }
}
