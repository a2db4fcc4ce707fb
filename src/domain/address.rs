//! Where a device sits on its bus.

use crate::xml::{Diagnostics, Element, keywords};

keywords! {
    /// The kinds of `<address>` that exist on x86.
    pub enum AddressType {
        /// A slot of a PCI bus.
        Pci = "pci",
        /// A unit of a disk controller.
        Drive = "drive",
        /// A USB port.
        Usb = "usb",
        /// A port of a virtio-serial controller.
        VirtioSerial = "virtio-serial",
        /// A slot of a smart card reader.
        Ccid = "ccid",
        /// ISA resources.
        Isa = "isa",
        /// A memory slot.
        Dimm = "dimm",
        /// None, on purpose.
        Unassigned = "unassigned",
    }
}

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

/// A port of a virtio-serial controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct VirtioSerialAddress {
    /// The index of the controller.
    pub controller: u32,
    /// Always 0 in QEMU.
    pub bus: u32,
    /// The port; 0 is the first console's, and means "any" where it was not assigned by vmward.
    pub port: u32,
}

/// A slot of a smart card reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct CcidAddress {
    /// The index of the controller.
    pub controller: u32,
    /// The slot; QEMU's reader has only slot 0.
    pub slot: u32,
}

/// The I/O resources of an ISA device, where they differ from the usual ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct IsaAddress {
    /// The I/O port.
    pub iobase: Option<u64>,
    /// The interrupt.
    pub irq: Option<u64>,
}

/// Where a memory device sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct DimmAddress {
    /// The slot.
    pub slot: Option<u32>,
    /// The guest-physical address.
    pub base: Option<u64>,
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
    /// `<address type='virtio-serial'>`.
    VirtioSerial(VirtioSerialAddress),
    /// `<address type='ccid'>`.
    Ccid(CcidAddress),
    /// `<address type='isa'>`.
    Isa(IsaAddress),
    /// `<address type='dimm'>`.
    Dimm(DimmAddress),
    /// `<address type='unassigned'>`: the device is not given to the guest.
    Unassigned,
}

impl Address {
    /// Reads `<address>`. One that names a type only (`<address type='pci'/>`) asks for an assigned one: that is `None`.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let kind: AddressType = element.require_keyword("type", diagnostics)?;
        let bare = element.attributes.len() == 1;
        match kind {
            AddressType::Pci if bare => None,
            // The root complex itself is at 0000:00:00.0: libvirt takes that for "none".
            AddressType::Pci => PciAddress::from_xml(element, diagnostics)
                .filter(|a| (a.domain, a.bus, a.slot) != (0, 0, 0))
                .map(Self::Pci),
            AddressType::Drive if bare => None,
            AddressType::Drive => Some(Self::Drive(DriveAddress::from_xml(element, diagnostics))),
            AddressType::Usb if bare => None,
            AddressType::Usb => UsbAddress::from_xml(element, diagnostics).map(Self::Usb),
            AddressType::VirtioSerial if bare => None,
            AddressType::VirtioSerial => Some(Self::VirtioSerial(VirtioSerialAddress {
                controller: small(element, "controller", diagnostics),
                bus: small(element, "bus", diagnostics),
                port: small(element, "port", diagnostics),
            })),
            AddressType::Ccid => Some(Self::Ccid(CcidAddress {
                controller: small(element, "controller", diagnostics),
                slot: small(element, "slot", diagnostics),
            })),
            AddressType::Isa => Some(Self::Isa(IsaAddress {
                iobase: element.hex_number("iobase", diagnostics),
                irq: element.hex_number("irq", diagnostics),
            })),
            AddressType::Dimm => Some(Self::Dimm(DimmAddress {
                slot: element.number("slot", diagnostics),
                base: element.hex_number("base", diagnostics),
            })),
            AddressType::Unassigned => Some(Self::Unassigned),
        }
    }

    /// What kind of address it is.
    pub fn kind(&self) -> AddressType {
        match self {
            Self::Pci(_) => AddressType::Pci,
            Self::Drive(_) => AddressType::Drive,
            Self::Usb(_) => AddressType::Usb,
            Self::VirtioSerial(_) => AddressType::VirtioSerial,
            Self::Ccid(_) => AddressType::Ccid,
            Self::Isa(_) => AddressType::Isa,
            Self::Dimm(_) => AddressType::Dimm,
            Self::Unassigned => AddressType::Unassigned,
        }
    }
}

