//! Secrets as data objects of a token.
//!
//! A secret is two private data objects that have its UUID as their label. The one of application `vmward` has the
//! value; the other's application says the usage (`vmward volume /images/web1.qcow2`, or `vmward secret` without one), and
//! its value is the definition. So both lookups are one search, and `pkcs11-tool` shows and reads what is there.

use cryptoki::object::{Attribute, AttributeInfo, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::keystore::{Failure, Health, Keystore, KeystoreError, Listing, ValueObject};
use crate::secret::{MAX_VALUE_LEN, SecretDefinition, SecretLookup, SecretValue, UsageKind, ValueError};
use crate::xml::{Diagnostics, Keyword};

use super::Place;
use super::token::{self, Token, with_token};
use super::uri::ObjectType;

/// The application of values.
const VALUE: &str = "vmward";
/// How the application of definitions begins.
const DEFINITION: &str = "vmward ";
/// What follows for a secret without a usage.
const NO_USAGE: &str = "secret";

/// A token as a store.
pub(super) struct TokenStore {
    pub(super) place: Place,
}

/// An object as the value of a secret that is defined elsewhere.
pub(super) struct TokenObject {
    pub(super) place: Place,
}

/// The application of a definition.
fn application(usage: Option<(UsageKind, &str)>) -> String {
    match usage {
        Some((kind, id)) => format!("{DEFINITION}{} {id}", kind.as_str()),
        None => format!("{DEFINITION}{NO_USAGE}"),
    }
}

fn data(more: impl IntoIterator<Item = Attribute>) -> Vec<Attribute> {
    let mut template = vec![Attribute::Class(ObjectClass::DATA), Attribute::Token(true)];
    template.extend(more);
    template
}

fn label(label: &str) -> Attribute {
    Attribute::Label(label.as_bytes().to_vec())
}

fn of_application(application: &str) -> Attribute {
    Attribute::Application(application.as_bytes().to_vec())
}

/// A secret's objects, but for what they hold.
fn template(uuid: Uuid, application: &str, value: &[u8]) -> Vec<Attribute> {
    data([
        Attribute::Private(true),
        label(&uuid.to_string()),
        of_application(application),
        Attribute::Value(value.to_vec()),
    ])
}

fn value_of(uuid: Uuid) -> Vec<Attribute> {
    data([label(&uuid.to_string()), of_application(VALUE)])
}

impl Token<'_> {
    pub(super) fn search(&self, template: &[Attribute]) -> Result<Vec<ObjectHandle>, KeystoreError> {
        self.session.find_objects(template).map_err(|e| self.place.error(e))
    }

    /// A text attribute; empty where there is none.
    fn text(&self, object: ObjectHandle, attribute: AttributeType) -> Result<String, KeystoreError> {
        let found = self.session.get_attributes(object, &[attribute]).map_err(|e| self.place.error(e))?;
        Ok(match found.into_iter().next() {
            Some(Attribute::Application(text) | Attribute::Label(text)) => {
                String::from_utf8_lossy(&text).into_owned()
            }
            _ => String::new(),
        })
    }

    /// What an object holds.
    fn content(&self, object: ObjectHandle, name: &str) -> Result<SecretValue, KeystoreError> {
        let place = self.place;
        let kept = |why: &str| Failure::Denied.of(&place.uri, Some(name)).because(why.to_owned());
        let wrong = |why: &str| Failure::BadAnswer(why.to_owned()).of(&place.uri, Some(name));
        let info =
            self.session.get_attribute_info(object, &[AttributeType::Value]).map_err(|e| place.error(e))?;
        match info.as_slice() {
            [AttributeInfo::Available(len)] if *len > MAX_VALUE_LEN => {
                return Err(wrong(&ValueError::TooLong.to_string()));
            }
            [AttributeInfo::Available(_)] => {}
            [AttributeInfo::Sensitive] => {
                return Err(kept(
                    "it may not leave the token (CKA_SENSITIVE, or not CKA_EXTRACTABLE): a key like that can only wrap values",
                ));
            }
            _ => return Err(wrong("the object has no value")),
        }
        let found = self.session.get_attributes(object, &[AttributeType::Value]);
        match found.map_err(|e| place.error(e))?.into_iter().next() {
            Some(Attribute::Value(bytes)) => SecretValue::copy_of(&Zeroizing::new(bytes))
                .map_err(|e| wrong("its value cannot be taken").because(e.to_string())),
            _ => Err(wrong("the object has no value")),
        }
    }

    /// The value of the one object among these, if there is one.
    fn only(&self, objects: &[ObjectHandle], name: &str) -> Result<Option<SecretValue>, KeystoreError> {
        match objects {
            [] => Ok(None),
            [only] => self.content(*only, name).map(Some),
            several => {
                let why = format!("it has {} such objects, and cannot say which one is meant", several.len());
                Err(Failure::BadAnswer(why).of(&self.place.uri, Some(name)))
            }
        }
    }

    /// Puts an object in the place of others. Until it is there they are.
    fn replace(&self, old: &[ObjectHandle], new: &[Attribute]) -> Result<(), KeystoreError> {
        let session = self.writable()?;
        session.create_object(new).map_err(|e| self.place.error(e))?;
        self.destroy(&session, old)
    }

    fn destroy(&self, session: &Session, objects: &[ObjectHandle]) -> Result<(), KeystoreError> {
        objects.iter().try_for_each(|object| session.destroy_object(*object).map_err(|e| self.place.error(e)))
    }

    /// The definition that an object holds; `None` for other programs' objects and for values.
    fn definition(&self, object: ObjectHandle) -> Result<Option<SecretDefinition>, KeystoreError> {
        let application_is = self.text(object, AttributeType::Application)?;
        if !application_is.starts_with(DEFINITION) {
            return Ok(None);
        }
        let name = self.text(object, AttributeType::Label)?;
        let wrong = |why: &str| {
            Failure::BadAnswer(format!("a definition is damaged: {why}")).of(&self.place.uri, Some(&name))
        };
        let content = self.content(object, &name)?;
        let text = std::str::from_utf8(content.expose()).map_err(|_| wrong("it is not text"))?;
        let definition = SecretDefinition::parse(text, &mut Diagnostics::new())
            .ok_or_else(|| wrong("it is no secret's XML"))?;
        let usage = definition.usage.as_ref().map(|u| (u.kind, u.id.as_str()));
        if definition.uuid.to_string() != name || application(usage) != application_is {
            return Err(wrong("it describes another secret than its label and application say"));
        }
        Ok(Some(definition))
    }

    /// The definitions of a UUID and their objects: one, or several when a change was cut off in the middle.
    fn definitions(&self, uuid: Uuid) -> Result<Vec<(ObjectHandle, SecretDefinition)>, KeystoreError> {
        let mut found = Vec::new();
        for object in self.search(&data([label(&uuid.to_string())]))? {
            found.extend(self.definition(object)?.map(|definition| (object, definition)));
        }
        Ok(found)
    }

    fn find(
        &self,
        lookup: &SecretLookup,
        kind: Option<UsageKind>,
    ) -> Result<Vec<SecretDefinition>, KeystoreError> {
        let id = match lookup {
            SecretLookup::Uuid(uuid) => {
                return Ok(self.definitions(*uuid)?.into_iter().map(|(_, d)| d).collect());
            }
            SecretLookup::Usage(id) => id,
        };
        let kinds =
            UsageKind::WORDS.iter().map(|(_, k)| *k).filter(|k| kind.is_none_or(|wanted| wanted == *k));
        let mut found = Vec::new();
        for kind in kinds {
            for object in self.search(&data([of_application(&application(Some((kind, id))))]))? {
                found.extend(self.definition(object)?);
            }
        }
        Ok(found)
    }
}

