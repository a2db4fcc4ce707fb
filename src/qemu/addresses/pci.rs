//! PCI addresses, in the order in which libvirt gives them.

use crate::domain::devices::controller::{
    Controller, ControllerKind, ControllerType, PciController, PciModel, UsbModel,
};
use crate::domain::devices::sound::SoundModel;
use crate::domain::devices::video::VideoModel;
use crate::domain::disk::Disk;
use crate::domain::os::Chipset;
use crate::domain::{Address, DeviceInfo, Domain, PciAddress};
use crate::qemu::devices;
use crate::xml::{Diagnostics, Span};

use super::address_of;
use super::pci_bus::{Buses, Plug, Refused};

pub(super) fn assign(domain: &mut Domain, diagnostics: &mut Diagnostics) {
    check_types(domain, diagnostics);
    if !check_numbers(domain, diagnostics) {
        return;
    }
    let described = controllers(domain).map(|c| c.number()).max().unwrap_or(0);
    let mut first_pass = Buses::new(&described_buses(domain), is_pcie(domain), true);
    // The first pass finds out how many controllers it takes; what it has to say is said by the second one.
    let mut unsaid = Diagnostics::new();
    collect(domain, &mut first_pass, &mut unsaid);
    chipset(domain, &mut first_pass, &mut unsaid);
    spare_slot(domain, &mut first_pass);
    give(domain, &mut first_pass, Pass::Count, &mut unsaid);
    spare_port(domain, described, &mut first_pass);
    add_controllers(domain, &mut first_pass);

    let mut buses = Buses::new(&described_buses(domain), is_pcie(domain), false);
    collect(domain, &mut buses, diagnostics);
    chipset(domain, &mut buses, diagnostics);
    give(domain, &mut buses, Pass::Assign, diagnostics);
    mark_multifunction(domain);
    number_ports(domain, diagnostics);
}

/// Whether addresses are kept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Count,
    Assign,
}

fn is_pcie(domain: &Domain) -> bool {
    domain.os.chipset == Chipset::Q35
}

fn controllers(domain: &Domain) -> impl Iterator<Item = &Controller> {
    domain.devices.controllers.iter().filter(|c| c.kind.kind() == ControllerType::Pci)
}

fn described_buses(domain: &Domain) -> Vec<(usize, PciModel, bool)> {
    controllers(domain)
        .filter_map(|c| c.pci().map(|p| (c.number() as usize, p.model, p.hotplug != Some(false))))
        .collect()
}

/// An address has eight bits for the bus.
fn check_numbers(domain: &Domain, diagnostics: &mut Diagnostics) -> bool {
    let mut fine = true;
    for controller in controllers(domain).filter(|c| c.number() > u32::from(u8::MAX)) {
        diagnostics.error(controller.info.span, "the index of a PCI controller is 255 at most");
        fine = false;
    }
    fine
}

/// A PCI device has a PCI address.
fn check_types(domain: &mut Domain, diagnostics: &mut Diagnostics) {
    for device in devices::pci_order(&mut domain.devices) {
        if device.plug().is_none() {
            continue;
        }
        let info = device.info();
        if let Some(address) =
            info.address.as_ref().filter(|a| !matches!(a, Address::Pci(_) | Address::Unassigned))
        {
            diagnostics.error(
                info.address_span.unwrap_or(info.span),
                format!("this is a PCI device, it has no address of type '{}'", address.kind().as_str()),
            );
        }
    }
}

fn say(refused: Refused, at: Span, address: Option<&PciAddress>, pcie: bool, diagnostics: &mut Diagnostics) {
    match refused {
        Refused::Taken(first) => {
            let place = address.map(PciAddress::to_string).unwrap_or_default();
            let error = diagnostics.error(at, format!("PCI address {place} is taken"));
            if let Some(first) = first.filter(|span| *span != Span::default()) {
                error.related(first, "by this device");
            }
        }
        Refused::Unfit(why) => {
            diagnostics.error(at, why);
        }
        Refused::Full(what) => {
            diagnostics.error(at, format!("no PCI controller has a free slot for {what}")).hint(if pcie {
                "add <controller type='pci' model='pcie-root-port'/>"
            } else {
                "add <controller type='pci' model='pci-bridge'/>"
            });
        }
    }
}

