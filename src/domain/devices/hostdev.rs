//! `<hostdev>`: devices of the host in the guest.

use uuid::Uuid;

use crate::domain::DeviceInfo;
use crate::domain::address::PciAddress;
use crate::domain::disk::{Auth, StartupPolicy};
use crate::secret::SecretRef;
use crate::xml::{Diagnostics, Element, keywords};

use super::rom::Rom;
use super::virtio::VirtioModel;

keywords! {
    /// The `mode` of a host device.
    pub enum HostdevMode {
        /// A device on a bus.
        Subsystem = "subsystem",
    }
}

keywords! {
    /// The bus of a host device.
    pub enum HostdevType {
        /// PCI.
        Pci = "pci",
        /// USB.
        Usb = "usb",
        /// A SCSI unit.
        Scsi = "scsi",
        /// A SCSI target of the kernel's.
        ScsiHost = "scsi_host",
        /// A mediated device.
        Mdev = "mdev",
    }
}

/// A unit of a SCSI host adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScsiUnit {
    /// The adapter: `scsi_host0`.
    pub adapter: String,
    /// The bus.
    pub bus: u32,
    /// The target.
    pub target: u32,
    /// The unit.
    pub unit: u64,
}

/// A unit of an iSCSI target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IscsiUnit {
    /// The server.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The target.
    pub target: String,
    /// The unit.
    pub unit: u32,
    /// The initiator's name.
    pub initiator: Option<String>,
    /// The credentials.
    pub auth: Option<Auth>,
}

/// Which device of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostdevSource {
    /// A PCI device.
    Pci(PciAddress),
    /// A USB device by its place.
    UsbAddress {
        /// The bus.
        bus: u32,
        /// The device on it.
        device: u32,
    },
    /// A USB device by its kind.
    UsbKind {
        /// The vendor.
        vendor: u16,
        /// The vendor's number of it.
        product: u16,
    },
    /// A SCSI unit.
    Scsi(ScsiUnit),
    /// A unit of an iSCSI target.
    Iscsi(IscsiUnit),
    /// A SCSI target of the kernel's, by its name.
    Vhost(String),
    /// A mediated device.
    Mdev(Uuid),
}

/// When the host's USB device is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestReset {
    /// Never.
    Off,
    /// When the guest does it for the first time.
    Uninitialized,
    /// Whenever the guest does it.
    On,
}

/// A `<hostdev>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hostdev {
    /// Where it is and what it is called.
    pub info: DeviceInfo,
    /// Which device.
    pub source: HostdevSource,
    /// Which virtio (scsi_host).
    pub model: VirtioModel,
    /// Whether the guest's screen is drawn by it.
    pub display: Option<bool>,
    /// Whether it has a frame buffer while it boots.
    pub ramfb: Option<bool>,
    /// Whether the guest can only read (scsi).
    pub readonly: bool,
    /// When it is reset (usb).
    pub guest_reset: Option<GuestReset>,
    /// The interface that stays when this one goes.
    pub teaming: Option<String>,
    /// `<rom>`.
    pub rom: Rom,
}

impl Hostdev {
    /// Reads a `<hostdev>`.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let info = DeviceInfo::from_xml(element, diagnostics);
        element.require_keyword::<HostdevMode>("mode", diagnostics)?;
        let kind: HostdevType = element.require_keyword("type", diagnostics)?;
        // Whether the device is taken from its driver: host devices are refused at a start so far.
        element.yes_no("managed", diagnostics);
        let Some(source) = element.only_child("source", diagnostics) else {
            diagnostics.error(element.span, "<hostdev> lacks its <source>");
            return None;
        };
        // What becomes of a start without it: host devices are refused at a start so far.
        if matches!(kind, HostdevType::Usb | HostdevType::Pci) {
            source.keyword::<StartupPolicy>("startupPolicy", diagnostics);
        }
        let guest_reset = match source.get("guestReset") {
            None => None,
            Some("off") => Some(GuestReset::Off),
            Some("uninitialized") => Some(GuestReset::Uninitialized),
            Some("on") => Some(GuestReset::On),
            Some(other) => {
                diagnostics.error(source.span, format!("'{other}' is not a value of guestReset"));
                None
            }
        };
        let model = match kind {
            HostdevType::Mdev => {
                if element.require("model", diagnostics).is_some_and(|m| m != "vfio-pci") {
                    diagnostics.error(element.span, "mediated devices on x86 are of model 'vfio-pci'");
                }
                VirtioModel::Virtio
            }
            HostdevType::ScsiHost => element.keyword("model", diagnostics).unwrap_or(VirtioModel::Virtio),
            HostdevType::Pci | HostdevType::Usb | HostdevType::Scsi => VirtioModel::Virtio,
        };
        if let Some(driver) = element.only_child("driver", diagnostics)
            && driver.get("name").is_some_and(|name| name != "vfio")
        {
            diagnostics.error(driver.span, "host devices are given to guests by vfio");
        }
        if kind == HostdevType::Scsi {
            // libvirt then gives the unit to several guests; vmward does not watch over that.
            element.only_child("shareable", diagnostics);
        }
        let teaming = element.only_child("teaming", diagnostics).and_then(|teaming| {
            teaming.get("type");
            teaming.require("persistent", diagnostics).map(str::to_owned)
        });
        let hostdev = Self {
            info,
            source: source_of(kind, source, diagnostics)?,
            model,
            display: element.on_off("display", diagnostics),
            ramfb: element.on_off("ramfb", diagnostics),
            readonly: kind == HostdevType::Scsi && element.only_child("readonly", diagnostics).is_some(),
            guest_reset,
            teaming,
            rom: Rom::of_device(element, diagnostics),
        };
        hostdev.check(kind, diagnostics);
        Some(hostdev)
    }

    /// The secret that it uses.
    pub fn secret(&self) -> Option<&SecretRef> {
        match &self.source {
            HostdevSource::Iscsi(unit) => unit.auth.as_ref().map(|auth| &auth.secret),
            _ => None,
        }
    }

    fn check(&self, kind: HostdevType, diagnostics: &mut Diagnostics) {
        use crate::domain::Address;
        if kind == HostdevType::ScsiHost && self.info.boot_order.is_some() {
            diagnostics.error(self.info.span, "guests do not boot from vhost-scsi");
        }
        let fits = match (&self.info.address, kind) {
            (None | Some(Address::Unassigned), _) => true,
            (Some(Address::Pci(_)), HostdevType::Pci | HostdevType::ScsiHost | HostdevType::Mdev) => true,
            (Some(Address::Usb(_)), HostdevType::Usb) => true,
            (Some(Address::Drive(_)), HostdevType::Scsi) => true,
            (Some(_), _) => false,
        };
        if !fits {
            diagnostics.error(
                self.info.address_span.unwrap_or(self.info.span),
                format!("a host device of type '{}' has no address of this type", kind.as_str()),
            );
        }
    }
}

