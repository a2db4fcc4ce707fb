//! Where secrets live: one trait, one file (or folder) per kind of keystore.

#[cfg(any(feature = "pkcs11", feature = "vault"))]
#[cfg_attr(not(feature = "vault"), allow(dead_code, reason = "tokens have no certificates"))]
mod credential_file;
mod error;
pub mod file;
mod hint;
mod keyring;
mod kinds;
#[cfg(feature = "kmip")]
pub mod kmip;
#[cfg(feature = "pkcs11")]
mod pkcs11;
mod resolve;
#[cfg(feature = "secret-service")]
mod secret_service;
mod stores;
mod trouble;
#[cfg(feature = "vault")]
mod vault;

pub use error::{Failure, KeystoreError};
pub use kinds::{DEFAULT_TIMEOUT, StoreOptions};
pub use resolve::{ResolvedSecrets, Unresolved};
pub use stores::{Keystores, SecretFound};
pub use trouble::Trouble;

use crate::secret::{SecretDefinition, SecretLookup, SecretValue, UsageKind};

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
    fn define(&self, definition: &SecretDefinition) -> Result<(), KeystoreError>;
    /// Sets or replaces a defined secret's value.
    fn set_value(&self, secret: &SecretDefinition, value: &SecretValue) -> Result<(), KeystoreError>;
    /// Forgets a secret, its value first.
    fn undefine(&self, secret: &SecretDefinition) -> Result<(), KeystoreError>;
    /// What `vmward doctor` should say of the store besides that it answers.
    fn health(&self) -> Result<Vec<Health>, KeystoreError> {
        Ok(Vec::new())
    }
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
    fn set_value(&self, value: &SecretValue) -> Result<(), KeystoreError>;
}
