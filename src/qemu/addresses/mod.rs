//! Where devices sit and what they are called, as libvirt decides it: what is given is kept, the rest is filled in.

mod aliases;
mod drive;
mod implicit;
mod memory;
mod pci;
mod pci_bus;
mod place;
#[cfg(test)]
mod tests;
mod usb;
mod virtio_serial;

use std::collections::HashMap;

use crate::domain::Domain;
use crate::domain::disk::{Bus, Disk};
use crate::xml::{Diagnostics, Span};

pub(super) use pci_bus::Plug;

use super::{Capabilities, devices};

/// Adds the controllers and devices that libvirt adds without being asked, and gives every device its alias and its
/// address. Conflicts, and buses that are full, are errors at their line.
pub fn assign(domain: &mut Domain, capabilities: &Capabilities, diagnostics: &mut Diagnostics) {
    implicit::add(domain, capabilities, diagnostics);
    drive::assign(domain, diagnostics);
    implicit::for_hostdevs(domain, diagnostics);
    virtio_serial::assign(domain, diagnostics);
    pci::assign(domain, diagnostics);
    usb::assign(domain, diagnostics);
    memory::assign(domain, diagnostics);
    aliases::assign(domain, diagnostics);
    place::assign(domain, diagnostics);
    check_boot_orders(domain, diagnostics);
    check_acpi_indexes(domain, diagnostics);
}

/// Gives a disk that comes while the guest runs its alias and its address. `running` is the guest with all that it has.
pub fn assign_disk(
    disk: &mut Disk,
    running: &Domain,
    _capabilities: &Capabilities,
    diagnostics: &mut Diagnostics,
) {
    match disk.bus {
        Bus::Virtio => pci::assign_disk(disk, running, diagnostics),
        Bus::Scsi => drive::assign_scsi_disk(disk, running, diagnostics),
        Bus::Usb => usb::assign_disk(disk, running, diagnostics),
        Bus::Sata | Bus::Ide | Bus::Fdc => {
            diagnostics
                .error(
                    disk.target_span,
                    format!("a disk on the bus '{}' cannot come while the guest runs", disk.bus.as_str()),
                )
                .hint("use bus='virtio', 'scsi' or 'usb'");
            return;
        }
    }
    let taken = running.devices.disks.iter().find(|other| other.target == disk.target);
    if taken.is_some() {
        diagnostics.error(disk.target_span, format!("the guest has a disk '{}' already", disk.target));
    }
    if disk.info.alias.is_none() {
        disk.info.alias = Some(aliases::of_disk(disk, running));
    }
    let alias = disk.info.alias.as_deref();
    if running.devices.disks.iter().any(|other| other.info.alias.as_deref() == alias) {
        diagnostics.error(
            disk.info.span,
            format!("the guest has a device with the alias '{}' already", alias.unwrap_or_default()),
        );
    }
    let mut info = disk.info.clone();
    place::of_device(&mut info, running, Some(disk), diagnostics);
    disk.info = info;
}

/// No two devices are booted from at the same time.
fn check_boot_orders(domain: &Domain, diagnostics: &mut Diagnostics) {
    let mut first: HashMap<u32, Span> = HashMap::new();
    for info in domain.devices.bootable() {
        let Some(order) = info.boot_order else { continue };
        if let Some(earlier) = first.get(&order) {
            diagnostics
                .error(info.span, format!("two devices have the boot order {order}"))
                .related(*earlier, "the first one");
        } else {
            first.insert(order, info.span);
        }
    }
}

/// No two devices have the same name in the guest.
fn check_acpi_indexes(domain: &mut Domain, diagnostics: &mut Diagnostics) {
    let mut first: HashMap<u32, Span> = HashMap::new();
    for device in devices::pci_order(&mut domain.devices) {
        let info = device.info();
        let Some(index) = info.acpi_index else { continue };
        if let Some(earlier) = first.insert(index, info.span) {
            diagnostics
                .error(info.span, format!("two devices have the ACPI index {index}"))
                .related(earlier, "the first one");
        }
    }
}

/// The address of a device if it is of a kind; one of another kind is an error.
macro_rules! address_of {
    ($info:expr, $variant:ident) => {
        match &$info.address {
            Some(crate::domain::Address::$variant(address)) => Some(address.clone()),
            _ => None,
        }
    };
}
use address_of;
