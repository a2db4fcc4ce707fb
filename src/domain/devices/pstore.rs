//! `<pstore>`: where a guest that crashes leaves its last words.

use std::path::PathBuf;

use crate::domain::{DeviceInfo, size};
use crate::xml::{Diagnostics, Element, keywords};

keywords! {
    /// How the guest reaches the store.
    pub enum PstoreBackend {
        /// ACPI's error record serialization table.
        AcpiErst = "acpi-erst",
    }
}

/// A `<pstore>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pstore {
    /// Where it is and what it is called.
    pub info: DeviceInfo,
    /// The file that keeps it; `None`: libvirt's usual place.
    pub path: Option<PathBuf>,
    /// Its size in bytes.
    pub size: u64,
}

impl Pstore {
    /// Reads a `<pstore>`.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let info = DeviceInfo::from_xml(element, diagnostics);
        element.require_keyword::<PstoreBackend>("backend", diagnostics);
        let path = element.child_text("path").map(PathBuf::from);
        let Some(size) = element.only_child("size", diagnostics) else {
            diagnostics.error(element.span, "<pstore> lacks its <size>");
            return None;
        };
        let bytes = size::of_element(size, size::KIB, diagnostics)?;
        Some(Self { info, path, size: bytes })
    }
}
