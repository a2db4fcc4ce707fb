//! `<rom>`: the option ROM of a PCI device.

use std::path::PathBuf;

use crate::xml::{Diagnostics, Element};

/// The option ROM of a PCI device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rom {
    /// Whether the guest sees one at all.
    pub enabled: Option<bool>,
    /// Whether its address range shows in the guest.
    pub bar: Option<bool>,
    /// The file that it is read from; empty: no ROM.
    pub file: Option<PathBuf>,
}

impl Rom {
    /// Reads a device's `<rom>`.
    pub fn of_device(device: &Element, diagnostics: &mut Diagnostics) -> Self {
        let Some(rom) = device.only_child("rom", diagnostics) else { return Self::default() };
        let found = Self {
            enabled: rom.yes_no("enabled", diagnostics),
            bar: rom.on_off("bar", diagnostics),
            file: rom.get("file").map(PathBuf::from),
        };
        if found.enabled == Some(false) && (found.bar.is_some() || found.file.is_some()) {
            diagnostics.error(rom.span, "a ROM that is not enabled has neither bar nor file");
        }
        found
    }
}
