//! `<qemu:commandline>`: arguments and environment that go to QEMU as they are; and what QEMU does with what it will drop.
//!
//! Arguments are visible to every user of the host and recorded by the kernel's audit: no place for secrets, which
//! have their own way (`<secret>`).

use crate::keywords;
use crate::xml::{Diagnostics, Element, Keyword};

/// The namespace of QEMU's own elements in libvirt's XML.
const NAMESPACE: &str = "http://libvirt.org/schemas/domain/qemu/1.0";

/// What is passed through.
#[derive(Debug, Clone, Default)]
pub struct PassedThrough {
    /// `<qemu:arg>`.
    pub arguments: Vec<String>,
    /// `<qemu:env>`; without a value it is set to nothing.
    pub environment: Vec<(String, String)>,
}

impl PassedThrough {
    /// Reads `<qemu:commandline>`, whatever its prefix.
    pub fn from_xml(root: &Element, diagnostics: &mut Diagnostics) -> Self {
        let mut this = Self::default();
        let Some(name) = qualified(root, "commandline") else { return this };
        let Some(commandline) = root.only_child(&name, diagnostics) else { return this };
        for child in &commandline.children {
            if !in_namespace(child, &[commandline, root]) {
                continue;
            }
            match local(&child.name) {
                "arg" => {
                    mark(commandline, child);
                    this.arguments.extend(child.require("value", diagnostics).map(str::to_owned));
                }
                "env" => {
                    mark(commandline, child);
                    this.environment.extend(variable(child, diagnostics));
                }
                _ => {}
            }
        }
        this
    }
}

fn mark(parent: &Element, child: &Element) {
    // Reading through an accessor is what marks: all children of that name are read alike.
    parent.children(&child.name).for_each(drop);
}

fn variable(element: &Element, diagnostics: &mut Diagnostics) -> Option<(String, String)> {
    let name = element.require("name", diagnostics)?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if !name.chars().all(is_name) || name.starts_with(|c: char| c.is_ascii_digit()) {
        diagnostics.error(element.span, format!("'{name}' is not the name of an environment variable"));
    } else if name.starts_with("LD_") {
        diagnostics.error(element.span, format!("'{name}' would change which code runs in QEMU"));
    }
    Some((name.to_owned(), element.get("value").unwrap_or_default().to_owned()))
}

keywords! {
    /// What QEMU does about its deprecated options and commands.
    pub enum Deprecation {
        /// It takes and shows them.
        None = "none",
        /// It does not show them.
        Omit = "omit",
        /// It does not take them either.
        Reject = "reject",
        /// It aborts when it is given one.
        Crash = "crash",
    }
}

/// Reads `<qemu:deprecation>`. An unknown word is passed over, as libvirt does: this is for developers, and words change.
pub(super) fn deprecation(root: &Element, diagnostics: &mut Diagnostics) -> Option<Deprecation> {
    let element = root.only_child(&qualified(root, "deprecation")?, diagnostics)?;
    let behavior = element.attribute("behavior")?;
    let found = Deprecation::from_word(&behavior.value);
    if found.is_none() {
        diagnostics.warning(
            behavior.span,
            format!("'{}' is not a behavior; it takes {}", behavior.value, Deprecation::expected()),
        );
    }
    found
}

/// `<qemu:capabilities>`: what libvirt is to believe of QEMU. vmward asks QEMU, and has other names for what it can do.
pub(super) fn capabilities(root: &Element, diagnostics: &mut Diagnostics) {
    let Some(name) = qualified(root, "capabilities") else { return };
    let Some(element) = root.only_child(&name, diagnostics) else { return };
    element.mark_read();
    diagnostics.outside_qemu(element.span, "vmward believes QEMU about what it can do (<qemu:capabilities>)");
}

/// The name, prefix included, of a child in QEMU's namespace.
pub(super) fn qualified(parent: &Element, name: &str) -> Option<String> {
    let found = parent.children.iter().find(|c| local(&c.name) == name && in_namespace(c, &[parent]))?;
    Some(found.name.clone())
}

pub(super) fn local(name: &str) -> &str {
    name.rsplit(':').next().unwrap_or(name)
}

/// Whether an element is in QEMU's namespace, by its own declaration or the nearest ancestor's.
fn in_namespace(element: &Element, ancestors: &[&Element]) -> bool {
    let declaration = match element.name.split_once(':') {
        Some((prefix, _)) => format!("xmlns:{prefix}"),
        None => "xmlns".to_owned(),
    };
    let declared =
        |e: &Element| e.attributes.iter().find(|a| a.name == declaration).map(|a| a.value == NAMESPACE);
    declared(element).or_else(|| ancestors.iter().find_map(|a| declared(a))).unwrap_or_default()
}
