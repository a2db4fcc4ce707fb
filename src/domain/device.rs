//! What all devices have in common.

use crate::xml::{Diagnostics, Element, Span};

use super::Address;

/// The part of a device that says where it is and what it is called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Where the device stands in the XML: the identity that ties what was assigned to what was written.
    pub span: Span,
    /// Its id in QEMU: the user's (`ua-...`), or assigned as libvirt does.
    pub alias: Option<String>,
    /// Its address: the user's, or assigned as libvirt does.
    pub address: Option<Address>,
    /// Where the address stands, if the user gave it.
    pub address_span: Option<Span>,
    /// `<boot order=...>`.
    pub boot_order: Option<u32>,
    /// `<acpi index=...>`: the number by which guests name a PCI device (`eno1`).
    pub acpi_index: Option<u32>,
    /// What puts the device at its address in QEMU: `bus`, `addr`, `unit`, ... Filled in with the address, so that
    /// every device is put there in the same way, whatever its bus: `properties.extend(info.place.clone())`.
    pub place: serde_json::Map<String, serde_json::Value>,
}

/// Aliases that users may choose start with this, so that they never collide with assigned ones.
const USER_ALIAS_PREFIX: &str = "ua-";

/// The highest number of an onboard device that QEMU takes, hw/acpi/pcihp.c: ONBOARD_INDEX_MAX.
const LAST_ACPI_INDEX: u32 = (16 << 10) - 1;

impl DeviceInfo {
    /// Reads `<alias>`, `<address>`, `<boot>` and `<acpi>` of a device.
    pub fn from_xml(device: &Element, diagnostics: &mut Diagnostics) -> Self {
        let mut info = Self { span: device.span, ..Self::default() };
        if let Some(alias) = device.only_child("alias", diagnostics) {
            // libvirt ignores aliases that it assigned itself (from dumpxml), and so does vmward.
            info.alias = alias.get("name").filter(|n| n.starts_with(USER_ALIAS_PREFIX)).map(str::to_owned);
        }
        if let Some(address) = device.only_child("address", diagnostics) {
            info.address = Address::from_xml(address, diagnostics);
            info.address_span = Some(address.span);
        }
        if let Some(boot) = device.only_child("boot", diagnostics) {
            info.boot_order = boot.number("order", diagnostics);
            if info.boot_order == Some(0) {
                diagnostics.error(boot.span, "boot orders start at 1");
            }
        }
        if let Some(acpi) = device.only_child("acpi", diagnostics) {
            info.acpi_index = acpi.number("index", diagnostics);
            if info.acpi_index.is_some_and(|index| !(1..=LAST_ACPI_INDEX).contains(&index)) {
                diagnostics.error(acpi.span, format!("ACPI indexes are 1 to {LAST_ACPI_INDEX}"));
            }
        }
        info
    }
}
