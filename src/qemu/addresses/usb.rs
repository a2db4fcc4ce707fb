//! USB ports.

use crate::domain::devices::controller::{UsbController, UsbModel};
use crate::domain::devices::hub::Hub;
use crate::domain::disk::Disk;
use crate::domain::{Address, DeviceInfo, Domain, UsbAddress};
use crate::qemu::devices;
use crate::xml::{Diagnostics, Span};

use super::address_of;

/// Ports of QEMU's hub.
const HUB_PORTS: u32 = 8;
/// QEMU takes ports so deep.
const DEEPEST: usize = 4;

/// A controller's root, or a hub.
#[derive(Debug, Clone)]
struct PortSet {
    ports: Vec<Port>,
}

#[derive(Debug, Clone, Default)]
struct Port {
    holder: Option<Span>,
    hub: Option<PortSet>,
}

impl PortSet {
    fn new(count: u32) -> Self {
        Self { ports: vec![Port::default(); count as usize] }
    }

    fn at(&mut self, path: &[u32]) -> Option<&mut Port> {
        let (first, rest) = path.split_first()?;
        let port = self.ports.get_mut(usize::try_from(*first).ok()?.checked_sub(1)?)?;
        if rest.is_empty() { Some(port) } else { port.hub.as_mut()?.at(rest) }
    }

    /// The first free port: of this one, else of the hubs in its ports.
    fn free(&self, depth: usize) -> Option<Vec<u32>> {
        if let Some(n) = self.ports.iter().position(|p| p.holder.is_none()) {
            return Some(vec![n as u32 + 1]);
        }
        if depth + 1 >= DEEPEST {
            return None;
        }
        self.ports.iter().enumerate().find_map(|(n, port)| {
            let mut path = vec![n as u32 + 1];
            path.extend(port.hub.as_ref()?.free(depth + 1)?);
            Some(path)
        })
    }
}

/// The buses of a guest by their number.
#[derive(Debug, Default)]
struct UsbBuses {
    buses: Vec<(u32, PortSet)>,
}

/// The ports at the root of a controller.
fn root_ports(controller: &UsbController) -> u32 {
    match controller.model {
        Some(UsbModel::Piix3Uhci | UsbModel::Piix4Uhci | UsbModel::Vt82c686bUhci) | None => 2,
        Some(UsbModel::Ehci | UsbModel::Ich9Ehci1) => 6,
        Some(UsbModel::PciOhci) => 3,
        Some(UsbModel::NecXhci | UsbModel::QemuXhci) => controller.ports.unwrap_or(4),
        // They share the ports of their master.
        Some(UsbModel::Ich9Uhci1 | UsbModel::Ich9Uhci2 | UsbModel::Ich9Uhci3 | UsbModel::None) => 0,
    }
}

impl UsbBuses {
    fn new(domain: &Domain) -> Self {
        let mut buses = Self::default();
        for controller in &domain.devices.controllers {
            let Some(usb) = controller.usb() else { continue };
            let ports = root_ports(usb);
            if ports > 0 {
                buses.buses.push((controller.number(), PortSet::new(ports)));
            }
        }
        buses.buses.sort_by_key(|(number, _)| *number);
        buses
    }

    fn port_count(&self) -> u32 {
        self.buses.iter().map(|(_, set)| set.ports.len() as u32).sum()
    }

    fn reserve(&mut self, info: &DeviceInfo, hub: bool, diagnostics: &mut Diagnostics) {
        let Some(address) = address_of!(info, Usb).filter(|a| !a.port.is_empty()) else { return };
        let at = info.address_span.unwrap_or(info.span);
        let Some((_, set)) = self.buses.iter_mut().find(|(number, _)| *number == address.bus) else {
            diagnostics.error(at, format!("the guest has no USB controller {}", address.bus));
            return;
        };
        let Some(port) = set.at(&address.port) else {
            diagnostics
                .error(at, format!("USB controller {} has no port {}", address.bus, address.port_path()));
            return;
        };
        if let Some(first) = port.holder {
            diagnostics
                .error(
                    at,
                    format!("two devices are at USB port {} of bus {}", address.port_path(), address.bus),
                )
                .related(first, "the first one");
            return;
        }
        port.holder = Some(at);
        port.hub = hub.then(|| PortSet::new(HUB_PORTS));
    }

