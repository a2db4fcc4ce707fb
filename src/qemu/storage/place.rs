//! Where a disk's device sits.

use crate::domain::disk::{Bus, Disk};
use crate::domain::os::Chipset;
use crate::domain::{Address, Domain, DriveAddress, PciAddress, UsbAddress};
use crate::qemu::JsonObject;

use super::properties::Properties;

/// Adds the bus and the place on it.
pub(super) fn put(disk: &Disk, domain: &Domain, device: &mut JsonObject) {
    match &disk.info.address {
        Some(Address::Pci(address)) => put_pci(address, domain, device),
        Some(Address::Usb(address)) => put_usb(address, device),
        Some(Address::Drive(address)) => put_drive(disk.bus, *address, domain, device),
        _ => {}
    }
}

fn put_pci(address: &PciAddress, domain: &Domain, device: &mut JsonObject) {
    let root = if domain.os.chipset == Chipset::Q35 { "pcie" } else { "pci" };
    let bus = if address.bus == 0 { format!("{root}.0") } else { format!("pci.{}", address.bus) };
    device.put("bus", bus);
    let addr = if address.function == 0 {
        format!("{:#x}", address.slot)
    } else {
        format!("{:#x}.{:#x}", address.slot, address.function)
    };
    device.put("addr", addr);
    device.put_some("multifunction", address.multifunction);
}

fn put_usb(address: &UsbAddress, device: &mut JsonObject) {
    device.put("bus", if address.bus == 0 { "usb.0".to_owned() } else { format!("usb{}.0", address.bus) });
    device.put_some("port", Some(address.port_path()).filter(|p| !p.is_empty()));
}

fn put_drive(bus: Bus, address: DriveAddress, domain: &Domain, device: &mut JsonObject) {
    let DriveAddress { controller, bus: channel, target, unit } = address;
    match bus {
        Bus::Ide => {
            device.put("bus", format!("ide.{channel}"));
            device.put("unit", unit);
        }
        Bus::Sata => {
            // The AHCI controller that is part of the q35's chipset has the name of an IDE controller.
            let builtin = controller == 0 && domain.os.chipset == Chipset::Q35;
            let name = if builtin { "ide".to_owned() } else { format!("sata{controller}") };
            device.put("bus", format!("{name}.{unit}"));
        }
        Bus::Scsi => {
            device.put("bus", format!("scsi{controller}.0"));
            device.put("channel", channel);
            device.put("scsi-id", target);
            device.put("lun", unit);
        }
        Bus::Fdc => device.put("unit", unit),
        Bus::Virtio | Bus::Usb => {}
    }
}
