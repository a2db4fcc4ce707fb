//! `kmip://HOST`: a key server that speaks KMIP 1.2 to 2.0, which knows its clients by their certificates.
//!
//! A secret is one Secret Data object (a password), a defined one without a value an Opaque Object that holds its place.
//! It has a Name for each thing that it is looked up by, its UUID and `KIND:ID` of its usage; the same as Application
//! Specific Information of the namespace `vmward`; and its definition as XML in that of `vmward-secret`. Names alone
//! would not do: servers keep them unique, and while a value is replaced there are two objects.
//!
//! A value is replaced by another object, which is registered before the old one is destroyed, so that there is one at
//! any time; of two the one with the greater serial number counts.

mod address;
mod connection;
mod message;
mod session;
mod tls;
pub mod ttlv;

use std::collections::HashSet;

use uuid::Uuid;

use crate::secret::{SecretDefinition, SecretLookup, SecretValue, Usage, UsageKind};
use crate::xml::{Diagnostics, Keyword};

use super::kinds::Opened;
use super::{Failure, Health, Keystore, KeystoreError, Listing, StoreOptions, ValueObject};
use address::{Address, ObjectName};
use message::{Attribute, Object, ObjectType, Request};
use session::{Server, Session, has_value};

/// The namespace of what objects are looked up by.
const LABEL: &str = "vmward";
/// The namespace of the serial number and the definition, with a space between them.
const RECORD: &str = "vmward-secret";
/// The Object Group of all secrets, for listing them.
const GROUP: &str = "vmward";

/// A keystore on a KMIP server.
pub struct KmipStore {
    server: Server,
}

/// One object of a KMIP server.
pub struct KmipObject {
    server: Server,
    name: ObjectName,
}

/// Reads a reply as an answer to each thing that is ever asked for, and says how many of them it could be. Nothing of the
/// crate needs this: it is the way into the decoders for those who try them with wrong replies.
pub fn read_reply(reply: &[u8]) -> usize {
    let asked = [
        Request::DiscoverVersions,
        Request::Locate(&[]),
        Request::Get(""),
        Request::GetAttributes(""),
        Request::Register(&[], None),
        Request::Destroy(""),
    ];
    let Ok(reply) = ttlv::decode(reply) else { return 0 };
    let read = |requests: &[Request<'_>]| {
        let answers = message::answers(&reply, requests);
        for payload in answers.iter().flatten().flatten() {
            let _ = message::versions(payload);
            let _ = message::identifiers(payload).count();
            let _ = message::key_material(payload);
            let _ = definition(&Object::of(String::new(), payload));
        }
        answers.is_ok()
    };
    asked.iter().filter(|request| read(&[**request]) || read(&[**request; 2])).count()
}

fn server(uri: &str, options: &StoreOptions) -> Result<Server, String> {
    let credentials = options.identity.credentials.as_deref();
    Ok(Server::new(Address::parse(uri, credentials)?, credentials, options.timeout))
}

impl KmipStore {
    /// `kmip://HOST[:PORT]?ca=FILE&cert=FILE&key=FILE`.
    pub(super) fn from_uri(uri: &str, options: &StoreOptions) -> Opened<dyn Keystore> {
        let server = server(uri, options)?;
        match server.address.object {
            None => Ok(Box::new(Self { server })),
            Some(_) => Err("it names one object, and a keystore has many".to_owned()),
        }
    }
}

impl Keystore for KmipStore {
    fn uri(&self) -> &str {
        &self.server.address.uri
    }

    fn find(
        &self,
        lookup: &SecretLookup,
        kind: Option<UsageKind>,
    ) -> Result<Option<SecretDefinition>, KeystoreError> {
        let labels: Vec<String> = match (lookup, kind) {
            (SecretLookup::Uuid(uuid), _) => vec![uuid.to_string()],
            (SecretLookup::Usage(id), Some(kind)) => vec![usage_label(kind, id)],
            (SecretLookup::Usage(id), None) => {
                UsageKind::WORDS.iter().map(|(_, kind)| usage_label(*kind, id)).collect()
            }
        };
        let mut session = self.server.session(labels.first().map(String::as_str))?;
        let objects = labelled(&mut session, &labels)?;
        let mut found = definitions(&session, &objects);
        if let Some(e) = found.broken.pop() {
            return Err(e);
        }
        if let [_, _, ..] = &*found.definitions {
            let uuids = found.definitions.iter().map(|definition| definition.uuid).collect();
            return Err(KeystoreError::Ambiguous { lookup: lookup.clone(), uuids });
        }
        Ok(found.definitions.pop())
    }

    fn value(&self, secret: &SecretDefinition) -> Result<Option<SecretValue>, KeystoreError> {
        newest_value(&self.server, &secret.uuid.to_string())
    }

    fn has_value(&self, secret: &SecretDefinition) -> Result<bool, KeystoreError> {
        let label = secret.uuid.to_string();
        let mut session = self.server.session(Some(&label))?;
        Ok(labelled(&mut session, &[&label])?.last().is_some_and(has_value))
    }

