//! Secrets as an agent's items.

use std::collections::HashMap;

use secret_service::Item;
use uuid::Uuid;

use crate::keystore::{Failure, KeystoreError, Listing};
use crate::secret::{SecretDefinition, SecretLookup, SecretValue, Usage, UsageKind};
use crate::xml::Keyword;

use super::agent::Agent;

/// The name that libsecret gives to a kind of item.
const SCHEMA: (&str, &str) = ("xdg:schema", "org.vmward.Secret");
const UUID: &str = "uuid";
const USAGE_TYPE: &str = "usage-type";
const USAGE_ID: &str = "usage-id";
const PRIVATE: &str = "private";
const VALUE_URI: &str = "value-uri";
/// An item always has a value, which may be empty. This one says that it was never set.
const NO_VALUE: (&str, &str) = ("value", "unset");

/// The label of a secret without a description.
fn plain_label(uuid: Uuid, usage: Option<&Usage>) -> String {
    match usage {
        Some(usage) => format!("vmward: {usage}"),
        None => format!("vmward: {uuid}"),
    }
}

/// The attributes of a definition.
fn attributes(definition: &SecretDefinition, has_value: bool) -> HashMap<String, String> {
    let mut pairs = vec![SCHEMA, (PRIVATE, if definition.private { "yes" } else { "no" })];
    let uuid = definition.uuid.to_string();
    pairs.push((UUID, &uuid));
    if let Some(usage) = &definition.usage {
        pairs.extend([(USAGE_TYPE, usage.kind.as_str()), (USAGE_ID, usage.id.as_str())]);
    }
    pairs.extend(definition.value_uri.as_deref().map(|uri| (VALUE_URI, uri)));
    pairs.extend((!has_value).then_some(NO_VALUE));
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The definition that an item's attributes and label stand for, or what is wrong with them.
fn definition(attributes: &HashMap<String, String>, label: &str) -> Result<SecretDefinition, String> {
    let get = |name: &str| attributes.get(name).map(String::as_str);
    let uuid = get(UUID).and_then(|uuid| Uuid::try_parse(uuid).ok()).ok_or("its uuid is none")?;
    let usage = match (get(USAGE_TYPE), get(USAGE_ID)) {
        (None, None) => None,
        (Some(kind), Some(id)) => {
            let kind = UsageKind::WORDS.iter().find(|(word, _)| *word == kind).map(|(_, kind)| *kind);
            Some(Usage { kind: kind.ok_or("its usage-type is none")?, id: id.to_owned() })
        }
        _ => return Err("it has one of usage-type and usage-id without the other".to_owned()),
    };
    // An agent lets people write a label as they like.
    let label = label.trim();
    let described = !label.is_empty() && label != plain_label(uuid, usage.as_ref());
    let definition = SecretDefinition {
        uuid,
        ephemeral: false,
        private: match get(PRIVATE) {
            None | Some("no") => false,
            Some("yes") => true,
            Some(_) => return Err("its attribute private is neither yes nor no".to_owned()),
        },
        description: described.then(|| label.to_owned()),
        usage,
        value_uri: get(VALUE_URI).map(str::to_owned),
        recipients: Vec::new(),
    };
    definition.check_text().map_err(|e| e.to_string())?;
    Ok(definition)
}

fn as_strs(attributes: &HashMap<String, String>) -> HashMap<&str, &str> {
    attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

/// The definition of an item.
async fn read(agent: &Agent<'_>, item: &Item<'_>) -> Result<SecretDefinition, KeystoreError> {
    let attributes = item.get_attributes().await.map_err(|e| agent.error(e))?;
    let label = item.get_label().await.map_err(|e| agent.error(e))?;
    definition(&attributes, &label).map_err(|why| {
        agent.failed(Failure::BadAnswer(format!("an item is damaged: {why}")), item.item_path.as_str())
    })
}

/// The items of a UUID; there is one, unless somebody has made another one.
async fn items_of<'a>(agent: &Agent<'a>, uuid: Uuid) -> Result<Vec<Item<'a>>, KeystoreError> {
    agent.search(HashMap::from([SCHEMA, (UUID, uuid.to_string().as_str())])).await
}

/// What a lookup finds.
pub(super) async fn find(
    agent: &Agent<'_>,
    lookup: &SecretLookup,
    kind: Option<UsageKind>,
) -> Result<Vec<SecretDefinition>, KeystoreError> {
    let found = match lookup {
        SecretLookup::Uuid(uuid) => items_of(agent, *uuid).await?,
        SecretLookup::Usage(id) => {
            let mut wanted = HashMap::from([SCHEMA, (USAGE_ID, id.as_str())]);
            wanted.extend(kind.map(|kind| (USAGE_TYPE, kind.as_str())));
            agent.search(wanted).await?
        }
    };
    let mut definitions = Vec::new();
    for item in &found {
        definitions.push(read(agent, item).await?);
    }
    Ok(definitions)
}

/// A secret's value.
pub(super) async fn value(agent: &Agent<'_>, uuid: Uuid) -> Result<Option<SecretValue>, KeystoreError> {
    let (found, name) = (items_of(agent, uuid).await?, uuid.to_string());
    let Some(item) = agent.only(&found, &name)? else { return Ok(None) };
    let value = agent.value(item, &name).await?;
    Ok(Some(value).filter(|value| !value.is_empty()))
}

