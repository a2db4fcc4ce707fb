//! The firmware of a guest: a file that the XML names, and where it keeps its variables.

use crate::keywords;
use crate::xml::{Diagnostics, Element, Span};

keywords! {
    /// How QEMU is given the firmware.
    pub enum LoaderType {
        /// A ROM image (`-bios`).
        Rom = "rom",
        /// A flash chip.
        Pflash = "pflash",
    }
}

/// What `<os>` says about firmware.
#[derive(Debug, Clone, Default)]
pub struct Firmware {
    /// `<loader>`.
    pub loader: Option<Loader>,
    /// `<nvram>`.
    pub nvram: Option<Nvram>,
}

/// `<loader>`.
#[derive(Debug, Clone)]
pub struct Loader {
    /// Where it stands.
    pub span: Span,
    /// The firmware's path.
    pub path: String,
    /// How QEMU is given it.
    pub kind: LoaderType,
    /// Whether the guest may not write to it.
    pub readonly: bool,
    /// Whether the firmware needs system management mode for secure boot.
    pub secure: bool,
}

/// `<nvram>`: the file with the variables of this guest's firmware.
#[derive(Debug, Clone)]
pub struct Nvram {
    /// Where it stands.
    pub span: Span,
    /// Its path.
    pub path: Option<String>,
    /// What it is copied from if it is not there.
    pub template: Option<String>,
}

impl Firmware {
    pub(super) fn from_xml(os: &Element, diagnostics: &mut Diagnostics) -> Self {
        Self { loader: Loader::from_xml(os, diagnostics), nvram: Nvram::from_xml(os, diagnostics) }
    }
}

impl Loader {
    fn from_xml(os: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let element = os.only_child("loader", diagnostics)?;
        let path = element.text();
        if path.is_empty() {
            diagnostics.error(element.span, "<loader> names no firmware");
        } else if !path.starts_with('/') {
            diagnostics.error(element.text_place(), "the path of a firmware starts with '/'");
        }
        let kind = element.keyword("type", diagnostics).unwrap_or(LoaderType::Rom);
        Some(Self {
            span: element.span,
            path: path.to_owned(),
            kind,
            readonly: element.yes_no("readonly", diagnostics).unwrap_or(kind == LoaderType::Rom),
            secure: element.yes_no("secure", diagnostics).unwrap_or_default(),
        })
    }
}

impl Nvram {
    fn from_xml(os: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let element = os.only_child("nvram", diagnostics)?;
        Some(Self {
            span: element.span,
            path: Some(element.text().to_owned()).filter(|p| !p.is_empty()),
            template: element.get("template").map(str::to_owned),
        })
    }
}
