//! What an interface is connected to.

use std::path::PathBuf;

use crate::domain::address::PciAddress;
use crate::xml::{Diagnostics, Element, keywords};

use crate::domain::devices::chardev::{SocketMode, reconnect};

use super::Passt;

keywords! {
    /// How QEMU reaches a user network.
    pub enum UserBackend {
        /// QEMU's own.
        Slirp = "default",
        /// passt.
        Passt = "passt",
    }
}

keywords! {
    /// Which end of a vhost-user socket QEMU is.
    pub enum VhostUserMode {
        /// QEMU listens.
        Server = "server",
        /// QEMU connects.
        Client = "client",
    }
}

keywords! {
    /// How macvtap devices on one interface of the host reach each other.
    pub enum DirectMode {
        /// Through a switch outside the host.
        Vepa = "vepa",
        /// Directly.
        Bridge = "bridge",
        /// Not at all.
        Private = "private",
        /// There is but one, which has the interface to itself.
        Passthrough = "passthrough",
    }
}

keywords! {
    /// The `type` of an interface.
    pub enum InterfaceType {
        /// Through QEMU itself or passt, without rights on the host.
        User = "user",
        /// A tap device.
        Ethernet = "ethernet",
        /// A tap device on a bridge.
        Bridge = "bridge",
        /// A network of libvirt's.
        Network = "network",
        /// A macvtap device.
        Direct = "direct",
        /// A vhost-user process.
        VhostUser = "vhostuser",
        /// A vDPA device.
        Vdpa = "vdpa",
        /// A tunnel to another guest, listening.
        Server = "server",
        /// A tunnel to another guest, connecting.
        Client = "client",
        /// A tunnel to other guests by multicast.
        Mcast = "mcast",
        /// A tunnel to another guest by UDP.
        Udp = "udp",
        /// A device of the host.
        Hostdev = "hostdev",
    }
}

/// An address with its prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpNetwork {
    /// The address.
    pub address: std::net::IpAddr,
    /// The number of its leading bits that name the network.
    pub prefix: Option<u8>,
}

/// What an interface is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// QEMU's own user network.
    User {
        /// `<ip>`s: the addresses that the guest gets.
        addresses: Vec<IpNetwork>,
    },
    /// passt.
    Passt(Passt),
    /// A tap device.
    Ethernet,
    /// A tap device on that bridge.
    Bridge(String),
    /// A network of libvirt's.
    Network(String),
    /// A macvtap device.
    Direct {
        /// The interface of the host that it is on.
        device: String,
        /// How it reaches others there.
        mode: DirectMode,
    },
    /// A vhost-user process.
    VhostUser {
        /// Its socket.
        path: PathBuf,
        /// Whether QEMU listens.
        listen: bool,
        /// Seconds until a lost connection is tried again.
        reconnect: Option<u32>,
    },
    /// A vDPA device.
    Vdpa(PathBuf),
    /// A tunnel, listening.
    Server(TunnelEnd),
    /// A tunnel, connecting.
    Client(TunnelEnd),
    /// A multicast tunnel.
    Mcast(TunnelEnd),
    /// A UDP tunnel.
    Udp {
        /// The other end.
        remote: TunnelEnd,
        /// This end.
        local: TunnelEnd,
    },
    /// A PCI device of the host.
    Hostdev(PciAddress),
}

/// An end of a tunnel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TunnelEnd {
    /// Its address; empty: all.
    pub address: String,
    /// Its port.
    pub port: u16,
}

/// A name that has to be in `<source>`.
fn source_name(element: &Element, name: &str, diagnostics: &mut Diagnostics) -> Option<String> {
    match element.only_child("source", diagnostics) {
        Some(source) => source.require(name, diagnostics).map(str::to_owned),
        None => {
            diagnostics
                .error(element.span, format!("an interface of this type needs its <source {name}='...'/>"));
            None
        }
    }
}

