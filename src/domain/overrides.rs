//! `<qemu:override>`: properties of QEMU's devices that win over what the rest of the XML makes of them.

use crate::keywords;
use crate::xml::{Diagnostics, Element, Span};

use super::commandline::{self, local};

keywords! {
    /// How a property's value is meant.
    pub enum PropertyType {
        /// Text.
        String = "string",
        /// A number with a sign.
        Signed = "signed",
        /// A number without one.
        Unsigned = "unsigned",
        /// `true` or `false`.
        Bool = "bool",
        /// None: the property is left out.
        Remove = "remove",
    }
}

/// A property's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PropertyValue {
    /// Text.
    Text(String),
    /// A number.
    Number(i128),
    /// On or off.
    Switch(bool),
    /// The property is left out.
    Removed,
}

/// The properties of one device.
#[derive(Debug, Clone)]
pub struct DeviceOverride {
    /// The device's alias.
    pub alias: String,
    /// Names and values.
    pub properties: Vec<(String, PropertyValue)>,
    /// Where it stands.
    pub span: Span,
}

/// Reads `<qemu:override>`.
pub fn from_xml(root: &Element, diagnostics: &mut Diagnostics) -> Vec<DeviceOverride> {
    let Some(name) = commandline::qualified(root, "override") else { return Vec::new() };
    let Some(list) = root.only_child(&name, diagnostics) else { return Vec::new() };
    named(list, "device").into_iter().filter_map(|device| device_override(device, diagnostics)).collect()
}

/// The children of a local name: inside of an element of QEMU's, all are.
fn named<'a>(parent: &'a Element, name: &str) -> Vec<&'a Element> {
    let Some(first) = parent.children.iter().find(|c| local(&c.name) == name) else { return Vec::new() };
    parent.children(&first.name).collect()
}

fn device_override(device: &Element, diagnostics: &mut Diagnostics) -> Option<DeviceOverride> {
    let alias = device.require("alias", diagnostics)?.to_owned();
    let frontends = named(device, "frontend");
    let properties = frontends.iter().flat_map(|f| named(f, "property"));
    let properties = properties.filter_map(|p| property(p, diagnostics)).collect();
    Some(DeviceOverride { alias, properties, span: device.span })
}

fn property(element: &Element, diagnostics: &mut Diagnostics) -> Option<(String, PropertyValue)> {
    let name = element.require("name", diagnostics)?.to_owned();
    let kind = element.require_keyword("type", diagnostics)?;
    if kind == PropertyType::Remove {
        return Some((name, PropertyValue::Removed));
    }
    let value = element.require("value", diagnostics)?;
    let understood = match kind {
        PropertyType::Signed => value.parse::<i64>().ok().map(|n| PropertyValue::Number(n.into())),
        PropertyType::Unsigned => value.parse::<u64>().ok().map(|n| PropertyValue::Number(n.into())),
        PropertyType::Bool => value.parse().ok().map(PropertyValue::Switch),
        PropertyType::String | PropertyType::Remove => Some(PropertyValue::Text(value.to_owned())),
    };
    if understood.is_none() {
        diagnostics.error(element.span, format!("'{value}' is not a value of type '{}'", kind.as_str()));
    }
    Some((name, understood?))
}
