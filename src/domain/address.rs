//! Where a device sits on its bus.

use crate::xml::{Diagnostics, Element};

/// A PCI address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct PciAddress {
    /// 0 on x86.
    pub domain: u16,
    /// The index of the PCI controller.
    pub bus: u8,
    /// 0 to 31.
    pub slot: u8,
    /// 0 to 7.
    pub function: u8,
    /// `multifunction='on'`, where the user said so.
    pub multifunction: Option<bool>,
}

/// A place on a disk controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct DriveAddress {
    /// The index of the controller.
    pub controller: u32,
    /// The bus of the controller.
    pub bus: u32,
    /// The target on the bus.
    pub target: u32,
    /// The unit of the target.
    pub unit: u32,
}

/// A USB port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct UsbAddress {
    /// The index of the USB controller.
    pub bus: u32,
    /// Ports from the root down, `1.2` is port 2 of the hub on port 1. Empty: any.
    pub port: Vec<u32>,
}

/// An address of any kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `<address type='pci'>`.
    Pci(PciAddress),
    /// `<address type='drive'>`.
    Drive(DriveAddress),
    /// `<address type='usb'>`.
    Usb(UsbAddress),
}

impl Address {
    /// Reads `<address>`.
    pub fn from_xml(_element: &Element, _diagnostics: &mut Diagnostics) -> Option<Self> {
        None
    }
}
