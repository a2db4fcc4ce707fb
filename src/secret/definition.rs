//! What is known of a secret besides its value: libvirt's secret XML.

use std::fmt;

use uuid::Uuid;

use crate::keywords;
use crate::xml::{self, Diagnostics, Element};

keywords! {
    /// What a secret is for.
    pub enum UsageKind {
        /// A volume's passphrase.
        Volume = "volume",
        /// A cephx key.
        Ceph = "ceph",
        /// CHAP for iSCSI; http, ftp and ssh passwords as well.
        Iscsi = "iscsi",
        /// The passphrase of a TLS private key.
        Tls = "tls",
        /// The key of a virtual TPM's state.
        Vtpm = "vtpm",
    }
}

impl UsageKind {
    /// The element of `<usage>` that holds the id.
    pub fn id_element(self) -> &'static str {
        match self {
            Self::Volume => "volume",
            Self::Iscsi => "target",
            Self::Ceph | Self::Tls | Self::Vtpm => "name",
        }
    }
}

/// What a secret is for, and the id by which it can be looked up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Usage {
    /// What for.
    pub kind: UsageKind,
    /// The volume's path, the Ceph name, the iSCSI target, ...
    pub id: String,
}

impl Usage {
    fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let kind: UsageKind = element.require_keyword("type", diagnostics)?;
        let Some(id) = element.child_text(kind.id_element()) else {
            diagnostics.error(
                element.span,
                format!("a usage of type '{}' needs <{}>", kind.as_str(), kind.id_element()),
            );
            return None;
        };
        Some(Self { kind, id: id.to_owned() })
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.id)
    }
}

/// A secret without its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretDefinition {
    /// Its name.
    pub uuid: Uuid,
    /// Lives in memory only, never on disk.
    pub ephemeral: bool,
    /// Its value is used, never shown.
    pub private: bool,
    /// For people.
    pub description: Option<String>,
    /// What for. A secret without a usage is found by its UUID only.
    pub usage: Option<Usage>,
    /// Where the value is, if not beside the definition: the URI of an object in some keystore. libvirt's secret XML
    /// knows no such thing; here it is `<value uri='...'/>`.
    pub value_uri: Option<String>,
    /// The public keys (age's) of those who may read the value besides whoever reads all of its store. libvirt's secret
    /// XML knows no such thing; here each is a `<recipient>`.
    pub recipients: Vec<String>,
}

/// Why a definition may not take another one's place.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DefinitionError {
    /// A new secret was to be made.
    #[error("the secret {0} is defined already")]
    Exists(Uuid),
    /// It could not be read back as it was written.
    #[error("the {0} begins or ends with white space, is empty, or has characters that XML does not take")]
    NotText(&'static str),
    /// Same UUID, other usage.
    #[error("the secret {0} is defined already, with another usage")]
    OtherUsage(Uuid),
    /// Same usage, other UUID.
    #[error("the usage is taken already, by the secret {0}")]
    UsageTaken(Uuid),
    /// What was private stays private.
    #[error("the secret {0} is private and cannot be made public again")]
    NoLongerPrivate(Uuid),
    /// An ephemeral secret cannot become a persistent one under the same UUID, nor the reverse.
    #[error("the secret {0} cannot change between ephemeral and persistent")]
    EphemeralChanged(Uuid),
    /// Not shown, as it may be the private half.
    #[error("the recipient number {0} is not an age public key (age1...)")]
    NotAPublicKey(usize),
}

/// The namespace of the UUIDs of secrets that have none of their own (RFC 9562, version 5).
const BY_USAGE: Uuid = Uuid::from_u128(0x9e0f_6a6b_3c1d_4a55_8f0e_57c2_61d7_b0c4);

impl SecretDefinition {
    /// A secret of which only the UUID is known.
    pub fn of_uuid(uuid: Uuid) -> Self {
        let (description, usage, value_uri, recipients) = (None, None, None, Vec::new());
        Self { uuid, ephemeral: false, private: false, description, usage, value_uri, recipients }
    }

    /// A secret of which only the usage is known. Its UUID is made of that, and so always the same.
    pub fn of_usage(usage: Usage) -> Self {
        let uuid = Uuid::new_v5(&BY_USAGE, usage.to_string().as_bytes());
        Self { usage: Some(usage), ..Self::of_uuid(uuid) }
    }

    /// Reads a secret XML document. A definition without a UUID gets a random one.
    pub fn parse(source: &str, diagnostics: &mut Diagnostics) -> Option<Self> {
        let root = xml::parse(source, diagnostics)?;
        let found = Self::from_xml(&root, diagnostics);
        root.report_unread(diagnostics);
        diagnostics.refuse_unsupported();
        found.filter(|_| !diagnostics.has_errors())
    }