fn source_of(kind: HostdevType, source: &Element, diagnostics: &mut Diagnostics) -> Option<HostdevSource> {
    let address = source.only_child("address", diagnostics);
    let missing = |what: &str, diagnostics: &mut Diagnostics| {
        diagnostics.error(source.span, format!("the source of the host device lacks its <{what}>"));
    };
    if kind == HostdevType::Scsi && source.get("protocol") == Some("iscsi") {
        return iscsi(source, diagnostics).map(HostdevSource::Iscsi);
    }
    match (kind, address) {
        (HostdevType::Pci, Some(address)) => {
            address.get("type");
            PciAddress::from_xml(address, diagnostics).map(HostdevSource::Pci)
        }
        (HostdevType::Usb, Some(address)) => {
            // A running guest's XML has both: the kind that was asked for, and where one was.
            for name in ["vendor", "product"] {
                source.child(name).into_iter().for_each(Element::mark_read);
            }
            Some(HostdevSource::UsbAddress {
                bus: address.number("bus", diagnostics)?,
                device: address.number("device", diagnostics)?,
            })
        }
        (HostdevType::Usb, None) => {
            let mut id = |name: &str| {
                let found = source.only_child(name, diagnostics)?;
                found.hex_number("id", diagnostics).and_then(|id| u16::try_from(id).ok())
            };
            match (id("vendor"), id("product")) {
                (Some(vendor), Some(product)) => Some(HostdevSource::UsbKind { vendor, product }),
                _ => {
                    missing("address", diagnostics);
                    None
                }
            }
        }
        (HostdevType::Scsi, Some(address)) => {
            let Some(adapter) = source.only_child("adapter", diagnostics) else {
                missing("adapter", diagnostics);
                return None;
            };
            Some(HostdevSource::Scsi(ScsiUnit {
                adapter: adapter.require("name", diagnostics)?.to_owned(),
                bus: address.number("bus", diagnostics)?,
                target: address.number("target", diagnostics)?,
                unit: address.number("unit", diagnostics)?,
            }))
        }
        (HostdevType::ScsiHost, _) => {
            if source.require("protocol", diagnostics)? != "vhost" {
                diagnostics.error(source.span, "a scsi_host is given by the protocol 'vhost'");
            }
            let wwpn = source.require("wwpn", diagnostics)?;
            if !wwpn.starts_with("naa.") {
                diagnostics.error(source.span, format!("'{wwpn}' does not start with naa."));
            }
            Some(HostdevSource::Vhost(wwpn.to_owned()))
        }
        (HostdevType::Mdev, Some(address)) => {
            let text = address.require("uuid", diagnostics)?;
            match Uuid::try_parse(text) {
                Ok(uuid) => Some(HostdevSource::Mdev(uuid)),
                Err(_) => {
                    diagnostics.error(address.span, format!("'{text}' is not a UUID"));
                    None
                }
            }
        }
        (HostdevType::Pci | HostdevType::Scsi | HostdevType::Mdev, None) => {
            missing("address", diagnostics);
            None
        }
    }
}

fn iscsi(source: &Element, diagnostics: &mut Diagnostics) -> Option<IscsiUnit> {
    /// IANA's port of iSCSI.
    const PORT: u16 = 3260;
    let name = source.require("name", diagnostics)?;
    let (target, unit) = match name.rsplit_once('/') {
        Some((target, unit)) => (target, unit.parse().ok()),
        None => (name, Some(0)),
    };
    let Some(unit) = unit else {
        diagnostics.error(source.span, format!("'{name}' does not end with the number of a unit"));
        return None;
    };
    let Some(host) = source.only_child("host", diagnostics) else {
        diagnostics.error(source.span, "an iSCSI source needs its <host>");
        return None;
    };
    let initiator = source
        .only_child("initiator", diagnostics)
        .and_then(|i| i.only_child("iqn", diagnostics))
        .and_then(|iqn| iqn.require("name", diagnostics))
        .map(str::to_owned);
    Some(IscsiUnit {
        host: host.require("name", diagnostics)?.to_owned(),
        port: host.number("port", diagnostics).unwrap_or(PORT),
        target: target.to_owned(),
        unit,
        initiator,
        auth: Auth::of_iscsi(source, diagnostics)?,
    })
}
