//! What QEMU is told about devices, as libvirt tells it: one file per kind of device, each with an implementation of
//! [`Placed`] and [`QemuDevice`].

mod audio;
mod character;
mod chardev;
mod controller;
mod crypto;
mod disk;
mod filesystem;
mod graphics;
mod hostdev;
mod hub;
mod input;
mod interface;
mod iommu;
mod memballoon;
mod memory_device;
mod panic;
mod pstore;
mod redirdev;
mod rng;
mod shmem;
mod smartcard;
mod sound;
#[cfg(test)]
mod tests;
mod tpm;
mod video;
mod virtio;
mod vsock;
mod watchdog;

pub use chardev::{TlsListener, is_chardev_key};
pub use graphics::vnc_address;

use crate::domain::devices::Devices;
use crate::domain::{DeviceInfo, Domain};
use crate::xml::Diagnostics;

use super::addresses::Plug;
use super::{Capabilities, CommandLine, JsonObject, Resource};

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
    // Interfaces that are devices of the host come with those.
    let (host_interfaces, interfaces): (Vec<_>, Vec<_>) =
        devices.interfaces.iter_mut().partition(|i| i.is_hostdev());
    pci.into_iter()
        .map(|c| c as &mut dyn Placed)
        .chain(placed!(devices.filesystems))
        .chain(interfaces.into_iter().map(|i| i as &mut dyn Placed))
        .chain(placed!(devices.sounds))
        .chain(others.into_iter().map(|c| c as &mut dyn Placed))
        .chain(placed!(devices.disks))
        .chain(host_interfaces.into_iter().map(|i| i as &mut dyn Placed))
        .chain(placed!(devices.hostdevs))
        .chain(placed!(devices.memballoon))
        .chain(placed!(devices.rngs))
        .chain(placed!(devices.watchdogs))
        .chain(placed!(devices.videos))
        .chain(placed!(devices.shmems))
        .chain(placed!(devices.inputs))
        .chain(placed!(devices.serials))
        .chain(placed!(devices.iommu))
        .chain(placed!(devices.vsock))
        .chain(placed!(devices.memories))
        .chain(placed!(devices.cryptos))
        .chain(placed!(devices.panics))
        .chain(placed!(devices.pstore))
}

/// Devices that take a USB port, in the order in which libvirt gives them; hubs aside.
pub(super) fn usb_order(devices: &mut Devices) -> impl Iterator<Item = &mut dyn Placed> {
    placed!(devices.disks)
        .chain(placed!(devices.interfaces))
        .chain(placed!(devices.sounds))
        .chain(placed!(devices.hostdevs))
        .chain(placed!(devices.controllers))
        .chain(placed!(devices.serials))
        .chain(placed!(devices.inputs))
        .chain(placed!(devices.redirdevs))
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
    let (host_interfaces, interfaces): (Vec<_>, Vec<_>) =
        devices.interfaces.iter_mut().partition(|i| i.is_hostdev());
    let host = host_interfaces.into_iter().map(|i| &mut i.info);
    vec![
        ("net", Counting::Unnamed, interfaces.into_iter().map(|i| &mut i.info).collect()),
        (
            "hostdev",
            Counting::Unnamed,
            host.chain(devices.hostdevs.iter_mut().map(|h| &mut h.info)).collect(),
        ),
        ("fs", Counting::All, infos!(devices.filesystems)),
        ("smartcard", Counting::All, infos!(devices.smartcards)),
        ("shmem", Counting::All, infos!(devices.shmems)),
        ("tpm", Counting::All, infos!(devices.tpms)),
        ("redir", Counting::Unnamed, infos!(devices.redirdevs)),
        ("iommu", Counting::All, infos!(devices.iommu)),
        ("vsock", Counting::All, infos!(devices.vsock)),
        ("crypto", Counting::All, infos!(devices.cryptos)),
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
        ("pstore", Counting::All, infos!(devices.pstore)),
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
    // What is translated by it comes later.
    if let Some(iommu) = &domain.devices.iommu {
        iommu.tell(&context, line, diagnostics);
    }
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
    tell!(filesystems, interfaces, smartcards, serials, parallels, channels, consoles, tpms, inputs);
    audio::tell(&context, line);
    graphics::tell(&context, line, diagnostics);
    tell!(videos, sounds, watchdogs);
    watchdog::tell_action(&context, line);
    tell!(redirdevs, hostdevs, shmems);
    if let Some(balloon) = &devices.memballoon {
        balloon.tell(&context, line, diagnostics);
    }
    tell!(rngs, panics, memories, cryptos);
    if let Some(vsock) = &devices.vsock {
        vsock.tell(&context, line, diagnostics);
    }
    if let Some(pstore) = &devices.pstore {
        pstore.tell(&context, line, diagnostics);
    }
    for lease in &devices.leases {
        line.require(Resource::Unavailable("leases of a lock manager".to_owned()), *lease);
    }
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