    fn list(&self) -> Result<Listing, KeystoreError> {
        let mut session = self.server.session(None)?;
        let mut objects = session.find(&[Attribute::Group(GROUP)])?;
        in_order(&mut objects);
        Ok(definitions(&session, &objects))
    }

    fn define(&self, definition: &SecretDefinition) -> Result<(), KeystoreError> {
        if definition.ephemeral {
            return Err(self.cannot("keep an ephemeral secret, whose value must not be on disk"));
        }
        let labels = labels(definition);
        let mut session = self.server.session(labels.first().map(String::as_str))?;
        let objects = labelled(&mut session, &labels)?;
        let found = definitions(&session, &objects);
        if let Some(e) = found.broken.into_iter().next() {
            return Err(e);
        }
        definition.check_against(&found.definitions).map_err(KeystoreError::Definition)?;
        let Some(old) = found.definitions.iter().find(|old| old.uuid == definition.uuid) else {
            return put(&mut session, &labels, Some(definition), None, Vec::new());
        };
        if old == definition {
            return Ok(());
        }
        let own = objects.iter().rev().find_map(|object| Some((object, record(object)?)));
        let Some((object, old)) = own else {
            return Err(self.cannot("change what it says of an object that another program made"));
        };
        let new = format!("{} {}", old.serial, definition.to_xml());
        let application = Attribute::Application;
        session.modify(&object.id, application(RECORD, old.text), old.index, application(RECORD, &new))
    }

    fn set_value(&self, secret: &SecretDefinition, value: &SecretValue) -> Result<(), KeystoreError> {
        let label = secret.uuid.to_string();
        let mut session = self.server.session(Some(&label))?;
        let old = labelled(&mut session, &[&label])?;
        if old.is_empty() {
            return Err(not_defined(secret.uuid));
        }
        put(&mut session, &labels(secret), Some(secret), Some(value), old)
    }

    fn undefine(&self, secret: &SecretDefinition) -> Result<(), KeystoreError> {
        let label = secret.uuid.to_string();
        let mut session = self.server.session(Some(&label))?;
        let objects = labelled(&mut session, &[&label])?;
        if objects.is_empty() {
            return Err(not_defined(secret.uuid));
        }
        session.destroy(&objects)
    }

    fn health(&self) -> Result<Vec<Health>, KeystoreError> {
        self.server.session(None)?.health()
    }
}

impl KmipStore {
    fn cannot(&self, what: &'static str) -> KeystoreError {
        KeystoreError::Unsupported { store: self.server.address.uri.clone(), what }
    }
}

impl KmipObject {
    /// `kmip://HOST[:PORT]/NAME?...`, or with `?id=` for the identifier that the server gave it.
    pub(super) fn from_uri(uri: &str, options: &StoreOptions) -> Opened<dyn ValueObject> {
        let server = server(uri, options)?;
        match server.address.object.clone() {
            Some(name) => Ok(Box::new(Self { server, name })),
            None => Err("it names no object, as in kmip://host/NAME or kmip://host?id=ID".to_owned()),
        }
    }
}

impl ValueObject for KmipObject {
    fn uri(&self) -> &str {
        &self.server.address.uri
    }

    fn value(&self) -> Result<Option<SecretValue>, KeystoreError> {
        match &self.name {
            ObjectName::Name(name) => newest_value(&self.server, name),
            ObjectName::Id(id) => self.server.session(Some(id))?.value(id),
        }
    }

    fn exists(&self) -> Result<bool, KeystoreError> {
        match &self.name {
            ObjectName::Name(name) => {
                let mut session = self.server.session(Some(name))?;
                Ok(labelled(&mut session, &[name])?.last().is_some_and(has_value))
            }
            ObjectName::Id(id) => {
                let mut session = self.server.session(Some(id))?;
                Ok(session.describe(std::slice::from_ref(id))?.iter().any(has_value))
            }
        }
    }

    fn set_value(&self, value: &SecretValue) -> Result<(), KeystoreError> {
        match &self.name {
            ObjectName::Name(name) => {
                let mut session = self.server.session(Some(name))?;
                let old = labelled(&mut session, &[name])?;
                put(&mut session, std::slice::from_ref(name), None, Some(value), old)
            }
            ObjectName::Id(_) => Err(KeystoreError::Unsupported {
                store: self.server.address.uri.clone(),
                what: "give a new value to an object that is named by its identifier, which would be another one then; name it by its Name",
            }),
        }
    }
}

/// What a secret is looked up by.
fn labels(definition: &SecretDefinition) -> Vec<String> {
    let usage = definition.usage.as_ref().map(|usage| usage_label(usage.kind, &usage.id));
    [definition.uuid.to_string()].into_iter().chain(usage).collect()
}

fn usage_label(kind: UsageKind, id: &str) -> String {
    format!("{}:{id}", kind.as_str())
}

