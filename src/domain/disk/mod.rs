//! `<disk>`.

use crate::secret::SecretRef;
use crate::xml::{Diagnostics, Element};

use super::DeviceInfo;

/// One disk.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    /// Where it is and what it is called.
    pub info: DeviceInfo,
    /// The guest-side name, unique in a domain: `vda`, `sdb`, ...
    pub target: String,
}

impl Disk {
    /// Reads a `<disk>`, of a domain or on its own (hotplug).
    pub fn from_xml(_element: &Element, _diagnostics: &mut Diagnostics) -> Option<Self> {
        None
    }

    /// The secrets that it uses: from its top layer to its base, storage before format.
    pub fn secrets(&self) -> Vec<SecretRef> {
        Vec::new()
    }
}
