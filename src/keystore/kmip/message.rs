//! The messages of KMIP that a keystore needs, in the versions 1.2 to 2.0: requests as bytes, replies as what they say.
//!
//! 2.0 differs in how attributes are written: each has a tag of its own, where 1.x names it by a text.

use std::fmt;

use zeroize::Zeroizing;

use crate::secret::{MAX_VALUE_LEN, SecretValue};

use super::ttlv::{Item, Value, Writer};

/// The longest reply that is read: a value of the greatest length, or the identifiers of 80 000 objects.
pub(super) const MAX_REPLY_LEN: usize = 4 << 20;

/// A version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(i32, i32);

impl Version {
    /// Those that vmward speaks, the most wanted first.
    pub(super) const SPOKEN: &[Version] = &[Self(2, 0), Self(1, 4), Self(1, 3), Self(1, 2)];
    /// The one in which servers are asked what they speak: nearly all know it.
    pub(super) const FIRST: Version = Self(1, 2);
    /// The last one with the old form of attributes.
    pub(super) const LAST_ONE: Version = Self(1, 4);
    /// The first one with the new form of attributes.
    pub(super) const TWO: Version = Self(2, 0);

    /// "1.4", if it is one that vmward speaks.
    pub(super) fn parse(text: &str) -> Option<Self> {
        Self::SPOKEN.iter().find(|version| version.to_string() == text).copied()
    }