pub(super) fn read(kind: InterfaceType, element: &Element, diagnostics: &mut Diagnostics) -> Option<Source> {
    match kind {
        InterfaceType::User => user(element, diagnostics),
        InterfaceType::Ethernet => {
            element.only_child("source", diagnostics);
            Some(Source::Ethernet)
        }
        InterfaceType::Bridge => source_name(element, "bridge", diagnostics).map(Source::Bridge),
        InterfaceType::Network => {
            let name = source_name(element, "network", diagnostics)?;
            // Which part of the network: its definition, which vmward does not have, decides what they mean.
            if let Some(source) = element.child("source") {
                source.get("portgroup");
                source.get("portid");
                source.get("bridge");
            }
            Some(Source::Network(name))
        }
        InterfaceType::Direct => {
            let device = source_name(element, "dev", diagnostics)?;
            let mode = element.child("source").and_then(|source| source.keyword("mode", diagnostics));
            Some(Source::Direct { device, mode: mode.unwrap_or(DirectMode::Vepa) })
        }
        InterfaceType::VhostUser => vhost_user(element, diagnostics),
        InterfaceType::Vdpa => source_name(element, "dev", diagnostics).map(|d| Source::Vdpa(d.into())),
        InterfaceType::Server => tunnel_end(element, "source", diagnostics).map(Source::Server),
        InterfaceType::Client => tunnel_end(element, "source", diagnostics).map(Source::Client),
        InterfaceType::Mcast => tunnel_end(element, "source", diagnostics).map(Source::Mcast),
        InterfaceType::Udp => {
            let remote = tunnel_end(element, "source", diagnostics)?;
            let local = tunnel_end(element.child("source")?, "local", diagnostics)?;
            Some(Source::Udp { remote, local })
        }
        InterfaceType::Hostdev => {
            // Only `managed='yes'` unbinds the device from its driver; without KVM's help there is no device to give.
            element.yes_no("managed", diagnostics);
            let source = element.only_child("source", diagnostics)?;
            let address = source.only_child("address", diagnostics)?;
            address.get("type");
            PciAddress::from_xml(address, diagnostics).map(Source::Hostdev)
        }
    }
}

fn user(element: &Element, diagnostics: &mut Diagnostics) -> Option<Source> {
    let backend = match element.only_child("backend", diagnostics) {
        Some(backend) => match backend.keyword("type", diagnostics) {
            Some(UserBackend::Passt) => UserBackend::Passt,
            _ => UserBackend::Slirp,
        },
        None => UserBackend::Slirp,
    };
    let addresses: Vec<_> = element
        .children("ip")
        .filter_map(|ip| {
            ip.get("family");
            let text = ip.require("address", diagnostics)?;
            let Ok(address) = text.parse() else {
                diagnostics.error(ip.span, format!("'{text}' is not an IP address"));
                return None;
            };
            Some(IpNetwork { address, prefix: ip.number("prefix", diagnostics) })
        })
        .collect();
    for family in [true, false] {
        if addresses.iter().filter(|a| a.address.is_ipv4() == family).count() > 1 {
            diagnostics.error(element.span, "a user network has one IPv4 and one IPv6 <ip> at most");
        }
    }
    if backend == UserBackend::Passt {
        return Some(Source::Passt(Passt::of_interface(element, addresses, diagnostics)));
    }
    if let Some(forward) = element.child("portForward") {
        diagnostics
            .error(forward.span, "QEMU's own user network has no <portForward>")
            .hint("add <backend type='passt'/>");
        forward.mark_read();
    }
    Some(Source::User { addresses })
}

fn vhost_user(element: &Element, diagnostics: &mut Diagnostics) -> Option<Source> {
    let Some(source) = element.only_child("source", diagnostics) else {
        diagnostics.error(element.span, "a vhost-user interface needs its <source>");
        return None;
    };
    match source.require("type", diagnostics) {
        Some("unix") | None => {}
        Some(_) => {
            diagnostics.error(source.span, "a vhost-user interface is reached through a unix socket");
        }
    }
    let mode: Option<VhostUserMode> = source.require_keyword("mode", diagnostics);
    let listen = mode == Some(VhostUserMode::Server);
    let socket_mode = if listen { SocketMode::Bind } else { SocketMode::Connect };
    let path = source.require("path", diagnostics)?.into();
    Some(Source::VhostUser { path, listen, reconnect: reconnect(source, socket_mode, diagnostics) })
}

fn tunnel_end(parent: &Element, name: &str, diagnostics: &mut Diagnostics) -> Option<TunnelEnd> {
    let Some(end) = parent.only_child(name, diagnostics) else {
        diagnostics.error(parent.span, format!("<{}> lacks its <{name}>", parent.name));
        return None;
    };
    end.require("port", diagnostics);
    Some(TunnelEnd {
        address: end.get("address").unwrap_or_default().to_owned(),
        port: end.number("port", diagnostics)?,
    })
}