/// The IDE and USB controllers inside the PIIX3, which share slot 1 with its ISA bridge.
fn piix3_function(controller: &Controller) -> Option<u8> {
    match &controller.kind {
        _ if controller.number() != 0 => None,
        ControllerKind::Ide => Some(1),
        ControllerKind::Usb(usb) if usb.model == Some(UsbModel::Piix3Uhci) => Some(2),
        _ => None,
    }
}

/// Takes the addresses that are given.
fn collect(domain: &mut Domain, buses: &mut Buses, diagnostics: &mut Diagnostics) {
    let pcie = is_pcie(domain);
    let piix3: Vec<Span> = domain
        .devices
        .controllers
        .iter()
        .filter(|c| !pcie && piix3_function(c).is_some())
        .map(|c| c.info.span)
        .collect();
    for device in devices::pci_order(&mut domain.devices) {
        let Some(address) = address_of!(device.info(), Pci) else { continue };
        let in_piix3 = (address.bus, address.slot) == (0, 1) && piix3.contains(&device.info().span);
        if in_piix3 && matches!(address.function, 1 | 2) {
            continue;
        }
        let info = device.info();
        let at = info.address_span.unwrap_or(info.span);
        // A device that libvirt gives no PCI address may have been given one.
        let plug = device.plug().unwrap_or(Plug::Conventional);
        if let Err(refused) = buses.reserve(&address, plug, at) {
            say(refused, at, Some(&address), pcie, diagnostics);
        }
    }
}

/// What the chipset itself holds, and the places where its parts have always been.
fn chipset(domain: &mut Domain, buses: &mut Buses, diagnostics: &mut Diagnostics) {
    if is_pcie(domain) { q35(domain, buses, diagnostics) } else { piix3(domain, buses, diagnostics) }
}

/// Slots and functions of the PIIX3, and of the first graphics card behind it.
const PIIX3_SLOT: u8 = 1;
const PIIX3_VIDEO_SLOT: u8 = 2;

fn piix3(domain: &mut Domain, buses: &mut Buses, diagnostics: &mut Diagnostics) {
    let mut place = |address: PciAddress, at: Span, diagnostics: &mut Diagnostics| {
        if let Err(refused) = buses.reserve(&address, Plug::Conventional, at) {
            say(refused, at, Some(&address), false, diagnostics);
        }
    };
    for controller in &mut domain.devices.controllers {
        let Some(function) = piix3_function(controller) else { continue };
        let own = PciAddress { function, ..PciAddress::at(0, PIIX3_SLOT) };
        let at = controller.info.address_span.unwrap_or(controller.info.span);
        match address_of!(controller.info, Pci) {
            Some(given) if !given.same_place(&own) => {
                diagnostics.error(
                    at,
                    format!(
                        "the first {} controller of this machine is at {own}",
                        controller.kind.kind().as_str()
                    ),
                );
            }
            Some(_) => place(own, at, diagnostics),
            None => {
                controller.info.address = Some(Address::Pci(own));
                place(own, at, diagnostics);
            }
        }
    }
    // The ISA bridge, and the bridge of the power management.
    for function in [0, 3] {
        place(PciAddress { function, ..PciAddress::at(0, PIIX3_SLOT) }, domain.os.machine_span, diagnostics);
    }
    first_video(domain, buses, PIIX3_VIDEO_SLOT, diagnostics);
}

