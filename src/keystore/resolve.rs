//! All the secrets that a guest needs, from all the stores, at once.

use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;

use uuid::Uuid;

use crate::parallel::all_at_once;
use crate::secret::{SecretLookup, SecretRef, SecretValue, UsageKind};
use crate::xml::Diagnostics;

use super::{KeystoreError, Keystores, SecretFound};

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
    /// What was wrong; several lookups may have come to the same secret.
    pub error: Arc<KeystoreError>,
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

/// How many secrets are asked for at the same time. A start with many disks is then not as slow as its slowest
/// store times their number, and no server sees more of it than from a few clients.
const AT_ONCE: usize = 16;

impl Keystores {
    /// Finds every value, or says of each one that is not to be had why: all of them at once.
    pub fn resolve(&self, secrets: &[SecretRef]) -> Result<ResolvedSecrets, Vec<Unresolved>> {
        let mut wanted: Vec<&SecretRef> = Vec::new();
        for secret in secrets {
            if !wanted.iter().any(|w| same(w, secret)) {
                wanted.push(secret);
            }
        }
        let found = all_at_once(&wanted, AT_ONCE, |secret| self.find(&secret.lookup, Some(secret.kind)));
        let mut unique: Vec<&SecretFound<'_>> = Vec::new();
        for secret in found.iter().flatten() {
            if !unique.iter().any(|u| u.definition.uuid == secret.definition.uuid) {
                unique.push(secret);
            }
        }
        let values = all_at_once(&unique, AT_ONCE, |secret| secret.value());
        let fetched: Vec<_> = unique.iter().map(|secret| Fetched::of(secret)).collect();
        let values: HashMap<Uuid, Result<SecretValue, Arc<KeystoreError>>> = unique
            .iter()
            .map(|secret| secret.definition.uuid)
            .zip(values.into_iter().map(|value| value.map_err(Arc::new)))
            .collect();
        let mut resolved = ResolvedSecrets::default();
        let mut unresolved: Vec<Unresolved> = Vec::new();
        for (secret, found) in wanted.into_iter().zip(found) {
            match found.map_err(Arc::new).and_then(|found| serves(found.definition.uuid, secret, &values)) {
                Ok(uuid) => {
                    resolved.found.insert((secret.lookup.clone(), secret.kind), uuid);
                }
                Err(error) => unresolved.push(Unresolved { secret: secret.clone(), error }),
            }
        }
        if !unresolved.is_empty() {
            return Err(unresolved);
        }
        fetched.iter().for_each(Fetched::record);
        resolved.values = values.into_iter().filter_map(|(uuid, value)| Some((uuid, value.ok()?))).collect();
        Ok(resolved)
    }
}

/// What the journal is to know of a secret that was fetched. Not its value, and not what a URI has behind its path, where
/// a token's PIN may be.
struct Fetched {
    uuid: Uuid,
    usage: Option<String>,
    place: String,
}

impl Fetched {
    fn of(secret: &SecretFound<'_>) -> Self {
        let definition = &secret.definition;
        let place = definition.value_uri.as_deref().unwrap_or(secret.store.uri());
        Self {
            uuid: definition.uuid,
            usage: definition.usage.as_ref().map(ToString::to_string),
            place: place.split('?').next().unwrap_or_default().to_owned(),
        }
    }

    fn record(&self) {
        let Self { uuid, usage, place } = self;
        tracing::info!(secret = %uuid, secret_usage = usage, secret_store = place, "a secret was fetched");
    }
}

/// Whether two places want the same of the same secret.
fn same(a: &SecretRef, b: &SecretRef) -> bool {
    (&a.lookup, a.kind, a.text) == (&b.lookup, b.kind, b.text)
}

/// A secret's UUID, if its value was found and serves in that place.
fn serves(
    uuid: Uuid,
    secret: &SecretRef,
    values: &HashMap<Uuid, Result<SecretValue, Arc<KeystoreError>>>,
) -> Result<Uuid, Arc<KeystoreError>> {
    match values.get(&uuid) {
        Some(Ok(value)) if secret.text => value
            .as_passphrase()
            .map(|_| uuid)
            .map_err(|source| Arc::new(KeystoreError::Value { uuid, source })),
        Some(Err(error)) => Err(Arc::clone(error)),
        _ => Ok(uuid),
    }
}