impl TokenStore {
    /// Does something with the token, logged in.
    fn with<R: Send + 'static>(
        &self,
        work: impl FnOnce(&Token<'_>) -> Result<R, KeystoreError> + Send + 'static,
    ) -> Result<R, KeystoreError> {
        with_token(&self.place, |token| {
            token.require_login()?;
            work(token)
        })
    }
}

fn copy(value: &SecretValue, uuid: Uuid) -> Result<SecretValue, KeystoreError> {
    SecretValue::copy_of(value.expose()).map_err(|source| KeystoreError::Value { uuid, source })
}

impl Keystore for TokenStore {
    fn uri(&self) -> &str {
        &self.place.uri
    }

    fn find(
        &self,
        lookup: &SecretLookup,
        kind: Option<UsageKind>,
    ) -> Result<Option<SecretDefinition>, KeystoreError> {
        let wanted = lookup.clone();
        let mut found = self.with(move |token| token.find(&wanted, kind))?;
        found.dedup();
        if found.len() > 1 {
            let uuids = found.iter().map(|d| d.uuid).collect();
            return Err(KeystoreError::Ambiguous { lookup: lookup.clone(), uuids });
        }
        Ok(found.pop())
    }

    fn value(&self, secret: &SecretDefinition) -> Result<Option<SecretValue>, KeystoreError> {
        let uuid = secret.uuid;
        self.with(move |token| token.only(&token.search(&value_of(uuid))?, &uuid.to_string()))
    }

    fn has_value(&self, secret: &SecretDefinition) -> Result<bool, KeystoreError> {
        let uuid = secret.uuid;
        self.with(move |token| Ok(!token.search(&value_of(uuid))?.is_empty()))
    }

    fn list(&self) -> Result<Listing, KeystoreError> {
        self.with(|token| {
            let mut listing = Listing::default();
            for object in token.search(&data([]))? {
                match token.definition(object) {
                    Ok(definition) => listing.definitions.extend(definition),
                    Err(e) => listing.broken.push(e),
                }
            }
            listing.definitions.sort_unstable_by_key(|d| d.uuid);
            Ok(listing)
        })
    }