/// The first graphics card, where the firmware has always found it.
fn first_video(domain: &mut Domain, buses: &mut Buses, slot: u8, diagnostics: &mut Diagnostics) {
    let pcie = is_pcie(domain);
    let Some(video) = domain.devices.videos.first_mut() else { return };
    if matches!(video.model, VideoModel::None | VideoModel::Ramfb) || video.info.address.is_some() {
        return;
    }
    let address = PciAddress::at(0, slot);
    let found = if buses.slot_in_use(0, slot) {
        // An address like any other device, but the first one.
        let Some(plug) = devices::Placed::plug(video) else { return };
        buses.next(plug, None, video.info.span)
    } else {
        buses.reserve(&address, Plug::Express, video.info.span).map(|()| address)
    };
    match found {
        Ok(address) => video.info.address = Some(Address::Pci(address)),
        Err(refused) => say(refused, video.info.span, Some(&address), pcie, diagnostics),
    }
}

/// Slots of the ICH9 on Q35, as real boards have them.
const ICH9_SATA: PciAddress = PciAddress { domain: 0, bus: 0, slot: 0x1f, function: 2, multifunction: None };
const ICH9_USB_SLOTS: [u8; 2] = [0x1d, 0x1a];
const ICH9_DMI_SLOT: u8 = 0x1e;
const ICH9_AUDIO_SLOT: u8 = 0x1b;
const Q35_VIDEO_SLOT: u8 = 1;

fn q35(domain: &mut Domain, buses: &mut Buses, diagnostics: &mut Diagnostics) {
    for controller in &mut domain.devices.controllers {
        q35_controller(controller, buses, diagnostics);
    }
    // The ISA bridge and the SMBus.
    for function in [0, 3] {
        let address = PciAddress { function, ..PciAddress::at(0, ICH9_SATA.slot) };
        if let Err(refused) = buses.reserve(&address, Plug::Express, domain.os.machine_span) {
            say(refused, domain.os.machine_span, Some(&address), true, diagnostics);
        }
    }
    first_video(domain, buses, Q35_VIDEO_SLOT, diagnostics);
    let audio =
        domain.devices.sounds.iter_mut().find(|s| s.model == SoundModel::Ich9 && s.info.address.is_none());
    if let Some(sound) = audio {
        let address = PciAddress::at(0, ICH9_AUDIO_SLOT);
        if !buses.slot_in_use(0, ICH9_AUDIO_SLOT)
            && buses.reserve(&address, Plug::Express, sound.info.span).is_ok()
        {
            sound.info.address = Some(Address::Pci(address));
        }
    }
}

fn q35_controller(controller: &mut Controller, buses: &mut Buses, diagnostics: &mut Diagnostics) {
    let at = controller.info.address_span.unwrap_or(controller.info.span);
    match &controller.kind {
        ControllerKind::Sata if controller.number() == 0 => match address_of!(controller.info, Pci) {
            Some(given) if !given.same_place(&ICH9_SATA) => {
                diagnostics.error(at, format!("the first SATA controller of this machine is at {ICH9_SATA}"));
            }
            Some(_) => {}
            None => {
                controller.info.address = Some(Address::Pci(ICH9_SATA));
                if let Err(refused) = buses.reserve(&ICH9_SATA, Plug::Express, at) {
                    say(refused, at, Some(&ICH9_SATA), true, diagnostics);
                }
            }
        },
        ControllerKind::Usb(usb)
            if usb.model == Some(UsbModel::Ich9Uhci1) && controller.info.address.is_none() =>
        {
            let Some(slot) = ICH9_USB_SLOTS.into_iter().find(|s| !buses.slot_in_use(0, *s)) else { return };
            let address = PciAddress { multifunction: Some(true), ..PciAddress::at(0, slot) };
            if buses.reserve(&address, Plug::Express, at).is_ok() {
                controller.info.address = Some(Address::Pci(address));
            }
        }
        ControllerKind::Pci(pci)
            if pci.model == PciModel::DmiToPciBridge
                && controller.info.address.is_none()
                && !buses.slot_in_use(0, ICH9_DMI_SLOT) =>
        {
            let address = PciAddress::at(0, ICH9_DMI_SLOT);
            if buses.reserve(&address, Plug::Controller(pci.model), at).is_ok() {
                controller.info.address = Some(Address::Pci(address));
            }
        }
        _ => {}
    }
}

