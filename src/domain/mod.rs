//! What a guest is: libvirt's domain XML as types that know their place in the text. Pure.
//!
//! Reading and checking are one pass that collects everything there is to say; what nothing here asked the
//! XML for is reported as not honoured (see [`crate::xml`]).

mod address;
mod device;
pub mod devices;
pub mod disk;

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
    /// The guest's name.
    pub name: String,
    /// Its devices.
    pub devices: devices::Devices,
}

impl Domain {
    /// Reads a whole `<domain>`. `None` if there are errors; warnings and unsupported parts are in
    /// `diagnostics` either way.
    pub fn from_xml(_root: &Element, _diagnostics: &mut Diagnostics) -> Option<Self> {
        None
    }

    /// Every secret that the guest's devices use, in the order of the XML.
    pub fn secrets(&self) -> Vec<SecretRef> {
        self.devices.disks.iter().flat_map(disk::Disk::secrets).collect()
    }
}
