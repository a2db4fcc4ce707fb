//! Where secrets live: one trait, one file (or folder) per kind of keystore.

mod resolve;

pub use resolve::{Keystores, ResolvedSecrets, Unresolved};

use uuid::Uuid;

use crate::secret::{SecretDefinition, SecretLookup, SecretValue, UsageKind};

/// What went wrong with a keystore.
#[derive(Debug, thiserror::Error)]
pub enum KeystoreError {
    /// The store cannot do that at all.
    #[error("the keystore {store} cannot {what}")]
    Unsupported {
        /// Its URI.
        store: String,
        /// "set a value", "list", ...
        what: &'static str,
    },
}

/// A place that keeps secrets.
pub trait Keystore: Send + Sync {
    /// Its URI, for messages; without credentials in it.
    fn uri(&self) -> &str;
    /// The definition that a lookup finds. A usage is only unique within its kind.
    fn find(
        &self,
        lookup: &SecretLookup,
        kind: Option<UsageKind>,
    ) -> Result<Option<SecretDefinition>, KeystoreError>;
    /// A secret's value; `None` if it is defined but has none.
    fn value(&self, uuid: Uuid) -> Result<Option<SecretValue>, KeystoreError>;
    /// All definitions, sorted by UUID.
    fn list(&self) -> Result<Vec<SecretDefinition>, KeystoreError>;
    /// Adds a definition, or changes it within libvirt's rules.
    fn define(&self, definition: &SecretDefinition) -> Result<(), KeystoreError>;
    /// Sets or replaces a defined secret's value.
    fn set_value(&self, uuid: Uuid, value: &SecretValue) -> Result<(), KeystoreError>;
    /// Forgets a secret, its value first.
    fn undefine(&self, uuid: Uuid) -> Result<(), KeystoreError>;
}
