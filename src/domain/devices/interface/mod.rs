//! `<interface>`.

mod passt;
mod source;

use crate::domain::DeviceInfo;
use crate::xml::{Diagnostics, Element, Span, keywords};

use super::rom::Rom;
use super::virtio::VirtioOptions;

pub use passt::{ForwardProtocol, Passt, PortForward, PortRange};
pub use source::{DirectMode, InterfaceType, IpNetwork, Source, TunnelEnd, UserBackend, VhostUserMode};

keywords! {
    /// Network cards, by the names that libvirt and QEMU use.
    pub enum InterfaceModel {
        /// virtio-net.
        Virtio = "virtio",
        /// virtio-net, 0.9 and 1.0.
        VirtioTransitional = "virtio-transitional",
        /// virtio-net, 1.0 alone.
        VirtioNonTransitional = "virtio-non-transitional",
        /// Intel 82540EM.
        E1000 = "e1000",
        /// Intel 82574L.
        E1000e = "e1000e",
        /// Intel 82576.
        Igb = "igb",
        /// Realtek 8139.
        Rtl8139 = "rtl8139",
        /// NE2000 on PCI.
        Ne2kPci = "ne2k_pci",
        /// AMD PCnet.
        Pcnet = "pcnet",
        /// VMware vmxnet3.
        Vmxnet3 = "vmxnet3",
        /// Intel 82544GC.
        E1000Gc = "e1000-82544gc",
        /// Intel 82545EM.
        E1000Em = "e1000-82545em",
        /// DEC 21143.
        Tulip = "tulip",
        /// Intel i82550.
        I82550 = "i82550",
        /// Intel i82551.
        I82551 = "i82551",
        /// Intel i82557a.
        I82557a = "i82557a",
        /// Intel i82557b.
        I82557b = "i82557b",
        /// Intel i82557c.
        I82557c = "i82557c",
        /// Intel i82558a.
        I82558a = "i82558a",
        /// Intel i82558b.
        I82558b = "i82558b",
        /// Intel i82559a.
        I82559a = "i82559a",
        /// Intel i82559b.
        I82559b = "i82559b",
        /// Intel i82559c.
        I82559c = "i82559c",
        /// Intel i82559er.
        I82559er = "i82559er",
        /// Intel i82562.
        I82562 = "i82562",
        /// Intel i82801.
        I82801 = "i82801",
        /// A USB card.
        UsbNet = "usb-net",
    }
}

impl InterfaceModel {
    /// Whether it is virtio-net.
    pub fn is_virtio(self) -> bool {
        matches!(self, Self::Virtio | Self::VirtioTransitional | Self::VirtioNonTransitional)
    }
}

keywords! {
    /// Who moves a virtio-net card's packets.
    pub enum NetBackend {
        /// The kernel.
        Vhost = "vhost",
        /// QEMU.
        Qemu = "qemu",
    }
}

keywords! {
    /// How virtio-net sends.
    pub enum TxMode {
        /// In a thread of its own.
        Iothread = "iothread",
        /// In QEMU's main loop, after a while.
        Timer = "timer",
    }
}

keywords! {
    /// The state of a cable.
    pub enum LinkState {
        /// Plugged.
        Up = "up",
        /// Unplugged.
        Down = "down",
    }
}

/// `<driver>` of a virtio card.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InterfaceDriver {
    /// Who moves packets; vhost where it is possible.
    pub name: Option<NetBackend>,
    /// How it sends.
    pub tx_mode: Option<TxMode>,
    /// Whether I/O is handled outside the virtual CPU's thread.
    pub ioeventfd: Option<bool>,
    /// Whether notifications are suppressed by index.
    pub event_idx: Option<bool>,
    /// The number of queue pairs.
    pub queues: Option<u32>,
    /// The length of the receive queue.
    pub rx_queue_size: Option<u32>,
    /// The length of the send queue.
    pub tx_queue_size: Option<u32>,
    /// Receive-side scaling.
    pub rss: Option<bool>,
    /// Whether the hash is reported.
    pub rss_hash_report: Option<bool>,
    /// Offloads, by QEMU's property names.
    pub offloads: Vec<(&'static str, bool)>,
    /// What all virtio devices take.
    pub virtio: VirtioOptions,
}

/// `<teaming>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Teaming {
    /// It stays when the other one goes.
    Persistent,
    /// It goes before a migration; the alias is that of the one that stays.
    Transient(String),
}

