//! Where secrets live: one trait, one file (or folder) per kind of keystore.

#[cfg(any(feature = "pkcs11", feature = "vault"))]
#[cfg_attr(not(feature = "vault"), allow(dead_code, reason = "tokens have no certificates"))]
mod credential_file;
mod credentials;
mod error;
mod exec;
pub mod file;
mod hint;
mod import;
mod keyring;
mod kinds;
#[cfg(feature = "kmip")]
pub mod kmip;
pub mod libvirt;
#[cfg(feature = "pkcs11")]
mod pkcs11;
mod query;
mod reach;
mod resolve;
#[cfg(feature = "secret-service")]
mod secret_service;
mod stores;
mod trouble;
#[cfg(feature = "vault")]
pub mod vault;

pub use error::{Failure, KeystoreError};
pub use import::{ImportError, ImportOptions, Imported, import};
pub use kinds::{DEFAULT_TIMEOUT, StoreOptions};
pub use reach::{Reach, in_each_thread};
pub use resolve::{ResolvedSecrets, Unresolved};
pub use stores::{Keystores, SecretFound};
pub use trouble::Trouble;

use crate::secret::{SecretDefinition, SecretLookup, SecretValue, Usage, UsageKind};
use crate::xml::Keyword;

/// Everything that a store has, and what of it could not be read: one secret's trouble hides no other.
#[derive(Debug, Default)]
pub struct Listing {
    /// The definitions, sorted by UUID.
    pub definitions: Vec<SecretDefinition>,
    /// What is wrong with each of the others.
    pub broken: Vec<KeystoreError>,
}

/// Something about a store that is better known before it fails: when a certificate or a token expires, who can read a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// What it is about: "certificate", "token", "files".
    pub about: &'static str,
    /// A sentence, without the store's URI.
    pub message: String,
    /// Whether something should be done about it.
    pub warning: bool,
}

/// A place that keeps secrets. What it is asked about a secret it is asked with the definition that it gave: some know
/// their secrets by UUID, some by usage.
pub trait Keystore: Send + Sync {
    /// Its URI, for messages; without credentials in it.
    fn uri(&self) -> &str;
    /// Whether it keeps ephemeral secrets, and only those.
    fn is_ephemeral(&self) -> bool {
        false
    }
    /// Whether secrets can be added to it.
    fn is_writable(&self) -> bool {
        true
    }
    /// Whether people add secrets to it whom this user need not trust: it is searched after all others, so that nothing
    /// they add stands in for a secret of those.
    fn is_shared(&self) -> bool {
        false
    }
    /// Whether it encrypts a value to the keys that its definition names.
    fn takes_recipients(&self) -> bool {
        false
    }
    /// The definition that a lookup finds. A usage is only unique within its kind; without a kind, one that
    /// several secrets answer to is an error.
    fn find(
        &self,
        lookup: &SecretLookup,
        kind: Option<UsageKind>,
    ) -> Result<Option<SecretDefinition>, KeystoreError>;
    /// A secret's value; `None` if it is defined but has none.
    fn value(&self, secret: &SecretDefinition) -> Result<Option<SecretValue>, KeystoreError>;
    /// Whether a secret has a value, without reading it.
    fn has_value(&self, secret: &SecretDefinition) -> Result<bool, KeystoreError>;
    /// All definitions.
    fn list(&self) -> Result<Listing, KeystoreError>;
    /// Adds a definition, or changes it within libvirt's rules.
    fn define(&self, _definition: &SecretDefinition) -> Result<(), KeystoreError> {
        Err(unsupported(self.uri(), "keep a secret: it can only be read"))
    }
    /// Sets or replaces a defined secret's value.
    fn set_value(&self, _secret: &SecretDefinition, _value: &SecretValue) -> Result<(), KeystoreError> {
        Err(unsupported(self.uri(), "set a value: it can only be read"))
    }
    /// Forgets a secret, its value first.
    fn undefine(&self, _secret: &SecretDefinition) -> Result<(), KeystoreError> {
        Err(unsupported(self.uri(), "forget a secret: it can only be read"))
    }
    /// What `vmward doctor` should say of the store besides that it answers.
    fn health(&self) -> Result<Vec<Health>, KeystoreError> {
        Ok(Vec::new())
    }
}

/// What a store says that cannot do something.
fn unsupported(store: &str, what: &'static str) -> KeystoreError {
    KeystoreError::Unsupported { store: store.to_owned(), what }
}

/// Finds a secret where it is known by its name alone: its UUID or its usage, of whatever kind if none is said.
fn find_by_name(
    lookup: &SecretLookup,
    kind: Option<UsageKind>,
    probe: impl Fn(SecretDefinition) -> Result<Option<SecretDefinition>, KeystoreError>,
) -> Result<Option<SecretDefinition>, KeystoreError> {
    let id = match lookup {
        SecretLookup::Uuid(uuid) => return probe(SecretDefinition::of_uuid(*uuid)),
        SecretLookup::Usage(id) => id,
    };
    let mut found = Vec::new();
    for (_, each) in UsageKind::WORDS {
        if kind.is_none_or(|kind| kind == *each) {
            found.extend(probe(SecretDefinition::of_usage(Usage { kind: *each, id: id.clone() }))?);
        }
    }
    only_one(found, lookup)
}

/// The one that a lookup by usage alone has found, if it was one.
fn only_one(
    mut found: Vec<SecretDefinition>,
    lookup: &SecretLookup,
) -> Result<Option<SecretDefinition>, KeystoreError> {
    if found.len() > 1 {
        let uuids = found.iter().map(|d| d.uuid).collect();
        return Err(KeystoreError::Ambiguous { lookup: lookup.clone(), uuids });
    }
    Ok(found.pop())
}

/// One object of a store that holds a value and nothing else: a definition that is kept elsewhere names it, by its URI.
/// Removing it is not vmward's to do.
pub trait ValueObject: Send + Sync {
    /// Its URI, for messages; without credentials in it.
    fn uri(&self) -> &str;
    /// The value; `None` if there is no such object.
    fn value(&self) -> Result<Option<SecretValue>, KeystoreError>;
    /// Whether there is such an object, without reading its value.
    fn exists(&self) -> Result<bool, KeystoreError>;
    /// Makes or replaces it.
    fn set_value(&self, _value: &SecretValue) -> Result<(), KeystoreError> {
        Err(unsupported(self.uri(), "set a value: it can only be read"))
    }
}
