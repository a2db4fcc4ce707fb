//! Places on disk controllers.

use std::collections::HashMap;

use crate::domain::devices::controller::{ControllerType, ScsiModel};
use crate::domain::disk::{Bus, Disk};
use crate::domain::{Address, Domain, DriveAddress};
use crate::xml::{Diagnostics, Span};

use super::address_of;

/// Units of a wide SCSI bus.
const SCSI_UNITS: u32 = 16;
/// libvirt fills a controller with this many disks by their names, and then takes the next one.
const SCSI_UNITS_BY_NAME: u32 = 7;
const SCSI_CONTROLLER_UNIT: u32 = 7;
/// Ports of an AHCI controller.
const SATA_PORTS: u32 = 6;

/// The place that the name of a disk stands for.
fn by_name(disk: &Disk) -> DriveAddress {
    let index = disk.index();
    let place = |controller, bus, unit| DriveAddress { controller, bus, target: 0, unit };
    match disk.bus {
        Bus::Scsi => place(index / SCSI_UNITS_BY_NAME, 0, index % SCSI_UNITS_BY_NAME),
        // Two buses with two drives each.
        Bus::Ide => place(index / 4, (index % 4) / 2, index % 2),
        Bus::Sata => place(index / SATA_PORTS, 0, index % SATA_PORTS),
        Bus::Fdc => place(index / 2, 0, index % 2),
        Bus::Virtio | Bus::Usb => DriveAddress::default(),
    }
}

/// The place that a disk is given, or would be.
pub(super) fn wanted(disk: &Disk) -> DriveAddress {
    address_of!(disk.info, Drive).unwrap_or_else(|| by_name(disk))
}

/// Whether disks of that bus have drive addresses.
fn has_drive_address(bus: Bus) -> bool {
    matches!(bus, Bus::Scsi | Bus::Ide | Bus::Sata | Bus::Fdc)
}