    fn define(&self, definition: &SecretDefinition) -> Result<(), KeystoreError> {
        if definition.ephemeral {
            return Err(KeystoreError::Unsupported {
                store: self.place.uri.clone(),
                what: "keep an ephemeral secret, whose value must be in memory only",
            });
        }
        let definition = definition.clone();
        self.with(move |token| {
            let same_uuid = token.definitions(definition.uuid)?;
            let same_usage = match &definition.usage {
                Some(usage) => token.find(&SecretLookup::Usage(usage.id.clone()), Some(usage.kind))?,
                None => Vec::new(),
            };
            let existing = same_uuid.iter().map(|(_, d)| d).chain(&same_usage);
            definition.check_against(existing).map_err(KeystoreError::Definition)?;
            let old: Vec<_> = same_uuid.into_iter().map(|(object, _)| object).collect();
            let usage = definition.usage.as_ref().map(|u| (u.kind, u.id.as_str()));
            let xml = definition.to_xml().to_string();
            token.replace(&old, &template(definition.uuid, &application(usage), xml.as_bytes()))
        })
    }

    fn set_value(&self, secret: &SecretDefinition, value: &SecretValue) -> Result<(), KeystoreError> {
        let uuid = secret.uuid;
        let value = copy(value, uuid)?;
        self.with(move |token| {
            if token.definitions(uuid)?.is_empty() {
                return Err(KeystoreError::NotDefined { lookup: SecretLookup::Uuid(uuid), kind: None });
            }
            token.replace(&token.search(&value_of(uuid))?, &template(uuid, VALUE, value.expose()))
        })
    }

    fn undefine(&self, secret: &SecretDefinition) -> Result<(), KeystoreError> {
        let uuid = secret.uuid;
        self.with(move |token| {
            // One that is damaged can still be removed, by its label and the beginning of its application.
            let mut definitions = Vec::new();
            for object in token.search(&data([label(&uuid.to_string())]))? {
                if token.text(object, AttributeType::Application)?.starts_with(DEFINITION) {
                    definitions.push(object);
                }
            }
            if definitions.is_empty() {
                return Err(KeystoreError::NotDefined { lookup: SecretLookup::Uuid(uuid), kind: None });
            }
            let session = token.writable()?;
            token.destroy(&session, &token.search(&value_of(uuid))?)?;
            token.destroy(&session, &definitions)
        })
    }

    fn health(&self) -> Result<Vec<Health>, KeystoreError> {
        token::health(&self.place)
    }
}

impl TokenObject {
    /// Does something with the objects that the URI names.
    fn with<R: Send + 'static>(
        &self,
        work: impl FnOnce(&Token<'_>, &[ObjectHandle], &str) -> Result<R, KeystoreError> + Send + 'static,
    ) -> Result<R, KeystoreError> {
        with_token(&self.place, |token| {
            token.require_login()?;
            let mut objects = Vec::new();
            for object in token.search(&token.place.template())? {
                // A definition of a secret on this token has the same label as its value.
                if token.place.parsed.kind == Some(ObjectType::SecretKey)
                    || !token.text(object, AttributeType::Application)?.starts_with(DEFINITION)
                {
                    objects.push(object);
                }
            }
            work(token, &objects, &token.place.object().unwrap_or_default())
        })
    }
}

impl Place {
    /// What the objects that the URI names have in common.
    pub(super) fn template(&self) -> Vec<Attribute> {
        let class = match self.parsed.kind {
            None | Some(ObjectType::Data) => ObjectClass::DATA,
            Some(ObjectType::SecretKey) => ObjectClass::SECRET_KEY,
            Some(ObjectType::Private) => ObjectClass::PRIVATE_KEY,
        };
        let mut template = vec![Attribute::Class(class), Attribute::Token(true)];
        template.extend(self.parsed.object.as_deref().map(label));
        template.extend(self.parsed.id.clone().map(Attribute::Id));
        template
    }
}

impl ValueObject for TokenObject {
    fn uri(&self) -> &str {
        &self.place.uri
    }

    fn value(&self) -> Result<Option<SecretValue>, KeystoreError> {
        self.with(|token, objects, name| token.only(objects, name))
    }

    fn exists(&self) -> Result<bool, KeystoreError> {
        self.with(|_, objects, _| Ok(!objects.is_empty()))
    }

    fn set_value(&self, value: &SecretValue) -> Result<(), KeystoreError> {
        let failed =
            |e: ValueError| Failure::Other("no memory".to_owned()).of(&self.place.uri, None).because(e);
        let value = SecretValue::copy_of(value.expose()).map_err(failed)?;
        self.with(move |token, objects, _| {
            let mut new = token.place.template();
            new.extend([Attribute::Private(true), Attribute::Value(value.expose().to_vec())]);
            new.extend(match token.place.parsed.kind {
                Some(ObjectType::SecretKey) => vec![
                    Attribute::KeyType(KeyType::GENERIC_SECRET),
                    Attribute::Sensitive(false),
                    Attribute::Extractable(true),
                ],
                _ => vec![of_application(VALUE)],
            });
            token.replace(objects, &new)
        })
    }
}