/// Whether a value was set, by vmward or by another program.
pub(super) async fn has_value(agent: &Agent<'_>, uuid: Uuid) -> Result<bool, KeystoreError> {
    let (found, name) = (items_of(agent, uuid).await?, uuid.to_string());
    match agent.only(&found, &name)? {
        Some(item) => {
            let attributes = item.get_attributes().await.map_err(|e| agent.error(e))?;
            Ok(attributes.get(NO_VALUE.0).is_none_or(|value| value != NO_VALUE.1))
        }
        None => Ok(false),
    }
}

/// All definitions.
pub(super) async fn list(agent: &Agent<'_>) -> Result<Listing, KeystoreError> {
    let mut listing = Listing::default();
    for item in agent.search(HashMap::from([SCHEMA])).await? {
        match read(agent, &item).await {
            Ok(definition) => listing.definitions.push(definition),
            Err(e) => listing.broken.push(e),
        }
    }
    listing.definitions.sort_unstable_by_key(|d| d.uuid);
    Ok(listing)
}

/// Adds a definition, or changes it.
pub(super) async fn define(agent: &Agent<'_>, definition: &SecretDefinition) -> Result<(), KeystoreError> {
    let uuid = definition.uuid;
    let label =
        definition.description.clone().unwrap_or_else(|| plain_label(uuid, definition.usage.as_ref()));
    let mut existing = find(agent, &SecretLookup::Uuid(uuid), None).await?;
    if let Some(usage) = &definition.usage {
        existing.extend(find(agent, &SecretLookup::Usage(usage.id.clone()), Some(usage.kind)).await?);
    }
    definition.check_against(&existing).map_err(KeystoreError::Definition)?;
    let found = items_of(agent, uuid).await?;
    match agent.only(&found, &uuid.to_string())? {
        Some(item) => {
            let set = attributes(definition, has_value(agent, uuid).await?);
            item.set_attributes(as_strs(&set)).await.map_err(|e| agent.error(e))?;
            item.set_label(&label).await.map_err(|e| agent.error(e))
        }
        None => agent.create(&label, as_strs(&attributes(definition, false)), b"").await,
    }
}

/// Sets a secret's value.
pub(super) async fn set_value(
    agent: &Agent<'_>,
    uuid: Uuid,
    value: &SecretValue,
) -> Result<(), KeystoreError> {
    let found = items_of(agent, uuid).await?;
    let not_defined = || KeystoreError::NotDefined { lookup: SecretLookup::Uuid(uuid), kind: None };
    let item = agent.only(&found, &uuid.to_string())?.ok_or_else(not_defined)?;
    agent.set_value(item, value).await?;
    let mut attributes = item.get_attributes().await.map_err(|e| agent.error(e))?;
    if attributes.remove(NO_VALUE.0).is_some() {
        item.set_attributes(as_strs(&attributes)).await.map_err(|e| agent.error(e))?;
    }
    Ok(())
}

/// Forgets a secret.
pub(super) async fn undefine(agent: &Agent<'_>, uuid: Uuid) -> Result<(), KeystoreError> {
    let found = items_of(agent, uuid).await?;
    if found.is_empty() {
        return Err(KeystoreError::NotDefined { lookup: SecretLookup::Uuid(uuid), kind: None });
    }
    for item in found {
        item.delete().await.map_err(|e| agent.error(e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> SecretDefinition {
        SecretDefinition {
            uuid: Uuid::new_v4(),
            ephemeral: false,
            private: true,
            description: Some("web1's root disk".to_owned()),
            usage: Some(Usage { kind: UsageKind::Volume, id: "/images/web1.qcow2".to_owned() }),
            recipients: Vec::new(),
            value_uri: Some("secret-service:?disk=web1".to_owned()),
        }
    }

    #[test]
    fn a_definition_comes_back_from_its_attributes() {
        let full = sample();
        assert_eq!(definition(&attributes(&full, true), "web1's root disk").unwrap(), full);
        let bare = SecretDefinition { description: None, usage: None, value_uri: None, ..full };
        let label = plain_label(bare.uuid, None);
        assert_eq!(definition(&attributes(&bare, false), &label).unwrap(), bare);
    }

    #[test]
    fn what_somebody_else_wrote_is_read_with_care() {
        let full = sample();
        for (name, value) in [(UUID, "x"), (USAGE_TYPE, "disk"), (USAGE_ID, " a"), (PRIVATE, "maybe")] {
            let mut changed = attributes(&full, true);
            changed.insert(name.to_owned(), value.to_owned());
            assert!(definition(&changed, "x").is_err(), "{name}={value}");
            changed.remove(name);
            assert_eq!(definition(&changed, "x").is_err(), name != PRIVATE, "without {name}");
        }
        assert!(definition(&attributes(&full, true), "\u{1b}]0;x").is_err());
        assert_eq!(definition(&attributes(&full, true), "  ").unwrap().description, None);
    }

    proptest! {
        #[test]
        fn any_attributes_are_a_definition_or_refused(
            pairs in proptest::collection::hash_map(
                prop::sample::select(vec![UUID, USAGE_TYPE, USAGE_ID, PRIVATE, VALUE_URI]).prop_map(str::to_owned),
                "\\PC{0,20}|volume|yes|no|5c8a3f2e-0b1d-4c6e-8f90-a1b2c3d4e5f6",
                0..6,
            ),
            label in "\\PC{0,20}",
        ) {
            if let Ok(read) = definition(&pairs, &label) {
                prop_assert_eq!(read.check_text(), Ok(()));
            }
        }
    }
}
