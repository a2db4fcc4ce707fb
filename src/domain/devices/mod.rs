//! `<devices>`.

use crate::xml::{Diagnostics, Element};

use super::disk::Disk;

/// All of a guest's devices, each kind in the order of the XML.
#[derive(Debug, Clone, Default)]
pub struct Devices {
    /// The QEMU program, if the XML names one.
    pub emulator: Option<String>,
    /// `<disk>`.
    pub disks: Vec<Disk>,
}

impl Devices {
    /// Reads `<devices>`.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Self {
        Self {
            emulator: element.child_text("emulator").map(str::to_owned),
            disks: element.children("disk").filter_map(|e| Disk::from_xml(e, diagnostics)).collect(),
        }
    }
}