fn small(element: &Element, name: &str, diagnostics: &mut Diagnostics) -> u32 {
    element.number(name, diagnostics).unwrap_or_default()
}

/// A number of a PCI address, in decimal or hexadecimal, at most `max`; 0 where it is missing.
fn part<N: TryFrom<u64> + Default>(
    element: &Element,
    name: &str,
    max: u64,
    diagnostics: &mut Diagnostics,
) -> Option<N> {
    let Some(attribute) = element.attribute(name) else { return Some(N::default()) };
    let found = element.hex_number(name, diagnostics)?;
    if found > max {
        diagnostics.error(
            attribute.span,
            format!("{name} {} of a PCI address is more than {max:#x}", attribute.value),
        );
        return None;
    }
    N::try_from(found).ok()
}

impl PciAddress {
    /// The highest slot of a conventional PCI bus.
    pub const LAST_SLOT: u8 = 31;

    /// The address of function 0 of a slot.
    pub fn at(bus: u8, slot: u8) -> Self {
        Self { bus, slot, ..Self::default() }
    }

    /// Reads domain, bus, slot, function and multifunction; also of a host device's source address.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        Some(Self {
            domain: part(element, "domain", 0xffff, diagnostics)?,
            bus: part(element, "bus", 0xff, diagnostics)?,
            slot: part(element, "slot", 0x1f, diagnostics)?,
            function: part(element, "function", 7, diagnostics)?,
            multifunction: element.on_off("multifunction", diagnostics),
        })
    }

    /// Whether both name the same place.
    pub fn same_place(&self, other: &Self) -> bool {
        (self.domain, self.bus, self.slot, self.function)
            == (other.domain, other.bus, other.slot, other.function)
    }
}

impl std::fmt::Display for PciAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{}", self.domain, self.bus, self.slot, self.function)
    }
}

impl DriveAddress {
    /// The highest index of a controller. All up to the one that a disk is on are made, each with a place on a PCI bus,
    /// of which there are no more than 256.
    pub const LAST_CONTROLLER: u32 = 255;

    /// Reads controller, bus, target and unit, each 0 where it is missing.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Self {
        if let Some(controller) = element.attribute("controller")
            && controller.value.parse().is_ok_and(|n: u32| n > Self::LAST_CONTROLLER)
        {
            diagnostics.error(
                controller.span,
                format!("the index of a disk controller is {} at most", Self::LAST_CONTROLLER),
            );
        }
        Self {
            controller: small(element, "controller", diagnostics),
            bus: small(element, "bus", diagnostics),
            target: small(element, "target", diagnostics),
            unit: small(element, "unit", diagnostics),
        }
    }
}

impl UsbAddress {
    /// A port path is at most this deep in QEMU.
    const DEEPEST: usize = 4;

    fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let bus = small(element, "bus", diagnostics);
        let Some(attribute) = element.attribute("port") else { return Some(Self { bus, port: Vec::new() }) };
        let port: Option<Vec<u32>> =
            attribute.value.split('.').map(|p| p.parse().ok().filter(|n| *n > 0)).collect();
        match port {
            Some(port) if port.len() <= Self::DEEPEST => Some(Self { bus, port }),
            _ => {
                diagnostics.error(attribute.span, format!("'{}' is not a USB port", attribute.value)).hint(
                    "ports are numbers above 0, from the controller down, as in 1 or 1.2 (at most 4 deep)",
                );
                None
            }
        }
    }

    /// The port as XML and QEMU write it: `1.2`.
    pub fn port_path(&self) -> String {
        self.port.iter().map(u32::to_string).collect::<Vec<_>>().join(".")
    }
}
