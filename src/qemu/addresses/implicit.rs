//! What a guest has without asking: the controllers of its chipset, those that its devices need, and some devices.

use std::collections::{BTreeSet, HashMap};

use crate::domain::devices::Devices;
use crate::domain::devices::character::{ChannelTarget, Console, ConsoleType, Serial, SerialType};
use crate::domain::devices::controller::{
    Controller, ControllerKind, ControllerType, PciController, PciModel, ScsiController, ScsiModel,
    UsbController, UsbModel, VirtioSerialController,
};
use crate::domain::devices::video::{Video, VideoModel};
use crate::domain::devices::watchdog::{Watchdog, WatchdogAction, WatchdogModel};
use crate::domain::disk::Bus;
use crate::domain::os::Chipset;
use crate::domain::{Address, DeviceInfo, Domain};
use crate::qemu::Capabilities;
use crate::xml::Diagnostics;

pub(super) fn add(domain: &mut Domain, capabilities: &Capabilities, diagnostics: &mut Diagnostics) {
    number(domain, diagnostics);
    scsi_of_hostdevs(domain);
    chipset(domain, capabilities);
    models(domain, capabilities);
    companions(domain, diagnostics);
    serials(domain, diagnostics);
    for_devices(domain, capabilities);
    sort(&mut domain.devices.controllers);
    let devices = &mut domain.devices;
    devices.memballoon.get_or_insert_default();
    if domain.os.chipset == Chipset::Q35 && !devices.watchdogs.iter().any(|w| w.model == WatchdogModel::Itco)
    {
        // Part of the chipset: it is there in any case, libvirt lets it act.
        devices.watchdogs.push(Watchdog {
            info: DeviceInfo::default(),
            model: WatchdogModel::Itco,
            action: WatchdogAction::Reset,
        });
    }
    videos(devices, diagnostics);
    macs(domain);
}

/// The part of MAC addresses that QEMU's guests have.
const MAC_PREFIX: [u8; 3] = [0x52, 0x54, 0x00];

/// Interfaces without a MAC address get one that stays the same at every start, so that the guest knows them again: it
/// is derived from the guest's UUID and the interface's place among those that have none.
fn macs(domain: &mut Domain) {
    let uuid = domain.general.uuid;
    let taken: Vec<_> = domain.devices.interfaces.iter().filter_map(|i| i.mac).collect();
    let mut taken: BTreeSet<[u8; 6]> = taken.into_iter().collect();
    let mut number = 0_u32;
    for interface in domain.devices.interfaces.iter_mut().filter(|i| i.mac.is_none()) {
        let mac = loop {
            let mac = mac(uuid.as_bytes(), number);
            number += 1;
            if taken.insert(mac) {
                break mac;
            }
        };
        interface.mac = Some(mac);
    }
}

/// FNV-1a: well spread, and the same in every version of vmward.
fn mac(uuid: &[u8], number: u32) -> [u8; 6] {
    let hash = uuid.iter().chain(&number.to_be_bytes()).fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    let [_, _, _, _, _, a, b, c] = (hash ^ (hash >> 32)).to_be_bytes();
    let [x, y, z] = MAC_PREFIX;
    [x, y, z, a, b, c]
}

/// A guest with graphics has a card; the one that boots comes first.
fn videos(devices: &mut Devices, diagnostics: &mut Diagnostics) {
    if devices.videos.is_empty() && !devices.graphics.is_empty() {
        devices.videos.push(Video::new(Video::DEFAULT_MODEL));
    }
    let primaries: Vec<_> =
        devices.videos.iter().enumerate().filter(|(_, v)| v.primary).map(|(n, v)| (n, v.info.span)).collect();
    if let [(_, first), (_, second), ..] = primaries[..] {
        diagnostics
            .error(second, "two graphics cards are to be the primary one")
            .related(first, "the first one");
    }
    if let Some((index, _)) = primaries.first() {
        devices.videos[..=*index].rotate_right(1);
    } else if let Some(video) = devices.videos.first_mut() {
        video.primary = true;
    }
    if devices.videos.len() > 1
        && let Some(none) = devices.videos.iter().find(|v| v.model == VideoModel::None)
    {
        diagnostics.error(none.info.span, "a guest without a graphics card has no other one");
    }
    for video in devices.videos.iter().filter(|v| !v.primary) {
        let second = matches!(video.model, VideoModel::Qxl | VideoModel::Virtio | VideoModel::Bochs);
        if !second {
            diagnostics.error(
                video.info.span,
                format!("a card of type '{}' can only be the primary one", video.model.as_str()),
            );
        }
    }
}

