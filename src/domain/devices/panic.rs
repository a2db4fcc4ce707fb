//! `<panic>`: the device that tells the host that the guest crashed.

use crate::domain::DeviceInfo;
use crate::xml::{Diagnostics, Element, keywords};

keywords! {
    /// Ways to tell.
    pub enum PanicModel {
        /// An ISA device.
        Isa = "isa",
        /// A PCI device.
        Pvpanic = "pvpanic",
        /// A feature of the processor.
        Hyperv = "hyperv",
    }
}

/// A `<panic>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panic {
    /// Where it is and what it is called.
    pub info: DeviceInfo,
    /// Which one.
    pub model: PanicModel,
}

impl Panic {
    /// Reads a `<panic>`.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let info = DeviceInfo::from_xml(element, diagnostics);
        let model = match element.attribute("model") {
            Some(_) => element.keyword("model", diagnostics)?,
            None => PanicModel::Isa,
        };
        Some(Self { info, model })
    }
}
