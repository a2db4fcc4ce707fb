//! How XML names a secret.

use std::fmt;

use uuid::Uuid;

use crate::xml::{Diagnostics, Element, Span};

use super::UsageKind;

/// Exactly one of `uuid=` and `usage=`, as libvirt has it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SecretLookup {
    /// By its UUID.
    Uuid(Uuid),
    /// By the id of its usage; the kind of usage is that of the place the lookup stands in.
    Usage(String),
}

/// A place in the XML that uses a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretRef {
    /// Which one.
    pub lookup: SecretLookup,
    /// The usage that the secret must have been defined with to serve here.
    pub kind: UsageKind,
    /// Whether QEMU takes it only as UTF-8 text without NUL: all but what librbd gets.
    pub text: bool,
    /// Where the XML says so.
    pub span: Span,
}

impl SecretLookup {
    /// What people call a secret: its UUID, or the id of its usage.
    pub fn named(name: &str) -> Self {
        Uuid::try_parse(name).map_or_else(|_| Self::Usage(name.to_owned()), Self::Uuid)
    }

    /// Reads `uuid=` or `usage=` of an element.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        match (element.attribute("uuid"), element.attribute("usage")) {
            (Some(uuid), None) => match Uuid::try_parse(&uuid.value) {
                Ok(uuid) => Some(Self::Uuid(uuid)),
                Err(_) => {
                    diagnostics.error(uuid.span, format!("'{}' is not a UUID", uuid.value));
                    None
                }
            },
            (None, Some(usage)) if usage.value.is_empty() => {
                diagnostics.error(usage.name_span, "the usage is empty");
                None
            }
            (None, Some(usage)) => Some(Self::Usage(usage.value.clone())),
            (Some(_), Some(usage)) => {
                diagnostics
                    .error(usage.name_span, "a secret is named by its uuid or by its usage, not by both");
                None
            }
            (None, None) => {
                diagnostics
                    .error(element.span, format!("<{}> names no secret", element.name))
                    .hint("name it with uuid='...' or usage='...'");
                None
            }
        }
    }
}

impl fmt::Display for SecretLookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(uuid) => write!(f, "UUID {uuid}"),
            Self::Usage(usage) => write!(f, "usage '{usage}'"),
        }
    }
}
