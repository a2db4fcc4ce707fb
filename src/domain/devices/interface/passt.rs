//! A user network by passt: what it is told.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::xml::{Diagnostics, Element, keywords};

use super::IpNetwork;

keywords! {
    /// What is forwarded.
    pub enum ForwardProtocol {
        /// TCP.
        Tcp = "tcp",
        /// UDP.
        Udp = "udp",
    }
}

/// Ports of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortRange {
    /// The first one.
    pub start: u16,
    /// The last one.
    pub end: Option<u16>,
    /// The guest's first one, if it is another.
    pub to: Option<u16>,
    /// These are not forwarded.
    pub exclude: bool,
}

/// `<portForward>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortForward {
    /// What is forwarded.
    pub protocol: ForwardProtocol,
    /// The host's address; `None`: all of its addresses.
    pub address: Option<IpAddr>,
    /// The host's interface.
    pub device: Option<String>,
    /// Its ports; none: all of them.
    pub ranges: Vec<PortRange>,
}

/// `<backend type='passt'>` with what belongs to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Passt {
    /// Where it writes its log.
    pub log: Option<PathBuf>,
    /// The host's interface whose addresses and routes the guest gets.
    pub device: Option<String>,
    /// The guest's addresses.
    pub addresses: Vec<IpNetwork>,
    /// What reaches the guest from outside.
    pub forwards: Vec<PortForward>,
}

impl Passt {
    /// Reads an `<interface>` whose addresses are read already.
    pub(super) fn of_interface(
        interface: &Element,
        addresses: Vec<IpNetwork>,
        diagnostics: &mut Diagnostics,
    ) -> Self {
        let backend = interface.child("backend");
        let source = interface.only_child("source", diagnostics);
        Self {
            log: backend.and_then(|b| b.get("logFile")).map(PathBuf::from),
            device: source.and_then(|s| s.get("dev")).map(str::to_owned),
            addresses,
            forwards: interface.children("portForward").filter_map(|e| forward(e, diagnostics)).collect(),
        }
    }
}

fn forward(element: &Element, diagnostics: &mut Diagnostics) -> Option<PortForward> {
    let address = match element.attribute("address") {
        None => None,
        Some(attribute) => match attribute.value.parse() {
            Ok(address) => Some(address),
            Err(_) => {
                diagnostics.error(attribute.span, format!("'{}' is not an IP address", attribute.value));
                return None;
            }
        },
    };
    Some(PortForward {
        protocol: element.require_keyword("proto", diagnostics)?,
        address,
        device: element.get("dev").map(str::to_owned),
        ranges: element.children("range").filter_map(|r| range(r, diagnostics)).collect(),
    })
}

fn range(element: &Element, diagnostics: &mut Diagnostics) -> Option<PortRange> {
    element.require("start", diagnostics)?;
    let range = PortRange {
        start: element.number("start", diagnostics)?,
        end: element.number("end", diagnostics),
        to: element.number("to", diagnostics),
        exclude: element.yes_no("exclude", diagnostics) == Some(true),
    };
    let length = range.end.map_or(0, |end| i32::from(end) - i32::from(range.start));
    if length < 0 || range.to.is_some_and(|to| i32::from(to) + length > i32::from(u16::MAX)) {
        diagnostics.error(element.span, "these are no ports: they end before they begin, or after 65535");
    }
    if range.exclude && range.to.is_some() {
        diagnostics.error(element.span, "what is excluded is not forwarded to a port");
    }
    Some(range)
}