/// Controllers without a number get the first free one of their type, and USB companions that of the USB 2 controller
/// before them; two of the same are an error.
fn number(domain: &mut Domain, diagnostics: &mut Diagnostics) {
    let controllers = &mut domain.devices.controllers;
    for n in 0..controllers.len() {
        if controllers[n].index.is_some() {
            continue;
        }
        let model = |c: &Controller| c.usb().and_then(|u| u.model);
        let master = controllers[..n].iter().rfind(|c| model(c) == Some(UsbModel::Ich9Ehci1));
        let companion = model(&controllers[n]).is_some_and(|m| m.is_ich9() && m != UsbModel::Ich9Ehci1);
        if let Some(master) = master.filter(|_| companion) {
            controllers[n].index = master.index;
        } else {
            let kind = controllers[n].kind.kind();
            let used: BTreeSet<_> =
                controllers.iter().filter(|c| c.kind.kind() == kind).filter_map(|c| c.index).collect();
            controllers[n].index = (0..).find(|free| !used.contains(free));
        }
    }
    if let Some(none) = controllers.iter().find(|c| c.usb().and_then(|u| u.model) == Some(UsbModel::None))
        && let Some(other) =
            controllers.iter().find(|c| c.usb().is_some_and(|u| u.model != Some(UsbModel::None)))
    {
        diagnostics
            .error(other.info.span, "a guest without USB has no USB controller")
            .related(none.info.span, "this one says that it has no USB");
    }
    for (n, controller) in controllers.iter().enumerate() {
        let same = controllers[..n].iter().find(|other| {
            let parts = other.usb().and_then(|u| u.model).is_some_and(UsbModel::is_ich9)
                && controller.usb().and_then(|u| u.model).is_some_and(UsbModel::is_ich9)
                && other.usb().and_then(|u| u.model) != controller.usb().and_then(|u| u.model);
            other.is(controller.kind.kind(), controller.number()) && !parts
        });
        if let Some(same) = same {
            diagnostics
                .error(
                    controller.info.span,
                    format!(
                        "two controllers of type '{}' have the index {}",
                        controller.kind.kind().as_str(),
                        controller.number()
                    ),
                )
                .related(same.info.span, "the first one");
        }
    }
    check_roots(domain, diagnostics);
}

fn check_roots(domain: &Domain, diagnostics: &mut Diagnostics) {
    let wanted = root(domain.os.chipset);
    for controller in &domain.devices.controllers {
        let Some(pci) = controller.pci() else { continue };
        let is_root = pci.model.is_root();
        let span = controller.info.span;
        if is_root && controller.number() != 0 {
            diagnostics.error(span, format!("{} has the index 0", pci.model.as_str()));
        } else if !is_root && controller.number() == 0 {
            diagnostics.error(span, format!("the PCI controller with index 0 is the {}", wanted.as_str()));
        } else if is_root && pci.model != wanted {
            diagnostics.error(span, format!("the machine '{}' has a {}", domain.os.machine, wanted.as_str()));
        }
        if is_root && controller.info.address_span.is_some() {
            diagnostics.error(
                controller.info.address_span.unwrap_or(span),
                format!("{} has no address", pci.model.as_str()),
            );
        }
        let expander = match pci.model {
            PciModel::PciExpanderBus => Some(Chipset::I440fx),
            PciModel::PcieExpanderBus => Some(Chipset::Q35),
            _ => None,
        };
        if expander.is_some_and(|chipset| chipset != domain.os.chipset) {
            diagnostics
                .error(span, format!("the machine '{}' takes no {}", domain.os.machine, pci.model.as_str()));
        }
    }
}

fn root(chipset: Chipset) -> PciModel {
    match chipset {
        Chipset::I440fx => PciModel::PciRoot,
        Chipset::Q35 => PciModel::PcieRoot,
    }
}

fn add_controller(domain: &mut Domain, index: u32, kind: ControllerKind) {
    let controllers = &mut domain.devices.controllers;
    if !controllers.iter().any(|c| c.is(kind.kind(), index)) {
        controllers.push(Controller::implicit(kind, index));
    }
}