    /// "2.0, 1.4 and 1.2".
    pub(super) fn list(versions: &[Version]) -> String {
        let words: Vec<_> = versions.iter().map(Version::to_string).collect();
        match &*words {
            [] => "none".to_owned(),
            [only] => only.clone(),
            [some @ .., last] => format!("{} and {last}", some.join(", ")),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// The tags of section 9.1.3.1.
mod tag {
    pub const APPLICATION_DATA: u32 = 0x42_0002;
    pub const APPLICATION_NAMESPACE: u32 = 0x42_0003;
    pub const APPLICATION_SPECIFIC_INFORMATION: u32 = 0x42_0004;
    pub const ATTRIBUTE: u32 = 0x42_0008;
    pub const ATTRIBUTE_INDEX: u32 = 0x42_0009;
    pub const ATTRIBUTE_NAME: u32 = 0x42_000a;
    pub const ATTRIBUTE_VALUE: u32 = 0x42_000b;
    pub const BATCH_COUNT: u32 = 0x42_000d;
    pub const BATCH_ERROR_CONTINUATION_OPTION: u32 = 0x42_000e;
    pub const BATCH_ITEM: u32 = 0x42_000f;
    pub const BATCH_ORDER_OPTION: u32 = 0x42_0010;
    pub const CRYPTOGRAPHIC_USAGE_MASK: u32 = 0x42_002c;
    pub const INITIAL_DATE: u32 = 0x42_0039;
    pub const KEY: u32 = 0x42_003f;
    pub const KEY_BLOCK: u32 = 0x42_0040;
    pub const KEY_FORMAT_TYPE: u32 = 0x42_0042;
    pub const KEY_MATERIAL: u32 = 0x42_0043;
    pub const KEY_VALUE: u32 = 0x42_0045;
    pub const KEY_WRAPPING_DATA: u32 = 0x42_0046;
    pub const MAXIMUM_RESPONSE_SIZE: u32 = 0x42_0050;
    pub const NAME: u32 = 0x42_0053;
    pub const NAME_TYPE: u32 = 0x42_0054;
    pub const NAME_VALUE: u32 = 0x42_0055;
    pub const OBJECT_GROUP: u32 = 0x42_0056;
    pub const OBJECT_TYPE: u32 = 0x42_0057;
    pub const OPAQUE_DATA_TYPE: u32 = 0x42_0059;
    pub const OPAQUE_DATA_VALUE: u32 = 0x42_005a;
    pub const OPAQUE_OBJECT: u32 = 0x42_005b;
    pub const OPERATION: u32 = 0x42_005c;
    pub const PROTOCOL_VERSION: u32 = 0x42_0069;
    pub const PROTOCOL_VERSION_MAJOR: u32 = 0x42_006a;
    pub const PROTOCOL_VERSION_MINOR: u32 = 0x42_006b;
    pub const REQUEST_HEADER: u32 = 0x42_0077;
    pub const REQUEST_MESSAGE: u32 = 0x42_0078;
    pub const REQUEST_PAYLOAD: u32 = 0x42_0079;
    pub const RESPONSE_MESSAGE: u32 = 0x42_007b;
    pub const RESPONSE_PAYLOAD: u32 = 0x42_007c;
    pub const RESULT_MESSAGE: u32 = 0x42_007d;
    pub const RESULT_REASON: u32 = 0x42_007e;
    pub const RESULT_STATUS: u32 = 0x42_007f;
    pub const REVOCATION_REASON: u32 = 0x42_0081;
    pub const REVOCATION_REASON_CODE: u32 = 0x42_0082;
    pub const SECRET_DATA: u32 = 0x42_0085;
    pub const SECRET_DATA_TYPE: u32 = 0x42_0086;
    pub const STATE: u32 = 0x42_008d;
    pub const SYMMETRIC_KEY: u32 = 0x42_008f;
    pub const TEMPLATE_ATTRIBUTE: u32 = 0x42_0091;
    pub const UNIQUE_BATCH_ITEM_ID: u32 = 0x42_0093;
    pub const UNIQUE_IDENTIFIER: u32 = 0x42_0094;
    pub const ATTRIBUTES: u32 = 0x42_0125;
    pub const ATTRIBUTE_REFERENCE: u32 = 0x42_013b;
    pub const CURRENT_ATTRIBUTE: u32 = 0x42_013c;
    pub const NEW_ATTRIBUTE: u32 = 0x42_013d;
}

/// The numbers of lists that are used, by what they mean.
mod word {
    pub const CONTINUE: u32 = 1;
    pub const UNINTERPRETED_TEXT: u32 = 1;
    pub const PASSWORD: u32 = 1;
    pub const FORMAT_OPAQUE: u32 = 2;
    /// The standard has no type of opaque data, only room for everyone's own.
    pub const OPAQUE_DATA_OWN: u32 = 0x8000_0000;
    pub const SUPERSEDED: u32 = 5;
    pub const SUCCESS: u32 = 0;
    /// A passphrase is what a key is derived from.
    pub const DERIVE_KEY: i32 = 0x200;
}

/// What kind of object something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ObjectType {
    SymmetricKey,
    SecretData,
    Opaque,
    /// Certificates, private keys and what else is of no use here.
    Other,
}

impl ObjectType {
    fn from_number(number: u32) -> Self {
        match number {
            2 => Self::SymmetricKey,
            7 => Self::SecretData,
            8 => Self::Opaque,
            _ => Self::Other,
        }
    }

    fn number(self) -> u32 {
        match self {
            Self::SymmetricKey => 2,
            Self::SecretData => 7,
            Self::Opaque => 8,
            Self::Other => 0,
        }
    }
}

/// An attribute that is looked for, set or changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attribute<'a> {
    Name(&'a str),
    /// Namespace and data.
    Application(&'a str, &'a str),
    Group(&'a str),
    UsageMask(i32),
}

impl Attribute<'_> {
    /// Its name in 1.x and its tag in 2.0.
    fn names(&self) -> (&'static str, u32) {
        match self {
            Self::Name(_) => ("Name", tag::NAME),
            Self::Application(..) => {
                ("Application Specific Information", tag::APPLICATION_SPECIFIC_INFORMATION)
            }
            Self::Group(_) => ("Object Group", tag::OBJECT_GROUP),
            Self::UsageMask(_) => ("Cryptographic Usage Mask", tag::CRYPTOGRAPHIC_USAGE_MASK),
        }
    }

    fn write_value(&self, w: &mut Writer, tag: u32) {
        match *self {
            Self::Name(name) => w.structure(tag, |w| {
                w.text(tag::NAME_VALUE, name);
                w.enumeration(tag::NAME_TYPE, word::UNINTERPRETED_TEXT);
            }),
            Self::Application(namespace, data) => w.structure(tag, |w| {
                w.text(tag::APPLICATION_NAMESPACE, namespace);
                w.text(tag::APPLICATION_DATA, data);
            }),
            Self::Group(group) => w.text(tag, group),
            Self::UsageMask(mask) => w.integer(tag, mask),
        }
    }

    fn write(&self, w: &mut Writer, version: Version, index: i32) {
        let (name, tag) = self.names();
        if version >= Version::TWO {
            return self.write_value(w, tag);
        }
        w.structure(tag::ATTRIBUTE, |w| {
            w.text(tag::ATTRIBUTE_NAME, name);
            if index > 0 {
                w.integer(tag::ATTRIBUTE_INDEX, index);
            }
            self.write_value(w, tag::ATTRIBUTE_VALUE);
        });
    }
}

/// A list of attributes; the instances of one follow each other.
fn write_attributes(w: &mut Writer, version: Version, attributes: &[Attribute<'_>]) {
    for (n, attribute) in attributes.iter().enumerate() {
        let same = attributes[..n].iter().filter(|other| other.names() == attribute.names()).count();
        attribute.write(w, version, same as i32);
    }
}

/// One thing that a server is asked for.
#[derive(Clone, Copy)]
pub(super) enum Request<'a> {
    /// Which versions it speaks.
    DiscoverVersions,
    /// The identifiers of the objects with all these attributes.
    Locate(&'a [Attribute<'a>]),
    /// The value of an object.
    Get(&'a str),
    /// What is known of an object.
    GetAttributes(&'a str),
    /// A new object: with a value, or a place for one.
    Register(&'a [Attribute<'a>], Option<&'a SecretValue>),
    /// Another value for one instance of an attribute: the old one, its index, the new one.
    ModifyAttribute(&'a str, Attribute<'a>, i32, Attribute<'a>),
    /// The end of an active object's use, which makes it possible to destroy it.
    Revoke(&'a str),
    /// The end of an object.
    Destroy(&'a str),
}

impl Request<'_> {
    fn operation(&self) -> u32 {
        match self {
            Self::Register(..) => 0x03,
            Self::Locate(_) => 0x08,
            Self::Get(_) => 0x0a,
            Self::GetAttributes(_) => 0x0b,
            Self::ModifyAttribute(..) => 0x0e,
            Self::Revoke(_) => 0x13,
            Self::Destroy(_) => 0x14,
            Self::DiscoverVersions => 0x1e,
        }
    }

    fn write(&self, w: &mut Writer, version: Version) {
        let two = version >= Version::TWO;
        match *self {
            Self::DiscoverVersions => {}
            Self::Locate(attributes) if two => {
                w.structure(tag::ATTRIBUTES, |w| write_attributes(w, version, attributes));
            }
            Self::Locate(attributes) => write_attributes(w, version, attributes),
            Self::Get(id) | Self::Destroy(id) => w.text(tag::UNIQUE_IDENTIFIER, id),
            Self::GetAttributes(id) => {
                w.text(tag::UNIQUE_IDENTIFIER, id);
                for (name, tag) in DESCRIBED {
                    if two {
                        w.enumeration(tag::ATTRIBUTE_REFERENCE, *tag);
                    } else {
                        w.text(tag::ATTRIBUTE_NAME, name);
                    }
                }
            }
            Self::Register(attributes, value) => {
                let kind = if value.is_some() { ObjectType::SecretData } else { ObjectType::Opaque };
                w.enumeration(tag::OBJECT_TYPE, kind.number());
                let mask = [Attribute::UsageMask(word::DERIVE_KEY)];
                w.structure(if two { tag::ATTRIBUTES } else { tag::TEMPLATE_ATTRIBUTE }, |w| {
                    write_attributes(w, version, attributes);
                    if value.is_some() {
                        write_attributes(w, version, &mask);
                    }
                });
                match value {
                    Some(value) => write_secret_data(w, value),
                    None => w.structure(tag::OPAQUE_OBJECT, |w| {
                        w.enumeration(tag::OPAQUE_DATA_TYPE, word::OPAQUE_DATA_OWN);
                        w.bytes(tag::OPAQUE_DATA_VALUE, b"no value");
                    }),
                }
            }
            Self::ModifyAttribute(id, old, index, new) => {
                w.text(tag::UNIQUE_IDENTIFIER, id);
                if two {
                    w.structure(tag::CURRENT_ATTRIBUTE, |w| old.write(w, version, index));
                    w.structure(tag::NEW_ATTRIBUTE, |w| new.write(w, version, index));
                } else {
                    new.write(w, version, index);
                }
            }
            Self::Revoke(id) => {
                w.text(tag::UNIQUE_IDENTIFIER, id);
                w.structure(tag::REVOCATION_REASON, |w| {
                    w.enumeration(tag::REVOCATION_REASON_CODE, word::SUPERSEDED);
                });
            }
        }
    }
}

fn write_secret_data(w: &mut Writer, value: &SecretValue) {
    w.structure(tag::SECRET_DATA, |w| {
        w.enumeration(tag::SECRET_DATA_TYPE, word::PASSWORD);
        w.structure(tag::KEY_BLOCK, |w| {
            w.enumeration(tag::KEY_FORMAT_TYPE, word::FORMAT_OPAQUE);
            w.structure(tag::KEY_VALUE, |w| w.bytes(tag::KEY_MATERIAL, value.expose()));
        });
    });
}

/// The attributes that are asked of an object.
const DESCRIBED: &[(&str, u32)] = &[
    ("Object Type", tag::OBJECT_TYPE),
    ("State", tag::STATE),
    ("Initial Date", tag::INITIAL_DATE),
    ("Name", tag::NAME),
    ("Application Specific Information", tag::APPLICATION_SPECIFIC_INFORMATION),
];

/// One message with several requests, which the server answers in order, each for itself.
pub(super) fn encode(version: Version, requests: &[Request<'_>]) -> Zeroizing<Vec<u8>> {
    let value = requests.iter().any(|request| matches!(request, Request::Register(_, Some(_))));
    let mut w = Writer::with_capacity(if value { MAX_VALUE_LEN + (64 << 10) } else { 1024 });
    w.structure(tag::REQUEST_MESSAGE, |w| {
        w.structure(tag::REQUEST_HEADER, |w| {
            w.structure(tag::PROTOCOL_VERSION, |w| {
                w.integer(tag::PROTOCOL_VERSION_MAJOR, version.0);
                w.integer(tag::PROTOCOL_VERSION_MINOR, version.1);
            });
            w.integer(tag::MAXIMUM_RESPONSE_SIZE, MAX_REPLY_LEN as i32);
            w.enumeration(tag::BATCH_ERROR_CONTINUATION_OPTION, word::CONTINUE);
            w.boolean(tag::BATCH_ORDER_OPTION, true);
            w.integer(tag::BATCH_COUNT, requests.len() as i32);
        });
        for (n, request) in (0u32..).zip(requests) {
            w.structure(tag::BATCH_ITEM, |w| {
                w.enumeration(tag::OPERATION, request.operation());
                if requests.len() > 1 {
                    w.bytes(tag::UNIQUE_BATCH_ITEM_ID, &n.to_be_bytes());
                }
                w.structure(tag::REQUEST_PAYLOAD, |w| request.write(w, version));
            });
        }
    });
    w.into_bytes()
}

/// That a server does not do what it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Its number for why.
    pub reason: u32,
    /// Its words for why.
    pub message: String,
}

/// An answer to one request: the payload, or a refusal.
pub(super) type Answer<'a, 'b> = Result<&'b Item<'a>, Refusal>;

/// The answers of a reply, in the order of the requests; or in what way it makes no sense.
pub(super) fn answers<'a, 'b>(
    reply: &'b Item<'a>,
    requests: &[Request<'_>],
) -> Result<Vec<Answer<'a, 'b>>, &'static str> {
    if reply.tag != tag::RESPONSE_MESSAGE {
        return Err("it is no response message");
    }
    let items: Vec<_> = reply.all(tag::BATCH_ITEM).collect();
    // What is wrong with a message as a whole is said in one item that belongs to no operation.
    if let [only] = &*items
        && only.get(tag::OPERATION).is_none()
    {
        let refusal = answer(only)?.err().ok_or("it has a result of no operation")?;
        return Ok(requests.iter().map(|_| Err(refusal.clone())).collect());
    }
    if items.len() != requests.len() {
        return Err("it has not as many results as there were requests");
    }
    let mut answers = Vec::with_capacity(items.len());
    for ((n, item), request) in (0u32..).zip(items).zip(requests) {
        if item.get(tag::OPERATION).and_then(Item::enumeration) != Some(request.operation()) {
            return Err("it is about another operation than the request");
        }
        let id = item.get(tag::UNIQUE_BATCH_ITEM_ID).and_then(Item::bytes);
        if id.is_some_and(|id| id != n.to_be_bytes()) {
            return Err("its results are in another order than the requests");
        }
        answers.push(answer(item)?);
    }
    Ok(answers)
}

fn answer<'a, 'b>(item: &'b Item<'a>) -> Result<Answer<'a, 'b>, &'static str> {
    match item.get(tag::RESULT_STATUS).and_then(Item::enumeration) {
        Some(word::SUCCESS) => item.get(tag::RESPONSE_PAYLOAD).map(Ok).ok_or("a result has no payload"),
        Some(_) => Ok(Err(Refusal {
            reason: item.get(tag::RESULT_REASON).and_then(Item::enumeration).unwrap_or(0),
            message: item.get(tag::RESULT_MESSAGE).and_then(Item::text).map(one_line).unwrap_or_default(),
        })),
        None => Err("a result does not say whether it is one"),
    }
}

/// A server's words, fit for a message.
fn one_line(text: &str) -> String {
    const LONGEST: usize = 200;
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(LONGEST)
        .collect::<String>()
        .trim()
        .to_owned()
}

/// The versions of a DiscoverVersions payload.
pub(super) fn versions(payload: &Item<'_>) -> Vec<Version> {
    let number = |version: &Item<'_>, tag| version.get(tag).and_then(Item::integer);
    payload
        .all(tag::PROTOCOL_VERSION)
        .filter_map(|version| {
            Some(Version(
                number(version, tag::PROTOCOL_VERSION_MAJOR)?,
                number(version, tag::PROTOCOL_VERSION_MINOR)?,
            ))
        })
        .collect()
}

/// The identifiers in a payload.
pub(super) fn identifiers<'a>(payload: &Item<'a>) -> impl Iterator<Item = &'a str> {
    payload.all(tag::UNIQUE_IDENTIFIER).filter_map(Item::text)
}

/// What is known of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Object {
    pub id: String,
    pub kind: ObjectType,
    state: u32,
    pub created: i64,
    /// Each with its index.
    pub names: Vec<(i32, String)>,
    /// Index, namespace and data of each.
    pub applications: Vec<(i32, String, String)>,
}

impl Object {
    /// Of a GetAttributes payload.
    pub(super) fn of(id: String, payload: &Item<'_>) -> Self {
        let mut object = Self {
            id,
            kind: ObjectType::Other,
            state: 0,
            created: 0,
            names: Vec::new(),
            applications: Vec::new(),
        };
        for attribute in payload.all(tag::ATTRIBUTE) {
            let name = attribute.get(tag::ATTRIBUTE_NAME).and_then(Item::text);
            let known = DESCRIBED.iter().find(|(known, _)| Some(*known) == name);
            if let (Some((_, tag)), Some(value)) = (known, attribute.get(tag::ATTRIBUTE_VALUE)) {
                let index = attribute.get(tag::ATTRIBUTE_INDEX).and_then(Item::integer);
                object.add(*tag, value, index.unwrap_or(0));
            }
        }
        for value in payload.all(tag::ATTRIBUTES).flat_map(Item::items) {
            object.add(value.tag, value, 0);
        }
        object
    }

