//! `<serial>`, `<parallel>`, `<console>` and `<channel>`: character devices as the guest sees them.

use std::net::IpAddr;

use crate::domain::{AddressType, DeviceInfo};
use crate::xml::{Diagnostics, Element, keywords};

use super::chardev::{Backend, Chardev, SocketMode};

keywords! {
    /// The kinds of serial port.
    pub enum SerialType {
        /// A COM port.
        Isa = "isa-serial",
        /// On PCI.
        Pci = "pci-serial",
        /// On USB.
        Usb = "usb-serial",
        /// The firmware's debug port.
        IsaDebug = "isa-debug",
    }
}

keywords! {
    /// The devices behind the kinds of serial port; each kind has one on x86.
    pub enum SerialModel {
        /// A 16550.
        IsaSerial = "isa-serial",
        /// On PCI.
        PciSerial = "pci-serial",
        /// On USB.
        UsbSerial = "usb-serial",
        /// The firmware's debug port.
        IsaDebugcon = "isa-debugcon",
    }
}

keywords! {
    /// The kinds of console.
    pub enum ConsoleType {
        /// The first serial port by another name.
        Serial = "serial",
        /// A virtio console.
        Virtio = "virtio",
    }
}

keywords! {
    /// The kinds of channel.
    pub enum ChannelType {
        /// A named virtio port.
        Virtio = "virtio",
        /// An address of the guest's user network.
        Guestfwd = "guestfwd",
    }
}

/// A `<serial>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serial {
    /// Where it is and what it is called.
    pub info: DeviceInfo,
    /// The host's side.
    pub chardev: Chardev,
    /// Its kind.
    pub kind: SerialType,
    /// Its number; assigned if the XML has none.
    pub port: Option<u32>,
}

/// A `<parallel>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parallel {
    /// Where it is and what it is called.
    pub info: DeviceInfo,
    /// The host's side.
    pub chardev: Chardev,
}

/// A `<console>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Console {
    /// Where it is and what it is called.
    pub info: DeviceInfo,
    /// The host's side.
    pub chardev: Chardev,
    /// Its kind.
    pub kind: ConsoleType,
}

/// A `<channel>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    /// Where it is and what it is called.
    pub info: DeviceInfo,
    /// The host's side.
    pub chardev: Chardev,
    /// The guest's side.
    pub target: ChannelTarget,
}

/// The guest's side of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChannelTarget {
    /// A virtio port of that name.
    Virtio(Option<String>),
    /// An address of the guest's user network.
    Guestfwd {
        /// The address.
        address: IpAddr,
        /// The port.
        port: u16,
    },
}

impl Serial {
    /// Reads a `<serial>`.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let info = DeviceInfo::from_xml(element, diagnostics);
        let target = element.only_child("target", diagnostics);
        let kind = match target.and_then(|t| t.attribute("type")) {
            Some(_) => target.and_then(|t| t.keyword("type", diagnostics)),
            None => Some(SerialType::Isa),
        };
        if let (Some(target), Some(kind)) = (target, kind) {
            check_model(target, kind, diagnostics);
        }
        let port = target.and_then(|t| t.number("port", diagnostics));
        let chardev = Chardev::from_xml(element, false, diagnostics)?;
        let kind = kind?;
        let wanted = match kind {
            SerialType::Isa | SerialType::IsaDebug => AddressType::Isa,
            SerialType::Pci => AddressType::Pci,
            SerialType::Usb => AddressType::Usb,
        };
        if let Some(address) = info.address.as_ref().filter(|a| a.kind() != wanted) {
            diagnostics.error(
                info.address_span.unwrap_or(info.span),
                format!(
                    "a serial port of type {} has no address of type '{}'",
                    kind.as_str(),
                    address.kind().as_str()
                ),
            );
        }
        Some(Self { info, chardev, kind, port })
    }

    /// The serial port that a `<console>` of a guest without any stands for.
    pub fn of_console(console: &Console) -> Self {
        let info = DeviceInfo { alias: None, ..console.info.clone() };
        Self { info, chardev: console.chardev.clone(), kind: SerialType::Isa, port: Some(0) }
    }
}

