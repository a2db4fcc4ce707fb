//! Controllers.

use crate::domain::devices::controller::{
    Controller, ControllerKind, PciController, PciModel, ScsiController, ScsiModel, UsbController, UsbModel,
    VirtioSerialController,
};
use crate::domain::devices::virtio::VirtioModel;
use crate::domain::disk::{Bus, Kind};
use crate::domain::os::Chipset;
use crate::domain::{Address, Domain};
use crate::qemu::addresses::Plug;
use crate::qemu::properties::Properties;
use crate::qemu::{CommandLine, JsonObject};
use crate::xml::Diagnostics;

use super::{Context, Placed, QemuDevice, alias, device, has_info, virtio};

impl Placed for Controller {
    has_info!();

    fn plug(&self) -> Option<Plug> {
        match &self.kind {
            ControllerKind::Pci(pci) => (!pci.model.is_root()).then_some(Plug::Controller(pci.model)),
            ControllerKind::Usb(usb) => match usb.model {
                Some(UsbModel::None) => None,
                Some(model) if model.is_xhci() => Some(Plug::Express),
                _ => Some(Plug::Conventional),
            },
            // The first IDE controller is in the chipset, and has its address from there.
            ControllerKind::Ide => (self.number() != 0).then_some(Plug::Conventional),
            ControllerKind::Sata => Some(Plug::Conventional),
            ControllerKind::Scsi(scsi) => match scsi.model.and_then(ScsiModel::virtio) {
                Some(model) => Some(virtio::plug(model)),
                None => Some(Plug::Conventional),
            },
            ControllerKind::VirtioSerial(serial) => Some(virtio::plug(serial.model)),
            ControllerKind::Fdc | ControllerKind::Ccid => None,
        }
    }

    fn on_usb(&self) -> bool {
        matches!(self.kind, ControllerKind::Ccid)
    }
}

impl QemuDevice for Controller {
    fn tell(&self, context: &Context, line: &mut CommandLine, diagnostics: &mut Diagnostics) {
        let chipset = context.domain.os.chipset;
        let told = match &self.kind {
            ControllerKind::Pci(pci) => {
                check_node(self, pci, context.domain, diagnostics);
                pci_controller(self, pci, line)
            }
            ControllerKind::Usb(usb) => usb_controller(self, usb, context, diagnostics),
            // QEMU makes the first one itself.
            ControllerKind::Ide => {
                if self.number() != 0 || chipset == Chipset::Q35 {
                    diagnostics.error(
                        self.info.span,
                        match chipset {
                            Chipset::Q35 => "a q35 machine has no IDE controller, it has SATA",
                            Chipset::I440fx => "this machine has only one IDE controller",
                        },
                    );
                }
                None
            }
            ControllerKind::Sata if self.number() == 0 && chipset == Chipset::Q35 => None,
            ControllerKind::Sata => Some(with_id("ahci", self)),
            ControllerKind::Scsi(scsi) => scsi_controller(self, scsi, diagnostics),
            ControllerKind::Fdc => floppy_controller(context.domain, line),
            ControllerKind::VirtioSerial(serial) => Some(virtio_serial(self, serial)),
            ControllerKind::Ccid => Some(with_id("usb-ccid", self)),
        };
        if let Some(told) = told {
            device(line, told, &self.info);
        }
    }
}

fn with_id(driver: &str, controller: &Controller) -> JsonObject {
    let mut told = JsonObject::new();
    told.put("driver", driver);
    told.put("id", alias(&controller.info));
    told
}

fn check_node(controller: &Controller, pci: &PciController, domain: &Domain, diagnostics: &mut Diagnostics) {
    if let Some(node) = pci.node
        && !domain.cpu.numa.cells.iter().any(|cell| cell.id == node)
    {
        diagnostics.error(controller.info.span, format!("the guest has no NUMA node {node}"));
    }
}

fn pci_controller(
    controller: &Controller,
    pci: &PciController,
    line: &mut CommandLine,
) -> Option<JsonObject> {
    let Some(usual) = pci.model.device_names().first().copied() else {
        if let Some(size) = pci.hole64 {
            let host = if pci.model == PciModel::PcieRoot { "q35-pcihost" } else { "i440FX-pcihost" };
            line.text("-global", format!("{host}.pci-hole64-size={size}K"));
        }
        return None;
    };
    let mut told = JsonObject::new();
    told.put("driver", pci.model_name.as_deref().unwrap_or(usual));
    told.put_some("chassis_nr", pci.chassis_nr.filter(|_| pci.model == PciModel::PciBridge));
    told.put_some("mem-reserve", pci.mem_reserve);
    let port = matches!(pci.model, PciModel::PcieRootPort | PciModel::PcieSwitchDownstreamPort);
    if port {
        told.put_some("port", pci.port);
        told.put_some("chassis", pci.chassis);
    }
    if matches!(pci.model, PciModel::PciExpanderBus | PciModel::PcieExpanderBus) {
        told.put_some("bus_nr", pci.bus_nr);
    }
    told.put("id", alias(&controller.info));
    told.put_some("numa_node", pci.node);
    if port {
        told.put_some("hotplug", pci.hotplug);
    }
    Some(told)
}

fn usb_driver(model: UsbModel) -> Option<&'static str> {
    Some(match model {
        UsbModel::Piix3Uhci => "piix3-usb-uhci",
        UsbModel::Piix4Uhci => "piix4-usb-uhci",
        UsbModel::Ehci => "usb-ehci",
        UsbModel::Ich9Ehci1 => "ich9-usb-ehci1",
        UsbModel::Ich9Uhci1 => "ich9-usb-uhci1",
        UsbModel::Ich9Uhci2 => "ich9-usb-uhci2",
        UsbModel::Ich9Uhci3 => "ich9-usb-uhci3",
        UsbModel::Vt82c686bUhci => "vt82c686b-usb-uhci",
        UsbModel::PciOhci => "pci-ohci",
        UsbModel::NecXhci => "nec-usb-xhci",
        UsbModel::QemuXhci => "qemu-xhci",
        UsbModel::None => return None,
    })
}

