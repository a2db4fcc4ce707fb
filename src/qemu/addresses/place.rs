//! From an address to the properties that put a device there.

use serde_json::{Map, Value, json};

use crate::domain::devices::controller::{ControllerType, PciModel, ScsiModel};
use crate::domain::disk::{Bus, Disk};
use crate::domain::{Address, DeviceInfo, Domain, DriveAddress, PciAddress};
use crate::qemu::devices;
use crate::xml::Diagnostics;

use super::{aliases, drive};

pub(super) fn assign(domain: &mut Domain, diagnostics: &mut Diagnostics) {
    // Buses are known by the aliases of controllers, which do not change from here on.
    let known = domain.clone();
    for (_, _, infos) in devices::by_stem(&mut domain.devices) {
        for info in infos {
            of_device(info, &known, None, diagnostics);
        }
    }
    let mut disks = std::mem::take(&mut domain.devices.disks);
    for (disk, known_disk) in disks.iter_mut().zip(&known.devices.disks) {
        of_device(&mut disk.info, &known, Some(known_disk), diagnostics);
    }
    domain.devices.disks = disks;
    for controller in &mut domain.devices.controllers {
        of_device(&mut controller.info, &known, None, diagnostics);
    }
}

/// Fills in what puts a device at its address. A drive address means something else on each kind of controller, so it
/// takes the disk.
pub(super) fn of_device(
    info: &mut DeviceInfo,
    domain: &Domain,
    disk: Option<&Disk>,
    diagnostics: &mut Diagnostics,
) {
    if info.acpi_index.is_some() && !matches!(info.address, Some(Address::Pci(_))) {
        diagnostics.error(info.span, "only PCI devices have an ACPI index");
    }
    let Some(address) = &info.address else { return };
    let place = match address {
        Address::Pci(address) => pci(address, domain),
        Address::Usb(address) => bus(domain, ControllerType::Usb, address.bus).map(|bus| {
            if address.port.is_empty() {
                json!({ "bus": bus })
            } else {
                json!({"bus": bus, "port": address.port_path()})
            }
        }),
        Address::VirtioSerial(address) => bus(domain, ControllerType::VirtioSerial, address.controller)
            .map(|bus| json!({"bus": bus, "nr": address.port})),
        Address::Ccid(address) => {
            bus(domain, ControllerType::Ccid, address.controller).map(|bus| json!({ "bus": bus }))
        }
        Address::Isa(address) => {
            let mut place = Map::new();
            if let Some(iobase) = address.iobase {
                place.insert("iobase".to_owned(), iobase.into());
            }
            if let Some(irq) = address.irq {
                place.insert("irq".to_owned(), irq.into());
            }
            Some(Value::Object(place))
        }
        Address::Drive(address) => match disk {
            Some(disk) => of_drive(address, disk, domain),
            None => scsi(address, domain),
        },
        Address::Dimm(_) | Address::Unassigned => Some(json!({})),
    };
    match place {
        Some(Value::Object(mut place)) => {
            if let Some(index) = info.acpi_index {
                place.insert("acpi-index".to_owned(), index.into());
            }
            info.place = place;
        }
        _ => {
            diagnostics.error(
                info.address_span.unwrap_or(info.span),
                format!("the guest has no controller for this {} address", address.kind().as_str()),
            );
        }
    }
}

/// The first bus of a controller.
fn bus(domain: &Domain, kind: ControllerType, number: u32) -> Option<String> {
    aliases::controller(domain, kind, number).map(|alias| format!("{alias}.0"))
}

fn pci(address: &PciAddress, domain: &Domain) -> Option<Value> {
    let number = u32::from(address.bus);
    let controller = domain.devices.controllers.iter().find(|c| c.is(ControllerType::Pci, number))?;
    let bus = controller.info.alias.as_deref()?;
    // QEMU's own name of the root, whatever the user calls it.
    let bus = match controller.pci().map(|p| p.model) {
        Some(PciModel::PciRoot) => "pci.0",
        Some(PciModel::PcieRoot) => "pcie.0",
        _ => bus,
    };
    let mut place = Map::new();
    place.insert("bus".to_owned(), bus.into());
    if let Some(multifunction) = address.multifunction {
        place.insert("multifunction".to_owned(), multifunction.into());
    }
    let addr = match address.function {
        0 => format!("{:#x}", address.slot),
        function => format!("{:#x}.{function:#x}", address.slot),
    };
    place.insert("addr".to_owned(), addr.into());
    Some(Value::Object(place))
}

fn scsi(address: &DriveAddress, domain: &Domain) -> Option<Value> {
    let bus = bus(domain, ControllerType::Scsi, address.controller)?;
    // Only these number targets and units apart, hw/scsi/lsi53c895a.c has one unit per target.
    Some(match drive::scsi_model(domain, address.controller)? {
        ScsiModel::LsiLogic => json!({"bus": bus, "scsi-id": address.unit}),
        _ => json!({"bus": bus, "channel": 0, "scsi-id": address.target, "lun": address.unit}),
    })
}

fn of_drive(address: &DriveAddress, disk: &Disk, domain: &Domain) -> Option<Value> {
    match disk.bus {
        Bus::Scsi => scsi(address, domain),
        Bus::Ide => {
            // The machine's own, whatever the user calls it.
            aliases::controller(domain, ControllerType::Ide, address.controller)?;
            Some(json!({"bus": format!("ide.{}", address.bus), "unit": address.unit}))
        }
        Bus::Sata => {
            // Each port of an AHCI controller is a bus of its own.
            let alias = aliases::controller(domain, ControllerType::Sata, address.controller)?;
            Some(json!({"bus": format!("{alias}.{}", address.unit)}))
        }
        // QEMU finds the only floppy controller there is.
        Bus::Fdc => Some(json!({"unit": address.unit})),
        Bus::Virtio | Bus::Usb => None,
    }
}
