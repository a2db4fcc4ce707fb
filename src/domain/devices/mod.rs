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
    pub fn from_xml(_element: &Element, _diagnostics: &mut Diagnostics) -> Self {
        Self::default()
    }
}
