//! `<hub>`.

use crate::domain::DeviceInfo;
use crate::xml::{Diagnostics, Element, keywords};

keywords! {
    /// Kinds of hub.
    pub enum HubType {
        /// USB.
        Usb = "usb",
    }
}

/// A `<hub>`: QEMU has USB hubs with 8 ports.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hub {
    /// Where it is and what it is called.
    pub info: DeviceInfo,
}

impl Hub {
    /// Reads a `<hub>`.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let info = DeviceInfo::from_xml(element, diagnostics);
        element.require_keyword::<HubType>("type", diagnostics)?;
        Some(Self { info })
    }
}