    /// Gives a device a port. `true` if it has one now.
    fn next(&mut self, info: &mut DeviceInfo, hub: bool) -> bool {
        let given = address_of!(info, Usb);
        if given.as_ref().is_some_and(|a| !a.port.is_empty()) {
            return true;
        }
        for (number, set) in &mut self.buses {
            if given.as_ref().is_some_and(|a| a.bus != *number) {
                continue;
            }
            let Some(path) = set.free(0) else { continue };
            if let Some(port) = set.at(&path) {
                port.holder = Some(info.span);
                port.hub = hub.then(|| PortSet::new(HUB_PORTS));
            }
            info.address = Some(Address::Usb(UsbAddress { bus: *number, port: path }));
            return true;
        }
        false
    }
}

/// Whether the guest has USB at all.
fn has_usb(domain: &Domain) -> bool {
    domain.devices.controllers.iter().any(|c| c.usb().is_some_and(|u| u.model != Some(UsbModel::None)))
}

pub(super) fn assign(domain: &mut Domain, diagnostics: &mut Diagnostics) {
    let usb = has_usb(domain);
    let none = domain.devices.controllers.iter().find(|c| c.usb().is_some() && !usb).map(|c| c.info.span);
    let mut buses = UsbBuses::new(domain);
    let count = devices::usb_order(&mut domain.devices).count() as u32 + domain.devices.hubs.len() as u32;
    if !usb {
        let spans: Vec<_> = devices::usb_order(&mut domain.devices).map(|d| d.info().span).collect();
        for span in spans.into_iter().chain(domain.devices.hubs.iter().map(|h| h.info.span)) {
            let error = diagnostics.error(span, "the guest has no USB, but this USB device");
            if let Some(none) = none {
                error.related(none, "USB is switched off here");
            }
        }
        return;
    }
    // A hub takes one port and gives eight.
    let ports = buses.port_count() + domain.devices.hubs.len() as u32 * HUB_PORTS;
    if count > ports {
        let missing = (count - ports + 1).div_ceil(HUB_PORTS - 1);
        domain.devices.hubs.extend((0..missing).map(|_| Hub::default()));
    }
    for hub in &domain.devices.hubs {
        buses.reserve(&hub.info, true, diagnostics);
    }
    for device in devices::usb_order(&mut domain.devices) {
        buses.reserve(device.info(), false, diagnostics);
    }
    let mut hubs = std::mem::take(&mut domain.devices.hubs);
    for hub in &mut hubs {
        if !buses.next(&mut hub.info, true) {
            diagnostics.error(hub.info.span, "no USB controller has a free port for this hub");
        }
    }
    domain.devices.hubs = hubs;
    for device in devices::usb_order(&mut domain.devices) {
        if !buses.next(device.info_mut(), false) {
            diagnostics
                .error(device.info().span, "no USB controller has a free port for this device")
                .hint("add <controller type='usb' model='qemu-xhci' ports='15'/>");
        }
    }
}

/// Hotplug: the first free port.
pub(super) fn assign_disk(disk: &mut Disk, running: &Domain, diagnostics: &mut Diagnostics) {
    let mut domain = running.clone();
    let mut buses = UsbBuses::new(&domain);
    for hub in &domain.devices.hubs {
        buses.reserve(&hub.info, true, diagnostics);
    }
    for device in devices::usb_order(&mut domain.devices) {
        buses.reserve(device.info(), false, diagnostics);
    }
    buses.reserve(&disk.info, false, diagnostics);
    if !buses.next(&mut disk.info, false) {
        diagnostics
            .error(disk.target_span, "no USB controller of the guest has a free port")
            .hint("start the guest with <controller type='usb' model='qemu-xhci' ports='15'/>");
    }
}