/// What the chipset brings, and the USB controller that every guest gets.
fn chipset(domain: &mut Domain, capabilities: &Capabilities) {
    let chipset = domain.os.chipset;
    if !domain.devices.controllers.iter().any(|c| c.is(ControllerType::Usb, 0)) {
        let model = match chipset {
            Chipset::Q35 if capabilities.has_device("qemu-xhci") => Some(UsbModel::QemuXhci),
            Chipset::Q35 => None,
            Chipset::I440fx => Some(UsbModel::Piix3Uhci),
        };
        if model.is_some() {
            add_controller(
                domain,
                0,
                ControllerKind::Usb(UsbController { model, ..UsbController::default() }),
            );
        }
    }
    if chipset == Chipset::Q35 {
        add_controller(domain, 0, ControllerKind::Sata);
    }
    add_controller(domain, 0, ControllerKind::Pci(PciController::new(root(chipset))));
}

/// Models where the XML names none.
fn models(domain: &mut Domain, capabilities: &Capabilities) {
    for controller in &mut domain.devices.controllers {
        match &mut controller.kind {
            ControllerKind::Usb(usb) => {
                usb.model.get_or_insert(UsbModel::Piix3Uhci);
            }
            ControllerKind::Scsi(scsi) => {
                scsi.model.get_or_insert(default_scsi_model(capabilities));
            }
            _ => {}
        }
    }
}

fn default_scsi_model(capabilities: &Capabilities) -> ScsiModel {
    if capabilities.has_device("lsi53c895a") { ScsiModel::LsiLogic } else { ScsiModel::VirtioScsi }
}

/// An ICH9 USB 2 controller has three companions for USB 1.
fn companions(domain: &mut Domain, diagnostics: &mut Diagnostics) {
    let model_of = |c: &Controller| c.usb().and_then(|u| u.model);
    let controllers = &domain.devices.controllers;
    for companion in controllers.iter().filter(|c| {
        matches!(model_of(c), Some(UsbModel::Ich9Uhci1 | UsbModel::Ich9Uhci2 | UsbModel::Ich9Uhci3))
    }) {
        let has_master = controllers
            .iter()
            .any(|c| c.number() == companion.number() && model_of(c) == Some(UsbModel::Ich9Ehci1));
        if !has_master {
            diagnostics
                .error(companion.info.span, "this USB companion has no ich9-ehci1 with its index")
                .hint("add <controller type='usb' index='...' model='ich9-ehci1'/>");
        }
    }
}

/// The first console of a guest is its first serial port; either stands for the other.
fn serials(domain: &mut Domain, diagnostics: &mut Diagnostics) {
    let devices = &mut domain.devices;
    if let Some(console) = devices.consoles.first().filter(|c| c.kind == ConsoleType::Serial)
        && devices.serials.is_empty()
    {
        let serial = Serial::of_console(console);
        devices.serials.push(serial);
    } else if let Some(serial) = devices.serials.first()
        && devices.consoles.first().is_some_and(|c| c.kind != ConsoleType::Serial)
    {
        // The serial port is the first console, whatever other consoles there are: they are numbered behind it.
        let info = DeviceInfo { span: serial.info.span, ..DeviceInfo::default() };
        let console = Console { info, chardev: serial.chardev.clone(), kind: ConsoleType::Serial };
        devices.consoles.insert(0, console);
    }
    for console in devices.consoles.iter().skip(1).filter(|c| c.kind == ConsoleType::Serial) {
        diagnostics
            .error(console.info.span, "only the first console can be a serial port")
            .hint("write <target type='virtio'/>");
    }
    // Ports without a number follow the highest one of their kind before them.
    let mut next: HashMap<SerialType, u32> = HashMap::new();
    for serial in &mut devices.serials {
        let next = next.entry(serial.kind).or_default();
        let port = *serial.port.get_or_insert(*next);
        *next = (*next).max(port.saturating_add(1));
    }
    // A PC's firmware knows of four.
    const ISA_PORTS: u32 = 4;
    for serial in devices.serials.iter().filter(|s| s.kind == SerialType::Isa) {
        if serial.port.is_some_and(|port| port >= ISA_PORTS) {
            diagnostics
                .error(serial.info.span, format!("a guest has {ISA_PORTS} ISA serial ports at most"))
                .hint("use <target type='pci-serial'/>");
        }
    }
}