    fn add(&mut self, tag: u32, value: &Item<'_>, index: i32) {
        let text = |tag| value.get(tag).and_then(Item::text).unwrap_or_default().to_owned();
        match tag {
            tag::OBJECT_TYPE => self.kind = ObjectType::from_number(value.enumeration().unwrap_or(0)),
            tag::STATE => self.state = value.enumeration().unwrap_or(0),
            tag::INITIAL_DATE => self.created = value.date_time().unwrap_or(0),
            tag::NAME => self.names.push((index, text(tag::NAME_VALUE))),
            tag::APPLICATION_SPECIFIC_INFORMATION => {
                self.applications.push((
                    index,
                    text(tag::APPLICATION_NAMESPACE),
                    text(tag::APPLICATION_DATA),
                ));
            }
            _ => {}
        }
    }

    /// Whether it must be revoked before it can be destroyed.
    pub(super) fn is_active(&self) -> bool {
        self.state == 2
    }

    /// Whether only its attributes are left.
    pub(super) fn is_destroyed(&self) -> bool {
        matches!(self.state, 5 | 6)
    }
}

/// The bytes of the key or the secret in a Get payload; or why there are none.
pub(super) fn key_material<'a>(payload: &Item<'a>) -> Result<&'a [u8], &'static str> {
    let object = payload
        .get(tag::SECRET_DATA)
        .or_else(|| payload.get(tag::SYMMETRIC_KEY))
        .ok_or("it is neither secret data nor a symmetric key")?;
    let block = object.get(tag::KEY_BLOCK).ok_or("it has no key block")?;
    if block.get(tag::KEY_WRAPPING_DATA).is_some() {
        return Err("it is wrapped with another key");
    }
    let material = block
        .get(tag::KEY_VALUE)
        .and_then(|value| value.get(tag::KEY_MATERIAL))
        .ok_or("it has no key material")?;
    match &material.value {
        Value::Bytes(bytes) => Ok(bytes),
        // A "transparent" symmetric key.
        Value::Structure(_) => {
            material.get(tag::KEY).and_then(Item::bytes).ok_or("its key material is of an unknown form")
        }
        _ => Err("its key material is of an unknown form"),
    }
}