/// `<model name=>` says again what the kind says: each kind has one device.
fn check_model(target: &Element, kind: SerialType, diagnostics: &mut Diagnostics) {
    let Some(model) = target.only_child("model", diagnostics) else { return };
    let Some(name) = model.require_keyword::<SerialModel>("name", diagnostics) else { return };
    let fits = matches!(
        (kind, name),
        (SerialType::Isa, SerialModel::IsaSerial)
            | (SerialType::Pci, SerialModel::PciSerial)
            | (SerialType::Usb, SerialModel::UsbSerial)
            | (SerialType::IsaDebug, SerialModel::IsaDebugcon)
    );
    if !fits {
        diagnostics.error(
            model.span,
            format!("a serial port of type {} cannot be a {}", kind.as_str(), name.as_str()),
        );
    }
}

impl Parallel {
    /// Reads a `<parallel>`.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let info = DeviceInfo::from_xml(element, diagnostics);
        // QEMU numbers them in the order in which it gets them.
        if let Some(target) = element.only_child("target", diagnostics) {
            target.get("port");
        }
        Some(Self { info, chardev: Chardev::from_xml(element, false, diagnostics)? })
    }
}

impl Console {
    /// Reads a `<console>`.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let info = DeviceInfo::from_xml(element, diagnostics);
        let target = element.only_child("target", diagnostics);
        if let Some(target) = target {
            // Consoles have no numbers of their own in QEMU.
            target.get("port");
        }
        let kind = match target.and_then(|t| t.attribute("type")) {
            Some(_) => target.and_then(|t| t.keyword("type", diagnostics))?,
            None => ConsoleType::Serial,
        };
        Some(Self { info, chardev: Chardev::from_xml(element, false, diagnostics)?, kind })
    }
}

/// The port that the agent of SPICE opens in the guest.
const SPICE_AGENT: &str = "com.redhat.spice.0";

/// Where libvirt keeps the sockets of channels that it made itself: such a path comes from a running guest's XML, and
/// vmward makes its own in the lib dir.
const LIBVIRT_CHANNELS: &[&str] = &["/var/lib/libvirt/qemu/channel/", "/run/libvirt/qemu/channel/"];

impl Channel {
    /// Reads a `<channel>`.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let info = DeviceInfo::from_xml(element, diagnostics);
        let Some(target) = element.only_child("target", diagnostics) else {
            diagnostics.error(element.span, "<channel> lacks its <target>");
            return None;
        };
        let kind: ChannelType = target.require_keyword("type", diagnostics)?;
        // The state is a running guest's.
        target.get("state");
        let mut chardev = Chardev::from_xml(element, kind == ChannelType::Virtio, diagnostics)?;
        let target = match kind {
            ChannelType::Virtio => {
                let name = target.get("name").map(str::to_owned);
                Self::own_socket(&mut chardev, element, diagnostics);
                // The spice agent looks for this name, and libvirt gives it to SPICE's own channel alone.
                let agent = chardev.backend == Backend::SpiceVmc;
                if let Some(attribute) = target.attribute("name").filter(|n| agent && n.value != SPICE_AGENT)
                {
                    diagnostics.error(
                        attribute.span,
                        format!("a channel of type 'spicevmc' is called '{SPICE_AGENT}'"),
                    );
                }
                ChannelTarget::Virtio(name.or_else(|| agent.then(|| SPICE_AGENT.to_owned())))
            }
            ChannelType::Guestfwd => {
                let text = target.require("address", diagnostics)?;
                let Ok(address) = text.parse() else {
                    diagnostics.error(target.span, format!("'{text}' is not an IP address"));
                    return None;
                };
                target.require("port", diagnostics)?;
                ChannelTarget::Guestfwd { address, port: target.number("port", diagnostics)? }
            }
        };
        Some(Self { info, chardev, target })
    }

    fn own_socket(chardev: &mut Chardev, element: &Element, diagnostics: &mut Diagnostics) {
        if let Backend::Unix { mode, path, reconnect } = &mut chardev.backend
            && let Some(given) = path.as_ref().and_then(|p| p.to_str())
            && !given.ends_with('/')
            && LIBVIRT_CHANNELS.iter().any(|dir| given.starts_with(dir) && given.contains("/domain-"))
        {
            if reconnect.is_some_and(|seconds| seconds > 0) {
                diagnostics.error(element.span, "a socket that vmward makes itself cannot reconnect");
            }
            (*mode, *path) = (SocketMode::Bind, None);
        }
    }
}