    fn from_xml(root: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        if root.name != "secret" {
            diagnostics.error(root.span, format!("this is <{}>, not <secret>", root.name));
            return None;
        }
        // Everything is read before anything is given up, so that all mistakes are said at once.
        let uuid = match root.only_child("uuid", diagnostics) {
            None => Some(Uuid::new_v4()),
            Some(e) => {
                let uuid = Uuid::try_parse(e.text()).ok();
                if uuid.is_none() {
                    diagnostics.error(e.text_place(), format!("'{}' is not a UUID", e.text()));
                }
                uuid
            }
        };
        let usage = match root.only_child("usage", diagnostics) {
            Some(e) if e.get("type") != Some("none") => Some(Usage::from_xml(e, diagnostics)),
            _ => None,
        };
        let ephemeral = root.yes_no("ephemeral", diagnostics).unwrap_or(false);
        let private = root.yes_no("private", diagnostics).unwrap_or(false);
        let description = root.child_text("description").map(str::to_owned);
        let value_uri =
            root.only_child("value", diagnostics).map(|e| e.require("uri", diagnostics).map(str::to_owned));
        if let (true, Some(value)) = (ephemeral, root.child("value")) {
            diagnostics.error(value.span, "the value of an ephemeral secret is in memory, nowhere else");
        }
        let recipients: Vec<_> = root.children("recipient").map(|e| e.text().to_owned()).collect();
        if let Some(recipient) =
            root.children("recipient").next().filter(|_| ephemeral || value_uri.is_some())
        {
            diagnostics.error(
                recipient.span,
                "only a value that is kept beside its definition is encrypted to keys",
            );
        }
        let (Some(usage), Some(value_uri)) = (optional(usage), optional(value_uri)) else { return None };
        Some(Self { uuid: uuid?, ephemeral, private, description, usage, value_uri, recipients })
    }

    /// The definition as XML.
    pub fn to_xml(&self) -> Element {
        let yes_no = |b| if b { "yes" } else { "no" };
        let mut root = Element::new("secret")
            .with("ephemeral", yes_no(self.ephemeral))
            .with("private", yes_no(self.private))
            .with_child(Element::new("uuid").with_text(self.uuid.to_string()));
        if let Some(description) = &self.description {
            root = root.with_child(Element::new("description").with_text(description));
        }
        if let Some(Usage { kind, id }) = &self.usage {
            root = root.with_child(
                Element::new("usage")
                    .with("type", kind.as_str())
                    .with_child(Element::new(kind.id_element()).with_text(id)),
            );
        }
        if let Some(uri) = &self.value_uri {
            root = root.with_child(Element::new("value").with("uri", uri));
        }
        for key in &self.recipients {
            root = root.with_child(Element::new("recipient").with_text(key));
        }
        root
    }

    /// Whether its texts come back from XML as they are. Those of a definition that was read do; others come from people
    /// and programs.
    pub fn check_text(&self) -> Result<(), DefinitionError> {
        let is_text = |text: &str| {
            let line = |c: char| c.is_control() && c != '\n' && c != '\t';
            !text.is_empty() && text.trim() == text && !text.contains(line)
        };
        if self.description.as_deref().is_some_and(|d| !is_text(d)) {
            return Err(DefinitionError::NotText("description"));
        }
        if self.usage.as_ref().is_some_and(|u| !is_text(&u.id) || u.id.contains(char::is_control)) {
            return Err(DefinitionError::NotText("usage"));
        }
        if self.value_uri.as_ref().is_some_and(|uri| !is_text(uri) || uri.contains(char::is_control)) {
            return Err(DefinitionError::NotText("place of the value"));
        }
        if self.recipients.iter().any(|key| !is_text(key) || key.contains(char::is_control)) {
            return Err(DefinitionError::NotText("recipient"));
        }
        Ok(())
    }

    /// Whether this definition may be added to those that are there, or replace the one of the same UUID.
    pub fn check_against<'a>(
        &self,
        existing: impl IntoIterator<Item = &'a SecretDefinition>,
    ) -> Result<(), DefinitionError> {
        for other in existing {
            if other.uuid == self.uuid {
                if other.usage != self.usage {
                    return Err(DefinitionError::OtherUsage(other.uuid));
                }
                if other.private && !self.private {
                    return Err(DefinitionError::NoLongerPrivate(other.uuid));
                }
                if other.ephemeral != self.ephemeral {
                    return Err(DefinitionError::EphemeralChanged(other.uuid));
                }
            } else if self.usage.is_some() && other.usage == self.usage {
                return Err(DefinitionError::UsageTaken(other.uuid));
            }
        }
        Ok(())
    }
}