pub(super) fn assign(domain: &mut Domain, diagnostics: &mut Diagnostics) {
    let mut taken: HashMap<(&'static str, DriveAddress), Span> = HashMap::new();
    let mut disks = std::mem::take(&mut domain.devices.disks);
    for disk in disks.iter_mut().filter(|d| has_drive_address(d.bus)) {
        let address = wanted(disk);
        let given = disk.info.address.is_some();
        disk.info.address.get_or_insert(Address::Drive(address));
        let at = disk.info.address_span.unwrap_or(disk.target_span);
        if given {
            check(disk.bus, &address, at, domain, diagnostics);
        }
        if let Some(first) = taken.insert((disk.bus.as_str(), address), at) {
            diagnostics
                .error(
                    at,
                    format!(
                        "two disks are at {} controller {}, bus {}, target {}, unit {}",
                        disk.bus.as_str(),
                        address.controller,
                        address.bus,
                        address.target,
                        address.unit
                    ),
                )
                .related(first, "the first one");
        }
    }
    domain.devices.disks = disks;
    assign_hostdevs(domain, &mut taken, diagnostics);
}

/// SCSI units of the host: where they are told to be, or on the first free unit of the first controller.
fn assign_hostdevs(
    domain: &mut Domain,
    taken: &mut HashMap<(&'static str, DriveAddress), Span>,
    diagnostics: &mut Diagnostics,
) {
    let scsi = Bus::Scsi.as_str();
    let mut hostdevs = std::mem::take(&mut domain.devices.hostdevs);
    for hostdev in hostdevs.iter().filter(|h| h.on_scsi()) {
        let Some(address) = address_of!(hostdev.info, Drive) else { continue };
        let at = hostdev.info.address_span.unwrap_or(hostdev.info.span);
        check(Bus::Scsi, &address, at, domain, diagnostics);
        if let Some(first) = taken.insert((scsi, address), at) {
            diagnostics.error(at, "this SCSI address is taken").related(first, "by this device");
        }
    }
    for hostdev in hostdevs.iter_mut().filter(|h| h.on_scsi() && h.info.address.is_none()) {
        let free = (0..).flat_map(|controller| {
            (0..SCSI_UNITS_BY_NAME).map(move |unit| DriveAddress { controller, bus: 0, target: 0, unit })
        });
        let mut free = free.filter(|address| !taken.contains_key(&(scsi, *address)));
        if let Some(address) = free.next() {
            taken.insert((scsi, address), hostdev.info.span);
            hostdev.info.address = Some(Address::Drive(address));
        }
    }
    domain.devices.hostdevs = hostdevs;
}

/// The limits of a bus.
fn check(bus: Bus, address: &DriveAddress, at: Span, domain: &Domain, diagnostics: &mut Diagnostics) {
    let mut refuse = |what: &str| {
        diagnostics.error(at, format!("this drive address is not possible: {what}"));
    };
    match bus {
        Bus::Ide => {
            if address.controller > 0 {
                refuse("there is only one IDE controller");
            }
            if address.bus > 1 {
                refuse("an IDE controller has the buses 0 and 1");
            }
            if address.target > 0 {
                refuse("IDE has only target 0");
            }
            if address.unit > 1 {
                refuse("an IDE bus has the units 0 and 1");
            }
        }
        Bus::Fdc => {
            if address.controller > 0 || address.bus > 0 || address.target > 0 || address.unit > 1 {
                refuse("there is one floppy controller with the units 0 and 1");
            }
        }
        Bus::Sata => {
            if address.bus > 0 || address.target > 0 {
                refuse("SATA has only bus 0 and target 0");
            }
            if address.unit >= SATA_PORTS {
                refuse("a SATA controller has the units 0 to 5");
            }
        }
        Bus::Scsi => {
            // QEMU's limits: virtio-scsi has 256 targets with 16384 units each, LSI one target with 8 units.
            match scsi_model(domain, address.controller) {
                Some(ScsiModel::LsiLogic) => {
                    if address.target > 0 || address.bus > 0 {
                        refuse("an lsilogic controller has only bus 0 and target 0");
                    }
                    if address.unit == SCSI_CONTROLLER_UNIT || address.unit >= SCSI_UNITS {
                        refuse("an lsilogic controller has the units 0 to 6 and 8 to 15");
                    }
                }
                Some(model) if model.virtio().is_some() => {
                    if address.bus > 0 {
                        refuse("virtio-scsi has only bus 0");
                    }
                    if address.target > 255 {
                        refuse("virtio-scsi has the targets 0 to 255");
                    }
                    if address.unit > 16383 {
                        refuse("a target of virtio-scsi has the units 0 to 16383");
                    }
                }
                _ => {
                    if address.bus > 0 || address.unit >= SCSI_UNITS {
                        refuse("a SCSI controller has only bus 0, and the units 0 to 15");
                    }
                }
            }
        }
        Bus::Virtio | Bus::Usb => {}
    }
}

/// The model of a SCSI controller.
pub(super) fn scsi_model(domain: &Domain, controller: u32) -> Option<ScsiModel> {
    let found = domain.devices.controllers.iter().find(|c| c.is(ControllerType::Scsi, controller))?;
    found.scsi()?.model
}

/// Hotplug: the place of its name if that is free, else the first free unit of a controller that is there.
pub(super) fn assign_scsi_disk(disk: &mut Disk, running: &Domain, diagnostics: &mut Diagnostics) {
    let at = disk.info.address_span.unwrap_or(disk.target_span);
    let holder = |address: &DriveAddress| {
        running.devices.disks.iter().any(|d| d.bus == Bus::Scsi && wanted(d) == *address)
    };
    let there = |address: &DriveAddress| {
        running.devices.controllers.iter().any(|c| c.is(ControllerType::Scsi, address.controller))
    };
    if let Some(given) = address_of!(disk.info, Drive) {
        check(Bus::Scsi, &given, at, running, diagnostics);
        if holder(&given) {
            diagnostics.error(at, "another disk of the guest is at this address");
        }
        if !there(&given) {
            diagnostics.error(at, format!("the guest has no SCSI controller {}", given.controller));
        }
        return;
    }
    let named = by_name(disk);
    let mut controllers: Vec<u32> = running
        .devices
        .controllers
        .iter()
        .filter(|c| c.kind.kind() == ControllerType::Scsi)
        .map(|c| c.number())
        .collect();
    controllers.sort_unstable();
    let units = (0..SCSI_UNITS).filter(|u| *u != SCSI_CONTROLLER_UNIT);
    let all = controllers.iter().flat_map(|&controller| {
        units.clone().map(move |unit| DriveAddress { controller, bus: 0, target: 0, unit })
    });
    let found = std::iter::once(named).chain(all).find(|address| there(address) && !holder(address));
    match found {
        Some(address) => disk.info.address = Some(Address::Drive(address)),
        None => {
            diagnostics
                .error(at, "no SCSI controller of the guest has a free unit")
                .hint("start the guest with one more <controller type='scsi' model='virtio-scsi'/>");
        }
    }
}
