//! All the secrets that a guest needs, from all the stores, at once.

use std::collections::HashMap;

use crate::secret::{SecretLookup, SecretRef, SecretValue, UsageKind};

use super::{Keystore, KeystoreError};

/// The configured keystores, in the order in which they are searched.
#[derive(Default)]
pub struct Keystores {
    /// The stores.
    pub stores: Vec<Box<dyn Keystore>>,
}

/// The values that were found.
#[derive(Debug, Default)]
pub struct ResolvedSecrets {
    values: HashMap<(SecretLookup, UsageKind), SecretValue>,
}

impl ResolvedSecrets {
    /// The value for a place in the XML.
    pub fn get(&self, secret: &SecretRef) -> Option<&SecretValue> {
        self.values.get(&(secret.lookup.clone(), secret.kind))
    }
}

/// A secret that was not found, and why.
#[derive(Debug)]
pub struct Unresolved {
    /// The place in the XML that needs it.
    pub secret: SecretRef,
    /// What was wrong.
    pub error: KeystoreError,
}

impl Keystores {
    /// Finds every value, or says of each one that is not to be had why: all of them at once.
    pub fn resolve(&self, _secrets: &[SecretRef]) -> Result<ResolvedSecrets, Vec<Unresolved>> {
        Ok(ResolvedSecrets::default())
    }
}
