//! The directory of a file store for values that are encrypted elsewhere.

use age::x25519::Recipient;
use uuid::Uuid;

use crate::keystore::KeystoreError;
use crate::secret::{SecretDefinition, SecretLookup};

use super::{FileStore, RECIPIENTS, disk, identity};

impl FileStore {
    /// Adds a definition, or changes it, and makes no key.
    pub(in crate::keystore) fn define_only(
        &self,
        definition: &SecretDefinition,
    ) -> Result<(), KeystoreError> {
        let lock = self.write_lock()?;
        self.define_locked(&lock, definition)
    }

    /// A value as it lies there.
    pub(in crate::keystore) fn sealed_value(&self, uuid: Uuid) -> Result<Option<Vec<u8>>, KeystoreError> {
        disk::read(&self.value_path(uuid))
    }

    /// Puts the value of a defined secret in place.
    pub(in crate::keystore) fn set_sealed_value(
        &self,
        uuid: Uuid,
        sealed: &[u8],
    ) -> Result<(), KeystoreError> {
        let lock = self.write_lock()?;
        if self.definition(uuid)?.is_none() {
            return Err(KeystoreError::NotDefined { lookup: SecretLookup::Uuid(uuid), kind: None });
        }
        self.keeping_index(&lock, || disk::replace(&self.value_path(uuid), sealed))
    }

    /// The public keys that stand in the directory.
    pub(in crate::keystore) fn listed_recipients(&self) -> Result<Vec<Recipient>, KeystoreError> {
        Ok(identity::read_recipients(&self.dir.join(RECIPIENTS))?.unwrap_or_default())
    }
}
