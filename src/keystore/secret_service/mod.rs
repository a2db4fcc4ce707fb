//! `secret-service:`, the desktop's agents (gnome-keyring, KWallet, KeePassXC) over D-Bus.
//!
//! A secret is an item with attributes by which `secret-tool` finds it as well: `xdg:schema`, `uuid`, `usage-type`,
//! `usage-id`, `private`. Its description is the item's label. The value crosses the bus encrypted, with a key that is
//! agreed on anew for each request. Whoever may talk to the user's bus may ask the agent for everything that is unlocked:
//! that is how desktop keyrings work.
//!
//! The library is an asynchronous one; each request has a runtime and a thread of its own.

mod agent;
mod items;
mod socket;
mod uri;

use std::collections::HashMap;
use std::time::Duration;

use super::kinds::Opened;
use super::{Failure, Health, Keystore, KeystoreError, Listing, StoreOptions, ValueObject};
use crate::secret::{SecretDefinition, SecretLookup, SecretValue, UsageKind};

use agent::Agent;
use uri::ServiceUri;

/// A URI and what is needed to go there.
struct Place {
    uri: String,
    /// The collection; without one it is the default one.
    collection: Option<String>,
    timeout: Duration,
}

/// An agent's collection as a store.
struct AgentStore(Place);

/// An item, by its attributes, as the value of a secret that is defined elsewhere.
struct AgentItem {
    place: Place,
    attributes: Vec<(String, String)>,
}

/// The store that a URI names.
pub(super) fn open(uri: &str, options: &StoreOptions) -> Opened<dyn Keystore> {
    let parsed = ServiceUri::parse(uri)?;
    if !parsed.attributes.is_empty() {
        return Err(
            "a keystore is a collection, as in secret-service:collection=NAME; an item of it can be the value of a secret that is defined elsewhere".into(),
        );
    }
    Ok(Box::new(AgentStore(Place {
        uri: uri.to_owned(),
        collection: parsed.collection,
        timeout: options.timeout,
    })))
}

/// The item that a URI names.
pub(super) fn open_object(uri: &str, options: &StoreOptions) -> Opened<dyn ValueObject> {
    let parsed = ServiceUri::parse(uri)?;
    if parsed.attributes.is_empty() {
        return Err("an item is named by its attributes, as in secret-service:?attribute=value".into());
    }
    let place = Place { uri: uri.to_owned(), collection: parsed.collection, timeout: options.timeout };
    Ok(Box::new(AgentItem { place, attributes: parsed.attributes }))
}

impl AgentItem {
    fn attributes(&self) -> HashMap<&str, &str> {
        self.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    /// The attributes, for messages.
    fn name(&self) -> String {
        let pairs: Vec<_> = self.attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
        format!("the item with {}", pairs.join(" and "))
    }
}

impl ValueObject for AgentItem {
    fn uri(&self) -> &str {
        &self.place.uri
    }

    fn value(&self) -> Result<Option<SecretValue>, KeystoreError> {
        self.place.ask(async |agent: Agent<'_>| {
            let name = self.name();
            let found = agent.search(self.attributes()).await?;
            match agent.only(&found, &name)? {
                Some(item) => agent.value(item, &name).await.map(Some),
                None => Ok(None),
            }
        })
    }

    fn exists(&self) -> Result<bool, KeystoreError> {
        self.place.ask(async |agent: Agent<'_>| Ok(!agent.search(self.attributes()).await?.is_empty()))
    }

    fn set_value(&self, value: &SecretValue) -> Result<(), KeystoreError> {
        self.place.ask(async |agent: Agent<'_>| {
            let name = self.name();
            let found = agent.search(self.attributes()).await?;
            match agent.only(&found, &name)? {
                Some(item) => agent.set_value(item, value).await,
                None => agent.create(&name, self.attributes(), value.expose()).await,
            }
        })
    }
}

impl Keystore for AgentStore {
    fn uri(&self) -> &str {
        &self.0.uri
    }

    fn find(
        &self,
        lookup: &SecretLookup,
        kind: Option<UsageKind>,
    ) -> Result<Option<SecretDefinition>, KeystoreError> {
        let mut found = self.0.ask(async |agent: Agent<'_>| items::find(&agent, lookup, kind).await)?;
        if found.len() > 1 {
            let uuids = found.iter().map(|d| d.uuid).collect();
            return Err(KeystoreError::Ambiguous { lookup: lookup.clone(), uuids });
        }
        Ok(found.pop())
    }

    fn value(&self, secret: &SecretDefinition) -> Result<Option<SecretValue>, KeystoreError> {
        self.0.ask(async |agent: Agent<'_>| items::value(&agent, secret.uuid).await)
    }

    fn has_value(&self, secret: &SecretDefinition) -> Result<bool, KeystoreError> {
        self.0.ask(async |agent: Agent<'_>| items::has_value(&agent, secret.uuid).await)
    }

    fn list(&self) -> Result<Listing, KeystoreError> {
        self.0.ask(async |agent: Agent<'_>| items::list(&agent).await)
    }

    fn define(&self, definition: &SecretDefinition) -> Result<(), KeystoreError> {
        if definition.ephemeral {
            return Err(KeystoreError::Unsupported {
                store: self.0.uri.clone(),
                what: "keep an ephemeral secret, whose value must be in memory only",
            });
        }
        self.0.ask(async |agent: Agent<'_>| items::define(&agent, definition).await)
    }

    fn set_value(&self, secret: &SecretDefinition, value: &SecretValue) -> Result<(), KeystoreError> {
        self.0.ask(async |agent: Agent<'_>| items::set_value(&agent, secret.uuid, value).await)
    }

    fn undefine(&self, secret: &SecretDefinition) -> Result<(), KeystoreError> {
        self.0.ask(async |agent: Agent<'_>| items::undefine(&agent, secret.uuid).await)
    }

    fn health(&self) -> Result<Vec<Health>, KeystoreError> {
        self.0.ask(async |agent: Agent<'_>| {
            let label = agent.collection().await?.get_label().await.map_err(|e| agent.error(e))?;
            Ok(vec![Health {
                about: "collection",
                message: format!("'{label}' is unlocked; it is open to every program of this user"),
                warning: false,
            }])
        })
    }
}

impl Place {
    /// A failure of this store.
    fn failed(&self, failure: Failure) -> KeystoreError {
        failure.of(&self.uri, None)
    }
}
