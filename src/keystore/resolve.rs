//! All the secrets that a guest needs, from all the stores, at once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::error::Error;

use uuid::Uuid;

use crate::secret::{SecretLookup, SecretRef, SecretValue, UsageKind};
use crate::xml::Diagnostics;

use super::{KeystoreError, Keystores};

/// The values that were found. A secret that is used many times is here once.
#[derive(Debug, Default)]
pub struct ResolvedSecrets {
    found: HashMap<(SecretLookup, UsageKind), Uuid>,
    values: HashMap<Uuid, SecretValue>,
}

impl ResolvedSecrets {
    /// The value for a place in the XML.
    pub fn get(&self, secret: &SecretRef) -> Option<&SecretValue> {
        self.values.get(self.found.get(&(secret.lookup.clone(), secret.kind))?)
    }
}

/// A secret that was not found, and why.
#[derive(Debug)]
pub struct Unresolved {
    /// The first place in the XML that needs it.
    pub secret: SecretRef,
    /// What was wrong.
    pub error: KeystoreError,
}

impl Unresolved {
    /// Says it at its place.
    pub fn say(&self, diagnostics: &mut Diagnostics) {
        let mut message = self.error.to_string();
        let mut cause = self.error.source();
        while let Some(e) = cause {
            message.push_str(&format!(": {e}"));
            cause = e.source();
        }
        let said = diagnostics.error(self.secret.span, message);
        if let Some(hint) = self.error.hint() {
            said.hint(hint);
        }
    }
}

impl Keystores {
    /// Finds every value, or says of each one that is not to be had why: all of them at once.
    pub fn resolve(&self, secrets: &[SecretRef]) -> Result<ResolvedSecrets, Vec<Unresolved>> {
        let mut resolved = ResolvedSecrets::default();
        let mut unresolved: Vec<Unresolved> = Vec::new();
        for secret in secrets {
            let key = (secret.lookup.clone(), secret.kind);
            let known_bad = |u: &Unresolved| u.secret.lookup == key.0 && u.secret.kind == key.1;
            if resolved.found.contains_key(&key) || unresolved.iter().any(known_bad) {
                continue;
            }
            match self.resolve_one(secret, &mut resolved.values) {
                Ok(uuid) => {
                    resolved.found.insert(key, uuid);
                }
                Err(error) => unresolved.push(Unresolved { secret: secret.clone(), error }),
            }
        }
        if unresolved.is_empty() { Ok(resolved) } else { Err(unresolved) }
    }

    fn resolve_one(
        &self,
        secret: &SecretRef,
        values: &mut HashMap<Uuid, SecretValue>,
    ) -> Result<Uuid, KeystoreError> {
        let found = self.find(&secret.lookup, Some(secret.kind))?;
        let uuid = found.definition.uuid;
        if let Entry::Vacant(entry) = values.entry(uuid) {
            entry.insert(found.store.value(&found.definition)?.ok_or(KeystoreError::NoValue { uuid })?);
        }
        Ok(uuid)
    }
}