/// A part that may be absent, but not wrong: `None` if it is wrong.
fn optional<T>(part: Option<Option<T>>) -> Option<Option<T>> {
    match part {
        Some(None) => None,
        part => Some(part.flatten()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(source: &str) -> Result<SecretDefinition, String> {
        let mut diagnostics = Diagnostics::new();
        SecretDefinition::parse(source, &mut diagnostics).ok_or_else(|| diagnostics.render("s.xml", source))
    }

    const FULL: &str = "<secret ephemeral='no' private='yes'>
  <uuid>c5d7b1b4-1f5e-4f0e-9d2a-2f6c3a1b0e11</uuid>
  <description>web1's root disk</description>
  <usage type='volume'>
    <volume>/images/web1.qcow2</volume>
  </usage>
  <value uri='vault+https://vault.example/secret/web1#passphrase'/>
</secret>
";

    #[test]
    fn read_and_written_it_is_the_same() {
        assert_eq!(parse(FULL).unwrap().to_xml().to_string(), FULL);
    }

    #[test]
    fn recipients_come_back_and_belong_to_values_that_are_here() {
        let keys = "<recipient>age1a</recipient><recipient>age1b</recipient>";
        let secret = parse(&format!("<secret>{keys}</secret>")).unwrap();
        assert_eq!(secret.recipients, ["age1a", "age1b"]);
        assert_eq!(parse(&secret.to_xml().to_string()), Ok(secret));
        for elsewhere in [
            format!("<secret ephemeral='yes'>{keys}</secret>"),
            format!("<secret><value uri='a:b'/>{keys}</secret>"),
        ] {
            assert!(parse(&elsewhere).unwrap_err().contains("beside its definition"), "{elsewhere}");
        }
    }

    #[test]
    fn each_usage_has_its_element() {
        for (kind, element) in
            [("volume", "volume"), ("ceph", "name"), ("iscsi", "target"), ("tls", "name"), ("vtpm", "name")]
        {
            let source = format!("<secret><usage type='{kind}'><{element}>id</{element}></usage></secret>");
            let usage = parse(&source).unwrap().usage.unwrap();
            assert_eq!((usage.kind.as_str(), usage.id.as_str()), (kind, "id"));
        }
    }

    #[test]
    fn mistakes_are_named_at_their_line() {
        let e = parse("<secret>\n<uuid>x</uuid></secret>").unwrap_err();
        assert!(e.contains("s.xml:2:7") && e.contains("not a UUID"), "{e}");
        assert!(parse("<secret><usage type='volume'/></secret>").unwrap_err().contains("needs <volume>"));
        assert!(parse("<secret><usage type='disk'/></secret>").unwrap_err().contains("volume, ceph, iscsi"));
        assert!(parse("<secret privat='yes'/>").unwrap_err().contains("'privat'"));
        assert!(parse("<domain/>").unwrap_err().contains("not <secret>"));
    }

    #[test]
    fn texts_that_would_change_in_xml_are_refused() {
        let with = |id: &str, description: &str| SecretDefinition {
            usage: Some(Usage { kind: UsageKind::Tls, id: id.to_owned() }),
            description: Some(description.to_owned()),
            ..parse(FULL).unwrap()
        };
        let good = with("ä <'&\"> b", "two\nlines");
        assert_eq!(good.check_text(), Ok(()));
        assert_eq!(parse(&good.to_xml().to_string()), Ok(good));
        for id in ["", " a", "a\n", "a\nb", "a\0b", "\u{1b}[31m", "a\u{9b}"] {
            assert_eq!(with(id, "x").check_text(), Err(DefinitionError::NotText("usage")), "{id:?}");
        }
        assert_eq!(with("a", "\u{1b}]0;x").check_text(), Err(DefinitionError::NotText("description")));
    }

    #[test]
    fn redefinition_follows_libvirt() {
        let old = parse(FULL).unwrap();
        assert_eq!(old.check_against([&old]), Ok(()));
        let public = SecretDefinition { private: false, ..old.clone() };
        assert_eq!(public.check_against([&old]), Err(DefinitionError::NoLongerPrivate(old.uuid)));
        assert_eq!(old.check_against([&public]), Ok(()));
        let other = SecretDefinition { usage: None, ..old.clone() };
        assert_eq!(other.check_against([&old]), Err(DefinitionError::OtherUsage(old.uuid)));
        let twin = SecretDefinition { uuid: Uuid::nil(), ..old.clone() };
        assert_eq!(twin.check_against([&old]), Err(DefinitionError::UsageTaken(old.uuid)));
    }
}