/// With conventional PCI one slot is kept, so that a bridge can still be added when all others are taken.
fn spare_slot(domain: &Domain, buses: &mut Buses) {
    if !is_pcie(domain) && !buses.all_full() {
        // Only its effect on the number of buses counts.
        let _ = buses.next(Plug::Conventional, None, Span::default());
    }
}

/// A PCIe guest that leaves its ports to vmward gets one more than it needs, for hotplug, as with libvirt. A user who
/// adds root ports gets exactly those.
fn spare_port(domain: &Domain, described: u32, buses: &mut Buses) {
    if is_pcie(domain) && described == 0 && buses.count() > 1 {
        let _ = buses.next(Plug::Express, None, Span::default());
    }
}

fn add_controllers(domain: &mut Domain, buses: &mut Buses) {
    let models: Vec<_> = buses.models().collect();
    for (number, model) in models.into_iter().enumerate().skip(1) {
        let number = number as u32;
        if controllers(domain).any(|c| c.number() == number) {
            continue;
        }
        let controller = Controller::implicit(ControllerKind::Pci(PciController::new(model)), number);
        let at = domain
            .devices
            .controllers
            .iter()
            .rposition(|c| c.kind.kind() == ControllerType::Pci && c.number() < number);
        domain.devices.controllers.insert(at.map_or(0, |at| at + 1), controller);
    }
}

/// Gives every device that has none an address.
fn give(domain: &mut Domain, buses: &mut Buses, pass: Pass, diagnostics: &mut Diagnostics) {
    let pcie = is_pcie(domain);
    // The parts of a USB 2 controller share a slot: the first one's address, by the controller's number.
    let mut usb2: Vec<(u32, PciAddress)> = domain
        .devices
        .controllers
        .iter()
        .filter(|c| ich9_function(c).is_some())
        .filter_map(|c| Some((c.number(), address_of!(c.info, Pci)?)))
        .collect();
    let parts: Vec<(Span, u32, u8)> = domain
        .devices
        .controllers
        .iter()
        .filter_map(|c| Some((c.info.span, c.number(), ich9_function(c)?)))
        .collect();
    for device in devices::pci_order(&mut domain.devices) {
        let Some(plug) = device.plug() else { continue };
        if device.info().address.is_some() {
            continue;
        }
        let at = device.info().span;
        let part = parts.iter().find(|(span, ..)| *span == at && at != Span::default());
        let found = match part {
            Some((_, number, function)) => {
                let multifunction = (*function == 0).then_some(true);
                let place = usb2.iter().find(|(n, _)| n == number).map(|(_, address)| *address);
                let found = match place {
                    Some(first) => {
                        let address = PciAddress { function: *function, multifunction, ..first };
                        buses.reserve(&address, plug, at).map(|()| address)
                    }
                    None => buses
                        .next(plug, Some(*function), at)
                        .map(|address| PciAddress { multifunction, ..address }),
                };
                if let Ok(address) = &found {
                    usb2.push((*number, *address));
                }
                found
            }
            None => buses.next(plug, None, at),
        };
        match found {
            Ok(address) if pass == Pass::Assign => device.info_mut().address = Some(Address::Pci(address)),
            Ok(_) => {}
            Err(refused) => say(refused, at, None, pcie, diagnostics),
        }
    }
}

/// The function of a part of an ICH9 USB 2 controller.
fn ich9_function(controller: &Controller) -> Option<u8> {
    match controller.usb()?.model? {
        UsbModel::Ich9Ehci1 => Some(7),
        UsbModel::Ich9Uhci1 => Some(0),
        UsbModel::Ich9Uhci2 => Some(1),
        UsbModel::Ich9Uhci3 => Some(2),
        _ => None,
    }
}

