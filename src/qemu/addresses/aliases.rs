//! Aliases: the ids of devices in QEMU. Those that the user chose are kept.

use std::collections::HashMap;

use crate::domain::devices::controller::{Controller, ControllerKind, ControllerType, PciModel, ScsiModel};
use crate::domain::disk::{Bus, Disk};
use crate::domain::os::Chipset;
use crate::domain::{DeviceInfo, Domain};
use crate::qemu::devices;
use crate::xml::{Diagnostics, Span};

use super::drive;

pub(super) fn assign(domain: &mut Domain, diagnostics: &mut Diagnostics) {
    check_user_aliases(domain, diagnostics);
    let chipset = domain.os.chipset;
    for controller in &mut domain.devices.controllers {
        let alias = of_controller(controller, chipset);
        controller.info.alias.get_or_insert(alias);
    }
    let disks: Vec<_> = domain.devices.disks.iter().map(|disk| of_disk(disk, domain)).collect();
    for (disk, alias) in domain.devices.disks.iter_mut().zip(disks) {
        disk.info.alias.get_or_insert(alias);
    }
    for (stem, counting, infos) in devices::by_stem(&mut domain.devices) {
        let mut number = 0;
        for info in infos {
            // Interfaces are numbered by those that have no name, everything else by its place.
            if info.alias.is_none() {
                info.alias = Some(format!("{stem}{number}"));
                number += 1;
            } else if counting == devices::Counting::All {
                number += 1;
            }
        }
    }
}

fn check_user_aliases(domain: &mut Domain, diagnostics: &mut Diagnostics) {
    let mut first: HashMap<String, Span> = HashMap::new();
    let disks = domain.devices.disks.iter().map(|d| &d.info);
    let controllers = domain.devices.controllers.iter().map(|c| &c.info);
    let mut all: Vec<DeviceInfo> = disks.chain(controllers).cloned().collect();
    for (_, _, infos) in devices::by_stem(&mut domain.devices) {
        all.extend(infos.into_iter().map(|i| i.clone()));
    }
    for info in all {
        let Some(alias) = info.alias else { continue };
        if let Some(earlier) = first.get(&alias) {
            diagnostics
                .error(info.span, format!("two devices have the alias '{alias}'"))
                .related(*earlier, "the first one");
        } else {
            first.insert(alias, info.span);
        }
    }
}

/// The id of a controller: `pci.1`, `scsi0`; the machine's own have the names that QEMU gives their buses.
fn of_controller(controller: &Controller, chipset: Chipset) -> String {
    let number = controller.number();
    match (&controller.kind, number) {
        (ControllerKind::Pci(pci), _) if pci.model == PciModel::PcieRoot => format!("pcie.{number}"),
        (ControllerKind::Pci(_), _) => format!("pci.{number}"),
        (ControllerKind::Usb(_), 0) => "usb".to_owned(),
        (ControllerKind::Ide, 0) if chipset == Chipset::I440fx => "ide".to_owned(),
        (ControllerKind::Sata, 0) if chipset == Chipset::Q35 => "ide".to_owned(),
        (kind, _) => format!("{}{number}", kind.kind().as_str()),
    }
}

/// The id of a disk.
pub(super) fn of_disk(disk: &Disk, domain: &Domain) -> String {
    let address = drive::wanted(disk);
    let bus = disk.bus.as_str();
    match disk.bus {
        Bus::Virtio => format!("virtio-disk{}", disk.index()),
        Bus::Usb => format!("usb-disk{}", disk.index()),
        Bus::Scsi if drive::scsi_model(domain, address.controller) != Some(ScsiModel::LsiLogic) => {
            format!("{bus}{}-{}-{}-{}", address.controller, address.bus, address.target, address.unit)
        }
        Bus::Scsi | Bus::Ide | Bus::Sata | Bus::Fdc => {
            format!("{bus}{}-{}-{}", address.controller, address.bus, address.unit)
        }
    }
}

/// The id of the controller of a type and number.
pub(super) fn controller(domain: &Domain, kind: ControllerType, number: u32) -> Option<&str> {
    let found = domain.devices.controllers.iter().find(|c| c.is(kind, number))?;
    found.info.alias.as_deref()
}