/// The objects that have any of these labels, made by vmward or by others, the newest last.
fn labelled(session: &mut Session<'_>, labels: &[impl AsRef<str>]) -> Result<Vec<Object>, KeystoreError> {
    let any: Vec<_> = labels
        .iter()
        .flat_map(|label| [Attribute::Name(label.as_ref()), Attribute::Application(LABEL, label.as_ref())])
        .collect();
    let mut objects = session.find(&any)?;
    // A certificate, say, may bear the same name.
    objects
        .retain(|object| has_value(object) || object.kind == ObjectType::Opaque && record(object).is_some());
    in_order(&mut objects);
    Ok(objects)
}

/// Sorts objects from old to new.
fn in_order(objects: &mut [Object]) {
    objects.sort_by_cached_key(|object| {
        let serial = record(object).map_or(0, |record| record.serial);
        (serial, object.created, object.id.parse::<u64>().ok(), object.id.clone())
    });
}

/// What vmward has written down at a secret's object.
struct Record<'a> {
    index: i32,
    text: &'a str,
    serial: u64,
    /// The definition.
    xml: &'a str,
}

fn record(object: &Object) -> Option<Record<'_>> {
    let (index, _, text) = object.applications.iter().find(|(_, namespace, _)| namespace == RECORD)?;
    let (serial, xml) = text.split_once(' ').unwrap_or(("", text));
    Some(Record { index: *index, text, serial: serial.parse().unwrap_or(0), xml })
}

/// The definitions of objects, and what is wrong with the others. Of several objects of a secret the last one counts.
fn definitions(session: &Session<'_>, objects: &[Object]) -> Listing {
    let mut listing = Listing::default();
    let mut seen = HashSet::new();
    for object in objects.iter().rev() {
        match definition(object) {
            Ok(found) => {
                if seen.insert(found.uuid) {
                    listing.definitions.push(found);
                }
            }
            Err(why) => {
                let why = format!("its object {} {why}", object.id);
                listing.broken.push(session.error(Failure::BadAnswer(why)));
            }
        }
    }
    listing.definitions.sort_by_key(|definition| definition.uuid);
    listing
}

/// The definition of an object, or what is wrong with it.
fn definition(object: &Object) -> Result<SecretDefinition, String> {
    if let Some(Record { xml, .. }) = record(object) {
        let mut diagnostics = Diagnostics::new();
        return SecretDefinition::parse(xml, &mut diagnostics).ok_or_else(|| {
            let said: Vec<_> = diagnostics.sorted().iter().map(|d| d.message.clone()).collect();
            format!("has a damaged definition: {}", said.join("; "))
        });
    }
    // Made by another program: its names are all that is known of it.
    let mut names = object.names.iter().map(|(_, name)| name.as_str());
    let uuid =
        names.clone().find_map(|name| Uuid::try_parse(name).ok()).ok_or("has no name that is a UUID")?;
    let usage = names.find_map(|name| {
        let (kind, id) = name.split_once(':')?;
        let (_, kind) = UsageKind::WORDS.iter().find(|(word, _)| *word == kind)?;
        Some(Usage { kind: *kind, id: id.to_owned() })
    });
    let (private, description, value_uri, recipients) = (false, None, None, Vec::new());
    Ok(SecretDefinition { uuid, ephemeral: false, private, description, usage, value_uri, recipients })
}

/// The value of the newest object with a label.
fn newest_value(server: &Server, label: &str) -> Result<Option<SecretValue>, KeystoreError> {
    /// Objects that vanish between being found and being read were replaced meanwhile.
    const TRIES: usize = 4;
    let mut session = server.session(Some(label))?;
    for _ in 0..TRIES {
        let objects = labelled(&mut session, &[label])?;
        let Some(newest) = objects.last().filter(|object| has_value(object)) else { break };
        if let Some(value) = session.value(&newest.id)? {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// Makes an object in place of old ones. It has other names than they until they are gone, and is found by its
/// labels all the while.
fn put(
    session: &mut Session<'_>,
    labels: &[String],
    definition: Option<&SecretDefinition>,
    value: Option<&SecretValue>,
    old: Vec<Object>,
) -> Result<(), KeystoreError> {
    let serial =
        old.iter().filter_map(record).map(|record| record.serial).max().unwrap_or(0).saturating_add(1);
    let names: Vec<String> = match &*old {
        [] => labels.to_vec(),
        _ => labels.iter().map(|label| format!("{label}.{}", Uuid::new_v4())).collect(),
    };
    let record = definition.map(|definition| format!("{serial} {}", definition.to_xml()));
    let mut attributes: Vec<_> = names.iter().map(|name| Attribute::Name(name)).collect();
    attributes.extend(labels.iter().map(|label| Attribute::Application(LABEL, label)));
    if let Some(record) = &record {
        attributes.push(Attribute::Application(RECORD, record));
        attributes.push(Attribute::Group(GROUP));
    }
    let id = session.register(&attributes, value)?;
    if old.is_empty() {
        return Ok(());
    }
    session.destroy(&old)?;
    session.rename(&id, &names, labels)
}

fn not_defined(uuid: Uuid) -> KeystoreError {
    KeystoreError::NotDefined { lookup: SecretLookup::Uuid(uuid), kind: None }
}

#[cfg(test)]
mod tests;
