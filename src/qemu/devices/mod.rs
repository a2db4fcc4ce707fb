//! What QEMU is told about devices, as libvirt tells it: one file per kind of device, each with an implementation of
//! [`QemuDevice`].

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

/// A device, as QEMU has it.
pub(super) trait QemuDevice {
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

    /// Adds its options.
    fn tell(&self, context: &Context, line: &mut CommandLine, diagnostics: &mut Diagnostics);
}
