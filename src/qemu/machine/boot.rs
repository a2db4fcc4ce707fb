//! What is booted: `-boot`, `-kernel`, and which device comes first.

use crate::domain::Domain;
use crate::domain::disk::Kind;
use crate::domain::os::{AcpiTableType, BootDevice};
use crate::qemu::CommandLine;
use crate::qemu::plan::comma_escaped;

use super::platform::on_off;

/// Turns kinds of devices to boot from into the order of single devices: the first of each kind counts. A
/// guest that says nothing boots from its first disk.
pub(in crate::qemu) fn assign_boot_order(domain: &mut Domain) {
    let devices = &mut domain.devices;
    if devices.bootable().any(|info| info.boot_order.is_some()) {
        return;
    }
    let mut kinds: Vec<_> = domain.os.boot.iter().map(|(device, _)| *device).collect();
    if kinds.is_empty() {
        kinds.push(BootDevice::Disk);
    }
    for (order, kind) in (1..).zip(kinds) {
        let mut of_kind = |wanted: &[Kind]| {
            let first =
                devices.disks.iter_mut().find(|d| wanted.contains(&d.kind) && d.info.boot_order.is_none());
            if let Some(disk) = first {
                disk.info.boot_order = Some(order);
            }
        };
        match kind {
            BootDevice::Disk => of_kind(&[Kind::Disk, Kind::Lun]),
            BootDevice::Cdrom => of_kind(&[Kind::Cdrom]),
            BootDevice::Floppy => of_kind(&[Kind::Floppy]),
            BootDevice::Network => {
                if let Some(interface) = devices.interfaces.first_mut() {
                    interface.info.boot_order = Some(order);
                }
            }
        }
    }
}

/// `-boot` and what QEMU loads itself.
pub(super) fn arguments(domain: &Domain, line: &mut CommandLine) {
    let os = &domain.os;
    let mut boot = Vec::new();
    if let Some(menu) = os.menu.enable {
        boot.push(format!("menu={}", on_off(menu)));
        boot.extend(os.menu.timeout.filter(|_| menu).map(|t| format!("splash-time={t}")));
    }
    boot.extend(os.reboot_timeout.map(|t| format!("reboot-timeout={t}")));
    // Nothing is booted but what the order names.
    boot.push("strict=on".to_owned());
    line.text("-boot", boot.join(","));
    let direct = &os.direct;
    let options = [
        ("-kernel", &direct.kernel),
        ("-initrd", &direct.initrd),
        ("-append", &direct.cmdline),
        ("-dtb", &direct.dtb),
    ];
    for (flag, value) in options {
        if let Some(value) = value {
            line.text(flag, value);
        }
    }
    for table in &os.acpi_tables {
        let signature = match table.kind {
            AcpiTableType::Slic => "sig=SLIC,",
            AcpiTableType::Raw => "",
        };
        line.text("-acpitable", format!("{signature}file={}", comma_escaped(&table.path)));
    }
}