/// Function 0 of a slot with several functions has to say so.
fn mark_multifunction(domain: &mut Domain) {
    let shared: Vec<(u8, u8)> = devices::pci_order(&mut domain.devices)
        .filter_map(|d| address_of!(d.info(), Pci))
        .filter(|a| a.function != 0)
        .map(|a| (a.bus, a.slot))
        .collect();
    for device in devices::pci_order(&mut domain.devices) {
        if let Some(Address::Pci(address)) = &mut device.info_mut().address
            && address.function == 0
            && shared.contains(&(address.bus, address.slot))
        {
            address.multifunction.get_or_insert(true);
        }
    }
}

/// Numbers that ports, bridges and further roots need in the guest.
fn number_ports(domain: &mut Domain, diagnostics: &mut Diagnostics) {
    // A further root gets two bus numbers below the lowest one that is used: its own and that of the bridge inside it.
    const BUSES_OF_EXPANDER: u32 = 2;
    let given = domain.devices.controllers.iter().filter_map(|c| c.pci().and_then(|p| p.bus_nr));
    let mut lowest = given.min().unwrap_or(256);
    for controller in &mut domain.devices.controllers {
        let number = controller.number();
        let Some(address) = address_of!(controller.info, Pci) else { continue };
        let ControllerKind::Pci(pci) = &mut controller.kind else { continue };
        match pci.model {
            PciModel::PciBridge => {
                pci.chassis_nr.get_or_insert(number);
                if number <= u32::from(address.bus) {
                    diagnostics.error(
                        controller.info.span,
                        format!("a pci-bridge has a higher index than the bus it is on, {}", address.bus),
                    );
                }
            }
            PciModel::PcieRootPort => {
                pci.chassis.get_or_insert(number);
                pci.port.get_or_insert((u64::from(address.slot) << 3) + u64::from(address.function));
            }
            PciModel::PcieSwitchDownstreamPort => {
                pci.chassis.get_or_insert(number);
                pci.port.get_or_insert(u64::from(address.slot));
            }
            PciModel::PciExpanderBus | PciModel::PcieExpanderBus if pci.bus_nr.is_none() => {
                if lowest <= BUSES_OF_EXPANDER {
                    diagnostics
                        .error(controller.info.span, "no bus number is left for this controller")
                        .hint("choose one with <target busNr='...'/>");
                    continue;
                }
                lowest -= BUSES_OF_EXPANDER;
                pci.bus_nr = Some(lowest);
            }
            _ => {}
        }
    }
}

/// Hotplug: the address that is given, or the first free slot of a bus that takes devices while the guest runs.
pub(super) fn assign_disk(disk: &mut Disk, running: &Domain, diagnostics: &mut Diagnostics) {
    let mut running = running.clone();
    let pcie = is_pcie(&running);
    let mut buses = Buses::new(&described_buses(&running), pcie, false);
    // The guest runs with these addresses: there is nothing to say about them.
    let mut unsaid = Diagnostics::new();
    collect(&mut running, &mut buses, &mut unsaid);
    chipset(&mut running, &mut buses, &mut unsaid);
    let plug = devices::Placed::plug(disk).unwrap_or(Plug::Express);
    let info: &mut DeviceInfo = &mut disk.info;
    let at = info.address_span.unwrap_or(info.span);
    match address_of!(info, Pci) {
        Some(given) => {
            if let Err(refused) = buses.reserve_hotplug(&given, plug, at) {
                say(refused, at, Some(&given), pcie, diagnostics);
            }
        }
        None => match buses.next_hotplug(plug, at) {
            Ok(address) => info.address = Some(Address::Pci(address)),
            Err(_) if pcie && plug != Plug::Conventional => {
                diagnostics
                    .error(at, "the guest has no free PCIe port")
                    .hint("start it with one more <controller type='pci' model='pcie-root-port'/>, or use bus='scsi'");
            }
            Err(refused) => say(refused, at, None, pcie, diagnostics),
        },
    }
}
