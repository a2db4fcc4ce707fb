//! Ports of virtio-serial controllers.

use std::collections::{BTreeMap, HashMap};

use crate::domain::devices::character::{ChannelTarget, ConsoleType};
use crate::domain::devices::controller::{Controller, ControllerKind, VirtioSerialController};
use crate::domain::{Address, DeviceInfo, Domain, VirtioSerialAddress};
use crate::xml::{Diagnostics, Span};

use super::address_of;

/// As many as QEMU gives a controller that names no number.
const DEFAULT_PORTS: u32 = 31;

pub(super) fn assign(domain: &mut Domain, diagnostics: &mut Diagnostics) {
    let devices = &mut domain.devices;
    let mut controllers: BTreeMap<u32, u32> = BTreeMap::new();
    for controller in &devices.controllers {
        if let ControllerKind::VirtioSerial(serial) = &controller.kind {
            controllers.insert(controller.number(), serial.ports.unwrap_or(DEFAULT_PORTS));
        }
    }
    let consoles = devices.consoles.iter_mut().filter(|c| c.kind == ConsoleType::Virtio);
    let channels = devices.channels.iter_mut().filter(|c| matches!(c.target, ChannelTarget::Virtio(_)));
    // The first port of a controller is for a console.
    let mut ports: Vec<(&mut DeviceInfo, u32)> =
        consoles.map(|c| (&mut c.info, 0)).chain(channels.map(|c| (&mut c.info, 1))).collect();

    let mut taken: HashMap<(u32, u32), Span> = HashMap::new();
    for (info, _) in &ports {
        let Some(address) = address_of!(info, VirtioSerial).filter(|a| a.port != 0) else { continue };
        let at = info.address_span.unwrap_or(info.span);
        match controllers.get(&address.controller) {
            Some(count) if address.port >= *count => {
                diagnostics
                    .error(at, format!("virtio-serial controller {} has {count} ports", address.controller));
            }
            _ => {}
        }
        if address.bus != 0 {
            diagnostics.error(at, "a virtio-serial controller has only bus 0");
        }
        if let Some(first) = taken.insert((address.controller, address.port), at) {
            diagnostics
                .error(
                    at,
                    format!(
                        "two devices are at port {} of virtio-serial controller {}",
                        address.port, address.controller
                    ),
                )
                .related(first, "the first one");
        }
    }
    for (info, first) in &mut ports {
        let given = address_of!(info, VirtioSerial);
        if given.is_some_and(|a| a.port != 0) {
            continue;
        }
        let mut candidates =
            controllers.iter().filter(|(index, _)| given.is_none_or(|g| g.controller == **index));
        let found = candidates.find_map(|(index, count)| {
            (*first..*count).find(|port| !taken.contains_key(&(*index, *port))).map(|port| (*index, port))
        });
        let (controller, port) = match (found, given) {
            (Some(found), _) => found,
            (None, Some(given)) => {
                diagnostics.error(
                    info.address_span.unwrap_or(info.span),
                    format!("virtio-serial controller {} has no free port", given.controller),
                );
                continue;
            }
            (None, None) => {
                let index = (0..).find(|n| !controllers.contains_key(n)).unwrap_or_default();
                controllers.insert(index, DEFAULT_PORTS);
                (index, *first)
            }
        };
        taken.insert((controller, port), info.span);
        info.address = Some(Address::VirtioSerial(VirtioSerialAddress { controller, bus: 0, port }));
    }
    for index in controllers.keys() {
        let there = devices
            .controllers
            .iter()
            .any(|c| matches!(c.kind, ControllerKind::VirtioSerial(_)) && c.number() == *index);
        if !there {
            let kind = ControllerKind::VirtioSerial(VirtioSerialController::default());
            devices.controllers.push(Controller::implicit(kind, *index));
        }
    }
    super::implicit::sort(&mut devices.controllers);
}