fn usb_controller(
    controller: &Controller,
    usb: &UsbController,
    context: &Context,
    diagnostics: &mut Diagnostics,
) -> Option<JsonObject> {
    let driver = usb_driver(usb.model?)?;
    if !context.capabilities.has_device(driver) {
        diagnostics.error(controller.info.span, format!("this QEMU has no '{driver}'"));
        return None;
    }
    let mut told = JsonObject::new();
    told.put("driver", driver);
    told.put_some("p2", usb.ports.filter(|_| usb.model == Some(UsbModel::NecXhci)));
    told.put_some("p3", usb.ports.filter(|_| usb.model == Some(UsbModel::NecXhci)));
    if let Some(port) = usb.ports.filter(|_| usb.model == Some(UsbModel::QemuXhci)) {
        told.put("p2", port);
        told.put("p3", port);
    }
    let companion = usb.model.is_some_and(|m| m.is_ich9() && m != UsbModel::Ich9Ehci1);
    if companion {
        // It serves the ports of its master, and has no bus of its own.
        let controllers = &context.domain.devices.controllers;
        let master = controllers.iter().find(|c| {
            c.number() == controller.number() && c.usb().is_some_and(|u| u.model == Some(UsbModel::Ich9Ehci1))
        });
        told.put("masterbus", format!("{}.0", alias(&master.unwrap_or(controller).info)));
        told.put(
            "firstport",
            usb.master_start_port.unwrap_or(match usb.model {
                // Two ports each.
                Some(UsbModel::Ich9Uhci3) => 4,
                Some(UsbModel::Ich9Uhci2) => 2,
                _ => 0,
            }),
        );
    } else {
        told.put("id", alias(&controller.info));
    }
    Some(told)
}

fn scsi_controller(
    controller: &Controller,
    scsi: &ScsiController,
    diagnostics: &mut Diagnostics,
) -> Option<JsonObject> {
    let model = scsi.model?;
    if model.virtio().is_none() {
        let options = [
            ("queues", scsi.queues.is_some()),
            ("cmd_per_lun", scsi.cmd_per_lun.is_some()),
            ("max_sectors", scsi.max_sectors.is_some()),
            ("ioeventfd", scsi.ioeventfd.is_some()),
        ];
        for (name, _) in options.into_iter().filter(|(_, set)| *set) {
            diagnostics.error(controller.info.span, format!("'{name}' is for virtio-scsi controllers"));
        }
    }
    let mut told = JsonObject::new();
    match model {
        ScsiModel::VirtioScsi | ScsiModel::VirtioTransitional | ScsiModel::VirtioNonTransitional => {
            let virtio_model = model.virtio().unwrap_or(VirtioModel::Virtio);
            told = virtio::start("virtio-scsi", virtio_model, &scsi.virtio);
            told.put_some("iothread", scsi.iothread.map(|id| format!("iothread{id}")));
        }
        ScsiModel::LsiLogic => told.put("driver", "lsi"),
        ScsiModel::LsiSas1068 => told.put("driver", "mptsas1068"),
        ScsiModel::LsiSas1078 => told.put("driver", "megasas"),
        ScsiModel::VmPvScsi => told.put("driver", "pvscsi"),
        ScsiModel::Am53c974 => told.put("driver", "am53c974"),
        ScsiModel::Dc390 => told.put("driver", "dc-390"),
    }
    told.put("id", alias(&controller.info));
    told.put_some("num_queues", scsi.queues);
    told.put_some("cmd_per_lun", scsi.cmd_per_lun);
    told.put_some("max_sectors", scsi.max_sectors);
    told.put_some("ioeventfd", scsi.ioeventfd);
    Some(told)
}

fn virtio_serial(controller: &Controller, serial: &VirtioSerialController) -> JsonObject {
    let mut told = virtio::start("virtio-serial", serial.model, &serial.virtio);
    told.put("id", alias(&controller.info));
    told.put_some("max_ports", serial.ports);
    told.put_some("vectors", serial.vectors);
    told
}

/// The floppy controller has the boot order of its drives. On i440fx it is part of the machine, and QEMU takes what is
/// said about it as a global property.
fn floppy_controller(domain: &Domain, line: &mut CommandLine) -> Option<JsonObject> {
    let drives = domain.devices.disks.iter().filter(|d| d.bus == Bus::Fdc && d.kind == Kind::Floppy);
    let any = drives.clone().next().is_some();
    let boot: Vec<_> = drives
        .filter_map(|drive| {
            let unit = match &drive.info.address {
                Some(Address::Drive(address)) => address.unit,
                _ => 0,
            };
            let property = if unit == 0 { "bootindexA" } else { "bootindexB" };
            drive.info.boot_order.map(|order| (property, order))
        })
        .collect();
    match domain.os.chipset {
        Chipset::I440fx => {
            for (property, order) in boot {
                line.text("-global", format!("isa-fdc.{property}={order}"));
            }
            None
        }
        // A controller without drives is no use, and libvirt makes none.
        Chipset::Q35 if !any => None,
        Chipset::Q35 => {
            let mut told = JsonObject::new();
            told.put("driver", "isa-fdc");
            for (property, order) in boot {
                told.put(property, order);
            }
            Some(told)
        }
    }
}