/// An `<interface>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Where it is and what it is called.
    pub info: DeviceInfo,
    /// What it is connected to.
    pub source: Source,
    /// The guest's MAC address; assigned if the XML has none.
    pub mac: Option<[u8; 6]>,
    /// The card.
    pub model: InterfaceModel,
    /// `<driver>`.
    pub driver: InterfaceDriver,
    /// `<target dev=>`: the tap device's name.
    pub target: Option<String>,
    /// `<target managed='no'>`: the tap device is somebody else's.
    pub existing_target: bool,
    /// `<link>`.
    pub link: Option<LinkState>,
    /// `<mtu>`.
    pub mtu: Option<u32>,
    /// `<tune><sndbuf>`: the send buffer of the tap device in bytes.
    pub sndbuf: Option<u64>,
    /// `<rom>`.
    pub rom: Rom,
    /// `<teaming>`.
    pub teaming: Option<Teaming>,
    /// What only the host's side would do and vmward does not provide: words for each, with its place.
    pub host_only: Vec<(&'static str, Span)>,
}

impl Interface {
    /// Reads an `<interface>`.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let info = DeviceInfo::from_xml(element, diagnostics);
        let kind: InterfaceType = element.require_keyword("type", diagnostics)?;
        // What libvirt takes where no model is named.
        let model = match element.only_child("model", diagnostics) {
            Some(model) => model.require_keyword("type", diagnostics),
            None if kind == InterfaceType::Vdpa => Some(InterfaceModel::Virtio),
            None => Some(InterfaceModel::Rtl8139),
        };
        let mac = match element.only_child("mac", diagnostics) {
            Some(mac) => Some(read_mac(mac, diagnostics)?),
            None => None,
        };
        let source = source::read(kind, element, diagnostics);
        let driver = driver(element, diagnostics);
        let mut interface = Self {
            info,
            source: source?,
            mac,
            model: model?,
            driver,
            target: None,
            existing_target: false,
            link: element
                .only_child("link", diagnostics)
                .and_then(|link| link.require_keyword("state", diagnostics)),
            mtu: element.only_child("mtu", diagnostics).and_then(|mtu| mtu.number("size", diagnostics)),
            sndbuf: None,
            rom: Rom::of_device(element, diagnostics),
            teaming: None,
            host_only: Vec::new(),
        };
        // Xen's driver domains: QEMU is where the card is, whatever this says.
        if let Some(backend) = element.child("backenddomain") {
            backend.mark_read();
        }
        interface.read_target(element, diagnostics);
        interface.read_teaming(element, diagnostics);
        interface.read_host_side(element, diagnostics);
        interface.check(element, diagnostics);
        Some(interface)
    }

    /// Whether it is a device of the host.
    pub fn is_hostdev(&self) -> bool {
        matches!(self.source, Source::Hostdev(_))
    }

    fn read_target(&mut self, element: &Element, diagnostics: &mut Diagnostics) {
        let Some(target) = element.only_child("target", diagnostics) else { return };
        self.existing_target = target.yes_no("managed", diagnostics) == Some(false);
        // Names that libvirt made up itself come from a running guest's XML; a new one is made at each start.
        let made_up = ["vnet", "macvtap", "macvlan"];
        let is_made_up = |name: &str| made_up.iter().any(|p| name.starts_with(p)) && !self.existing_target;
        self.target =
            target.get("dev").filter(|name| !name.is_empty() && !is_made_up(name)).map(str::to_owned);
        if !self.existing_target {
            return;
        }
        if self.source != Source::Ethernet {
            diagnostics.error(target.span, "managed='no' is for interfaces of type 'ethernet'");
        } else if self.target.is_none() {
            diagnostics.error(target.span, "managed='no' needs the name of the tap device (dev='...')");
        }
    }

    fn read_teaming(&mut self, element: &Element, diagnostics: &mut Diagnostics) {
        let Some(teaming) = element.only_child("teaming", diagnostics) else { return };
        self.teaming = match teaming.require("type", diagnostics) {
            Some("persistent") => Some(Teaming::Persistent),
            Some("transient") => {
                teaming.require("persistent", diagnostics).map(|alias| Teaming::Transient(alias.to_owned()))
            }
            Some(other) => {
                diagnostics.error(teaming.span, format!("'{other}' is not a type of teaming"));
                None
            }
            None => None,
        };
    }

    /// What the host's network would have to do.
    fn read_host_side(&mut self, element: &Element, diagnostics: &mut Diagnostics) {
        for (name, what) in [
            ("script", "interface scripts"),
            ("downscript", "interface scripts"),
            ("bandwidth", "bandwidth limits of interfaces"),
            ("vlan", "VLAN tags of interfaces"),
            ("virtualport", "virtual ports of switches"),
            ("filterref", "network filters"),
            ("port", "isolated ports of bridges"),
            ("coalesce", "coalescing of interfaces"),
            ("guest", "names of interfaces in containers"),
        ] {
            if let Some(child) = element.child(name) {
                child.mark_read();
                self.host_only.push((what, child.span));
            }
        }
        if let Some(source) = element.child("source") {
            for child in source.children.iter().filter(|c| c.name == "ip" || c.name == "route") {
                child.mark_read();
                self.host_only.push(("addresses of the host's end of interfaces", child.span));
            }
        }
        if let Some(trust) = element.attribute("trustGuestRxFilters").filter(|a| a.value == "yes") {
            self.host_only.push(("trusting the guest's receive filters", trust.span));
        }
        if let Some(backend) = element.child("backend") {
            for name in ["tap", "vhost"] {
                if let Some(attribute) = backend.attribute(name) {
                    self.host_only
                        .push(("other device nodes than the kernel's for tap and vhost", attribute.span));
                }
            }
        }
        if let Some(tune) = element.only_child("tune", diagnostics) {
            self.sndbuf = tune.child_text("sndbuf").and_then(|text| text.parse().ok());
        }
    }

    fn check(&self, element: &Element, diagnostics: &mut Diagnostics) {
        use Source as S;
        if let Some(mtu) = element.child("mtu")
            && !matches!(
                self.source,
                S::Ethernet | S::Bridge(_) | S::Network(_) | S::VhostUser { .. } | S::Direct { .. }
            )
        {
            diagnostics.error(mtu.span, "interfaces of this type have no MTU of their own");
        }
        if let Some(coalesce) = element.child("coalesce")
            && !matches!(self.source, S::Ethernet | S::Bridge(_) | S::Network(_))
        {
            diagnostics.error(coalesce.span, "interfaces of this type do not coalesce interrupts");
        }
        if self.model.is_virtio() {
            return;
        }
        if let Some(driver) =
            element.child("driver").filter(|d| d.attributes.iter().any(|a| a.name != "name"))
        {
            diagnostics.warning(
                driver.span,
                format!("this <driver> is for virtio cards, it changes nothing on a {}", self.model.as_str()),
            );
        }
    }
}

