//! What a guest is: libvirt's domain XML as types that know their place in the text. Pure.
//!
//! Reading and checking are one pass that collects everything there is to say; what nothing here asked the
//! XML for is reported as not honoured (see [`crate::xml`]).

mod address;
pub mod backing;
mod check;
pub mod clock;
pub mod commandline;
pub mod cpu;
pub mod cpu_model;
mod device;
pub mod devices;
pub mod disk;
pub mod features;
pub mod firmware;
pub mod general;
pub mod hyperv;
pub mod id_set;
pub mod launch_security;
pub mod lifecycle;
pub mod memory;
pub mod numa;
pub mod os;
pub mod overrides;
pub mod resources;
pub mod size;
pub mod sysinfo;
pub mod tuning;
pub mod vcpu;

pub use address::{
    Address, AddressType, CcidAddress, DimmAddress, DriveAddress, IsaAddress, PciAddress, UsbAddress,
    VirtioSerialAddress,
};
pub use device::DeviceInfo;

use crate::secret::SecretRef;
use crate::xml::{Diagnostics, Element};

/// One guest as its XML describes it.
#[derive(Debug, Clone, Default)]
pub struct Domain {
    /// Its name, UUID and descriptions.
    pub general: general::General,
    /// Its memory.
    pub memory: memory::Memory,
    /// What its memory is made of.
    pub backing: backing::MemoryBacking,
    /// Where its memory comes from.
    pub numatune: tuning::NumaTune,
    /// Threads of QEMU that serve disks.
    pub iothreads: tuning::IoThreads,
    /// Which of the host's processors its threads use.
    pub pinning: resources::Pinning,
    /// Its processors.
    pub vcpus: vcpu::Vcpus,
    /// What it boots, on which machine.
    pub os: os::Os,
    /// What of the platform is on.
    pub features: features::Features,
    /// The processor that it sees.
    pub cpu: cpu::Cpu,
    /// Its clock.
    pub clock: clock::Clock,
    /// What becomes of it when it ends.
    pub lifecycle: lifecycle::Lifecycle,
    /// Whether its firmware offers to suspend.
    pub power: lifecycle::PowerManagement,
    /// What its SMBIOS tables say.
    pub sysinfo: sysinfo::Sysinfo,
    /// `<genid>`.
    pub genid: Option<general::GenerationId>,
    /// How the host is kept out of its memory.
    pub launch_security: Option<launch_security::LaunchSecurity>,
    /// What goes to QEMU as it is.
    pub passed_through: commandline::PassedThrough,
    /// What QEMU does about what is deprecated.
    pub deprecation: Option<commandline::Deprecation>,
    /// Properties of QEMU's devices that win over all else.
    pub overrides: Vec<overrides::DeviceOverride>,
    /// Its devices.
    pub devices: devices::Devices,
}

impl Domain {
    /// Reads a whole `<domain>`. `None` if there are errors; warnings and unsupported parts are in
    /// `diagnostics` either way.
    pub fn from_xml(root: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        if root.name != "domain" {
            diagnostics.error(root.span, format!("this is a <{}>, not a <domain>", root.name));
            return None;
        }
        let vcpus = vcpu::Vcpus::from_xml(root, diagnostics);
        let mut domain = Self {
            general: general::General::from_xml(root, diagnostics),
            memory: memory::Memory::from_xml(root, diagnostics),
            backing: backing::MemoryBacking::from_xml(root, diagnostics),
            numatune: tuning::NumaTune::from_xml(root, vcpus.automatic, diagnostics),
            iothreads: tuning::IoThreads::from_xml(root, diagnostics),
            pinning: resources::Pinning::from_xml(root, diagnostics),
            vcpus,
            os: os::Os::from_xml(root, diagnostics),
            features: features::Features::from_xml(root, diagnostics),
            cpu: cpu::Cpu::from_xml(root, diagnostics),
            clock: clock::Clock::from_xml(root, diagnostics),
            lifecycle: lifecycle::Lifecycle::from_xml(root, diagnostics),
            power: lifecycle::PowerManagement::from_xml(root, diagnostics),
            sysinfo: sysinfo::Sysinfo::from_xml(root, diagnostics),
            genid: general::genid(root, diagnostics),
            launch_security: launch_security::LaunchSecurity::from_xml(root, diagnostics),
            passed_through: commandline::PassedThrough::from_xml(root, diagnostics),
            deprecation: commandline::deprecation(root, diagnostics),
            overrides: overrides::from_xml(root, diagnostics),
            devices: match root.only_child("devices", diagnostics) {
                Some(devices) => devices::Devices::from_xml(devices, diagnostics),
                None => devices::Devices::default(),
            },
        };
        commandline::capabilities(root, diagnostics);
        check::domain(&mut domain, diagnostics);
        root.report_unread(diagnostics);
        (!diagnostics.has_hard_errors()).then_some(domain)
    }

    /// Whether other processes can map the guest's memory.
    pub fn shares_memory(&self) -> bool {
        let shared = |access: Option<backing::MemoryAccess>| access == Some(backing::MemoryAccess::Shared);
        let cells = &self.cpu.numa.cells;
        match cells.is_empty() {
            true => shared(self.backing.access),
            false => cells.iter().all(|cell| shared(cell.access.or(self.backing.access))),
        }
    }

    /// The guest's name.
    pub fn name(&self) -> &str {
        &self.general.name
    }

    /// Every secret that the guest's devices use, in the order of the XML.
    pub fn secrets(&self) -> Vec<SecretRef> {
        let variables = self.os.firmware.nvram.iter().filter_map(|nvram| nvram.image.as_ref());
        let variables = variables.flat_map(disk::Image::secrets);
        let disks = self.devices.disks.iter().flat_map(disk::Disk::secrets);
        let hostdevs = self.devices.hostdevs.iter().filter_map(|h| h.secret().cloned());
        let tpms = self.devices.tpms.iter().filter_map(|t| t.secret().cloned());
        let graphics = self.devices.graphics.iter().flat_map(|g| g.secrets().cloned());
        let streams = self.devices.chardevs().filter_map(|c| c.tls()?.secret.clone());
        variables
            .into_iter()
            .chain(disks)
            .chain(hostdevs)
            .chain(tpms)
            .chain(graphics)
            .chain(streams)
            .collect()
    }
}

#[cfg(test)]
mod tests;
