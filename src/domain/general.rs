//! What a guest is called and how it is run.

use uuid::Uuid;

use crate::keywords;
use crate::xml::{Diagnostics, Element};

/// A name becomes a directory of the host, and a part of socket paths there.
const MAX_NAME_LEN: usize = 64;

keywords! {
    /// What executes the guest's instructions.
    pub enum DomainType {
        /// Linux's KVM.
        Kvm = "kvm",
        /// QEMU itself (TCG).
        Qemu = "qemu",
    }
}

/// The name, UUID and descriptions of a guest.
#[derive(Debug, Clone, Default)]
pub struct General {
    /// `type=` of `<domain>`.
    pub kind: Option<DomainType>,
    /// `<name>`.
    pub name: String,
    /// `<uuid>`; a random one if there is none.
    pub uuid: Uuid,
    /// `<title>`.
    pub title: Option<String>,
    /// `<description>`.
    pub description: Option<String>,
}

impl General {
    /// Reads what stands directly in `<domain>`.
    pub fn from_xml(root: &Element, diagnostics: &mut Diagnostics) -> Self {
        // The id of a running guest, in what `virsh dumpxml` prints.
        root.attribute("id");
        if let Some(metadata) = root.only_child("metadata", diagnostics) {
            // It belongs to the programs that wrote it.
            metadata.mark_read();
        }
        Self {
            kind: root.require_keyword("type", diagnostics),
            name: name(root, diagnostics).unwrap_or_default(),
            uuid: uuid(root, diagnostics).unwrap_or_else(Uuid::new_v4),
            title: title(root, diagnostics),
            description: root.only_child("description", diagnostics).map(|d| d.text().to_owned()),
        }
    }
}

fn name(root: &Element, diagnostics: &mut Diagnostics) -> Option<String> {
    let Some(element) = root.only_child("name", diagnostics) else {
        diagnostics.error(root.span, "the guest has no <name>");
        return None;
    };
    let (name, place) = (element.text(), element.text_place());
    if name.is_empty() {
        diagnostics.error(place, "the guest's <name> is empty");
    } else if name.contains('/') || name.chars().any(char::is_control) || name.starts_with('.') {
        diagnostics.error(place, format!("'{}' cannot be the name of a guest", name.escape_debug())).hint(
            "a name is also a directory's: it has no '/', no control character and no '.' at its start",
        );
    } else if name.len() > MAX_NAME_LEN {
        diagnostics.error(place, format!("the guest's name is longer than {MAX_NAME_LEN} bytes"));
    } else {
        return Some(name.to_owned());
    }
    None
}

fn uuid(root: &Element, diagnostics: &mut Diagnostics) -> Option<Uuid> {
    let element = root.only_child("uuid", diagnostics)?;
    let uuid = Uuid::try_parse(element.text()).ok();
    if uuid.is_none() {
        diagnostics.error(element.text_place(), format!("'{}' is not a UUID", element.text()));
    }
    uuid
}

/// `<genid>`: changes when the guest is a copy or was set back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GenerationId {
    /// The one that the XML names.
    Given(Uuid),
    /// Another one at each start.
    New,
}

/// Reads `<genid>`.
pub(super) fn genid(root: &Element, diagnostics: &mut Diagnostics) -> Option<GenerationId> {
    let element = root.only_child("genid", diagnostics)?;
    if element.text().is_empty() {
        return Some(GenerationId::New);
    }
    let genid = Uuid::try_parse(element.text()).ok();
    if genid.is_none() {
        diagnostics.error(element.text_place(), format!("'{}' is not a UUID", element.text()));
    }
    genid.map(GenerationId::Given)
}

fn title(root: &Element, diagnostics: &mut Diagnostics) -> Option<String> {
    let element = root.only_child("title", diagnostics)?;
    if element.text().contains('\n') {
        diagnostics.error(element.text_place(), "a <title> is one line");
    }
    Some(element.text().to_owned())
}