fn read_mac(element: &Element, diagnostics: &mut Diagnostics) -> Option<[u8; 6]> {
    // `type` and `check` are about VMware's generated addresses.
    element.get("type");
    element.get("check");
    let text = element.require("address", diagnostics)?;
    let span = element.attribute("address").map_or(element.span, |a| a.span);
    let bytes: Option<Vec<u8>> = text.split(':').map(|b| u8::from_str_radix(b, 16).ok()).collect();
    let Some(mac) = bytes.and_then(|b| <[u8; 6]>::try_from(b).ok()) else {
        diagnostics
            .error(span, format!("'{text}' is not a MAC address"))
            .hint("six pairs of hexadecimal digits with colons between: 52:54:00:12:34:56");
        return None;
    };
    if mac[0] & 1 == 1 {
        diagnostics.error(span, format!("'{text}' is a multicast address, a card needs a unicast one"));
        return None;
    }
    Some(mac)
}

fn driver(element: &Element, diagnostics: &mut Diagnostics) -> InterfaceDriver {
    let Some(driver) = element.only_child("driver", diagnostics) else { return InterfaceDriver::default() };
    let mut result = InterfaceDriver {
        name: driver.keyword("name", diagnostics),
        tx_mode: driver.keyword("txmode", diagnostics),
        ioeventfd: driver.on_off("ioeventfd", diagnostics),
        event_idx: driver.on_off("event_idx", diagnostics),
        queues: driver.number("queues", diagnostics),
        rx_queue_size: driver.number("rx_queue_size", diagnostics),
        tx_queue_size: driver.number("tx_queue_size", diagnostics),
        rss: driver.on_off("rss", diagnostics),
        rss_hash_report: driver.on_off("rss_hash_report", diagnostics),
        offloads: Vec::new(),
        virtio: VirtioOptions::from_xml(driver, diagnostics),
    };
    for (name, value, span) in [
        ("rx_queue_size", result.rx_queue_size, driver.attribute("rx_queue_size").map(|a| a.span)),
        ("tx_queue_size", result.tx_queue_size, driver.attribute("tx_queue_size").map(|a| a.span)),
    ] {
        if let (Some(size), Some(span)) = (value, span)
            && !size.is_power_of_two()
        {
            diagnostics.error(span, format!("{name} has to be a power of two"));
        }
    }
    for (side, table) in [("host", HOST_OFFLOADS), ("guest", GUEST_OFFLOADS)] {
        let Some(offloads) = driver.only_child(side, diagnostics) else { continue };
        for (name, property) in table {
            if let Some(on) = offloads.on_off(name, diagnostics) {
                result.offloads.push((property, on));
            }
        }
    }
    result
}

/// Offloads of the host's side: the XML's name and QEMU's property.
const HOST_OFFLOADS: &[(&str, &str)] = &[
    ("csum", "csum"),
    ("gso", "gso"),
    ("tso4", "host_tso4"),
    ("tso6", "host_tso6"),
    ("ecn", "host_ecn"),
    ("ufo", "host_ufo"),
    ("mrg_rxbuf", "mrg_rxbuf"),
];

/// Offloads of the guest's side.
const GUEST_OFFLOADS: &[(&str, &str)] = &[
    ("csum", "guest_csum"),
    ("tso4", "guest_tso4"),
    ("tso6", "guest_tso6"),
    ("ecn", "guest_ecn"),
    ("ufo", "guest_ufo"),
];
