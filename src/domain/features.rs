//! `<features>`: what of the platform is switched on or off.

use crate::xml::{Diagnostics, Element};

/// `<features>`.
#[derive(Debug, Clone, Default)]
pub struct Features {
    /// `<acpi/>`: without it the guest has no ACPI.
    pub acpi: bool,
    /// `<apic/>`: without it QEMU's default.
    pub apic: bool,
    /// `<vmport>`.
    pub vmport: Option<bool>,
    /// `<smm>`.
    pub smm: Option<bool>,
}

impl Features {
    /// Reads `<features>`.
    pub fn from_xml(root: &Element, diagnostics: &mut Diagnostics) -> Self {
        let Some(features) = root.only_child("features", diagnostics) else { return Self::default() };
        // x86_64 guests always have PAE.
        features.only_child("pae", diagnostics);
        let mut state = |name: &str| {
            let element = features.only_child(name, diagnostics)?;
            Some(element.on_off("state", diagnostics).unwrap_or(true))
        };
        Self {
            vmport: state("vmport"),
            smm: state("smm"),
            acpi: features.only_child("acpi", diagnostics).is_some(),
            apic: features.only_child("apic", diagnostics).is_some(),
        }
    }
}