/// Controllers that devices need.
fn for_devices(domain: &mut Domain, capabilities: &Capabilities) {
    for (bus, kind) in [
        (Bus::Scsi, ControllerType::Scsi),
        (Bus::Fdc, ControllerType::Fdc),
        (Bus::Ide, ControllerType::Ide),
        (Bus::Sata, ControllerType::Sata),
    ] {
        let disks = domain.devices.disks.iter().filter(|d| d.bus == bus);
        let last = disks.map(|d| super::drive::wanted(d).controller).max();
        let Some(last) = last else { continue };
        for index in 0..=last {
            let kind = match kind {
                ControllerType::Fdc => ControllerKind::Fdc,
                ControllerType::Ide => ControllerKind::Ide,
                ControllerType::Sata => ControllerKind::Sata,
                _ => ControllerKind::Scsi(ScsiController {
                    model: Some(default_scsi_model(capabilities)),
                    ..ScsiController::default()
                }),
            };
            add_controller(domain, index, kind);
        }
    }
    if !domain.devices.smartcards.is_empty() {
        add_controller(domain, 0, ControllerKind::Ccid);
    }
    let index = |info: &DeviceInfo| match &info.address {
        Some(Address::VirtioSerial(address)) => address.controller,
        _ => 0,
    };
    let channels = domain.devices.channels.iter().filter(|c| matches!(c.target, ChannelTarget::Virtio(_)));
    let consoles = domain.devices.consoles.iter().filter(|c| c.kind == ConsoleType::Virtio);
    let needed: Vec<_> = channels.map(|c| index(&c.info)).chain(consoles.map(|c| index(&c.info))).collect();
    for index in needed {
        add_controller(domain, index, ControllerKind::VirtioSerial(VirtioSerialController::default()));
    }
}

/// SCSI controllers for units of the host, as far as their addresses are given. They come before all others that are
/// not written, and have the model of those that are there.
fn scsi_of_hostdevs(domain: &mut Domain) {
    let model = domain.devices.controllers.iter().rev().find_map(|c| c.scsi()?.model);
    let last = domain.devices.hostdevs.iter().filter(|h| h.on_scsi()).map(|h| match h.info.address {
        Some(Address::Drive(address)) => address.controller,
        _ => 0,
    });
    let Some(last) = last.max() else { return };
    for index in 0..=last {
        add_controller(
            domain,
            index,
            ControllerKind::Scsi(ScsiController { model, ..ScsiController::default() }),
        );
    }
}

/// SCSI controllers for units of the host that found no free place on those that are there; all have their addresses by
/// now. No two of them are the same device.
pub(super) fn for_hostdevs(domain: &mut Domain, diagnostics: &mut Diagnostics) {
    let last = domain.devices.hostdevs.iter().filter_map(|h| match h.info.address {
        Some(Address::Drive(address)) => Some(address.controller),
        _ => None,
    });
    if let Some(last) = last.max() {
        let model = domain.devices.controllers.iter().rev().find_map(|c| c.scsi()?.model);
        for index in 0..=last {
            let scsi = ScsiController { model, ..ScsiController::default() };
            add_controller(domain, index, ControllerKind::Scsi(scsi));
        }
        sort(&mut domain.devices.controllers);
    }
    let hostdevs = &domain.devices.hostdevs;
    for (index, hostdev) in hostdevs.iter().enumerate() {
        if let Some(first) = hostdevs[..index].iter().find(|h| h.source == hostdev.source) {
            diagnostics
                .error(hostdev.info.span, "this device of the host is given to the guest twice")
                .related(first.info.span, "the first time");
        }
    }
}

/// Controllers of a type in the order of their numbers, where libvirt would put each. A USB 2 controller comes before
/// its companions.
pub(super) fn sort(controllers: &mut Vec<Controller>) {
    let mut sorted: Vec<Controller> = Vec::with_capacity(controllers.len());
    for controller in controllers.drain(..) {
        let kind = controller.kind.kind();
        let key = |c: &Controller| {
            let companion =
                c.usb().and_then(|u| u.model).is_some_and(|m| m.is_ich9() && m != UsbModel::Ich9Ehci1);
            (c.number(), companion)
        };
        let mut place = None;
        for (at, other) in sorted.iter().enumerate().rev().filter(|(_, c)| c.kind.kind() == kind) {
            if key(other) > key(&controller) {
                place = Some(at);
            } else if place.is_none() {
                place = Some(at + 1);
            }
        }
        sorted.insert(place.unwrap_or(sorted.len()), controller);
    }
    *controllers = sorted;
}
