//! What QEMU is told about devices, as libvirt tells it: one file per kind of device, each with an implementation of
//! [`Placed`] and [`QemuDevice`].

mod audio;
mod character;
mod chardev;
mod controller;
mod disk;
mod graphics;
mod hub;
mod input;
mod interface;
mod memballoon;
mod memory_device;
mod panic;
mod rng;
mod sound;
mod video;
mod virtio;
mod watchdog;

use crate::domain::devices::Devices;
use crate::domain::{DeviceInfo, Domain};
use crate::xml::Diagnostics;

use super::addresses::Plug;
use super::{Capabilities, CommandLine, JsonObject};

/// What telling QEMU about a device may depend on besides the device.
pub(super) struct Context<'a> {
    /// The guest.
    pub domain: &'a Domain,
    /// What QEMU can do.
    pub capabilities: &'a Capabilities,
}

/// A device that sits somewhere.
pub(super) trait Placed {
    /// Where it is and what it is called.
    fn info(&self) -> &DeviceInfo;

    /// The same, to be filled in.
    fn info_mut(&mut self) -> &mut DeviceInfo;

    /// How it plugs into PCI; `None`: it does not.
    fn plug(&self) -> Option<Plug> {
        None
    }

    /// Whether it takes a USB port.
    fn on_usb(&self) -> bool {
        false
    }
}

/// A device, as QEMU has it.
pub(super) trait QemuDevice: Placed {
    /// Adds its options.
    fn tell(&self, context: &Context, line: &mut CommandLine, diagnostics: &mut Diagnostics);
}

/// Implements the part of [`Placed`] that is the same for all.
macro_rules! has_info {
    () => {
        fn info(&self) -> &crate::domain::DeviceInfo {
            &self.info
        }

        fn info_mut(&mut self) -> &mut crate::domain::DeviceInfo {
            &mut self.info
        }
    };
}
use has_info;

/// The parts of a list as devices.
macro_rules! placed {
    ($list:expr) => {
        $list.iter_mut().map(|d| d as &mut dyn Placed)
    };
}

/// Devices in the order in which libvirt gives PCI addresses.
pub(super) fn pci_order(devices: &mut Devices) -> impl Iterator<Item = &mut dyn Placed> {
    let (pci, others): (Vec<_>, Vec<_>) = devices.controllers.iter_mut().partition(|c| c.pci().is_some());
    pci.into_iter()
        .map(|c| c as &mut dyn Placed)
        .chain(placed!(devices.interfaces))
        .chain(placed!(devices.sounds))
        .chain(others.into_iter().map(|c| c as &mut dyn Placed))
        .chain(placed!(devices.disks))
        .chain(placed!(devices.memballoon))
        .chain(placed!(devices.rngs))
        .chain(placed!(devices.watchdogs))
        .chain(placed!(devices.videos))
        .chain(placed!(devices.inputs))
        .chain(placed!(devices.serials))
        .chain(placed!(devices.panics))
        .chain(placed!(devices.memories))
}

/// Devices that take a USB port, in the order in which libvirt gives them; hubs aside.
pub(super) fn usb_order(devices: &mut Devices) -> impl Iterator<Item = &mut dyn Placed> {
    placed!(devices.disks)
        .chain(placed!(devices.controllers))
        .chain(placed!(devices.interfaces))
        .chain(placed!(devices.inputs))
        .chain(placed!(devices.serials))
        .chain(placed!(devices.sounds))
        .filter(|d| d.on_usb())
}

/// How devices of a kind are numbered in their aliases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counting {
    /// By place: a name of the user's leaves out a number.
    All,
    /// Those without a name of the user's.
    Unnamed,
}

/// Everything but disks and controllers, by the stem of its alias.
pub(super) fn by_stem(devices: &mut Devices) -> Vec<(&'static str, Counting, Vec<&mut DeviceInfo>)> {
    macro_rules! infos {
        ($list:expr) => {
            $list.iter_mut().map(|d| &mut d.info).collect()
        };
    }
    vec![
        ("net", Counting::Unnamed, infos!(devices.interfaces)),
        ("sound", Counting::All, infos!(devices.sounds)),
        ("video", Counting::All, infos!(devices.videos)),
        ("console", Counting::All, infos!(devices.consoles)),
        ("serial", Counting::All, infos!(devices.serials)),
        ("parallel", Counting::All, infos!(devices.parallels)),
        ("channel", Counting::All, infos!(devices.channels)),
        ("hub", Counting::All, infos!(devices.hubs)),
        ("balloon", Counting::All, infos!(devices.memballoon)),
        ("rng", Counting::All, infos!(devices.rngs)),
        ("watchdog", Counting::All, infos!(devices.watchdogs)),
        ("input", Counting::All, infos!(devices.inputs)),
        ("panic", Counting::All, infos!(devices.panics)),
        ("memory", Counting::All, infos!(devices.memories)),
    ]
}

/// Adds the controllers: they come before everything that is plugged into them.
pub(super) fn controllers(
    domain: &Domain,
    capabilities: &Capabilities,
    line: &mut CommandLine,
    diagnostics: &mut Diagnostics,
) {
    let context = Context { domain, capabilities };
    // A PCI controller may be plugged into one with a lower index.
    let (pci, others): (Vec<_>, Vec<_>) = domain.devices.controllers.iter().partition(|c| c.pci().is_some());
    for controller in pci.into_iter().chain(others) {
        controller.tell(&context, line, diagnostics);
    }
    for hub in &domain.devices.hubs {
        hub.tell(&context, line, diagnostics);
    }
}

/// Adds everything but controllers and disks.
pub(super) fn others(
    domain: &Domain,
    capabilities: &Capabilities,
    line: &mut CommandLine,
    diagnostics: &mut Diagnostics,
) {
    let context = Context { domain, capabilities };
    let devices = &domain.devices;
    macro_rules! tell {
        ($($kind:ident),+) => {
            $(for device in &devices.$kind {
                device.tell(&context, line, diagnostics);
            })+
        };
    }
    tell!(interfaces, serials, parallels, channels, consoles, inputs);
    audio::tell(&context, line);
    graphics::tell(&context, line, diagnostics);
    tell!(videos, sounds, watchdogs);
    watchdog::tell_action(&context, line);
    if let Some(balloon) = &devices.memballoon {
        balloon.tell(&context, line, diagnostics);
    }
    tell!(rngs, panics, memories);
}

/// `-device` with what every device has at its end: its place.
fn device(line: &mut CommandLine, mut properties: JsonObject, info: &DeviceInfo) {
    properties.extend(info.place.clone());
    line.json("-device", properties);
}

/// A device's id.
fn alias(info: &DeviceInfo) -> &str {
    info.alias.as_deref().unwrap_or_default()
}
