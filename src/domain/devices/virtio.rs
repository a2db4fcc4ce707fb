//! What all virtio devices have in common.

use crate::xml::{Diagnostics, Element, keywords};

keywords! {
    /// Which virtio a device speaks. Without one it is transitional on a PCI bus and modern on a PCIe bus.
    pub enum VirtioModel {
        /// By the bus.
        Virtio = "virtio",
        /// 0.9 and 1.0; only on conventional PCI.
        Transitional = "virtio-transitional",
        /// 1.0 alone.
        NonTransitional = "virtio-non-transitional",
    }
}

impl VirtioModel {
    /// What the driver's name ends with.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Virtio => "",
            Self::Transitional => "-transitional",
            Self::NonTransitional => "-non-transitional",
        }
    }
}

/// The attributes of `<driver>` that every virtio device takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VirtioOptions {
    /// DMA goes through the emulated IOMMU.
    pub iommu: Option<bool>,
    /// Address translation services.
    pub ats: Option<bool>,
    /// Packed virtqueues.
    pub packed: Option<bool>,
    /// Notifications of each queue on a page of their own.
    pub page_per_vq: Option<bool>,
}

impl VirtioOptions {
    /// Reads them from a device's `<driver>`.
    pub fn from_xml(driver: &Element, diagnostics: &mut Diagnostics) -> Self {
        Self {
            iommu: driver.on_off("iommu", diagnostics),
            ats: driver.on_off("ats", diagnostics),
            packed: driver.on_off("packed", diagnostics),
            page_per_vq: driver.on_off("page_per_vq", diagnostics),
        }
    }

    /// Reads them from the `<driver>` of a device that has no other use for that element.
    pub fn of_device(device: &Element, diagnostics: &mut Diagnostics) -> Self {
        device.only_child("driver", diagnostics).map(|d| Self::from_xml(d, diagnostics)).unwrap_or_default()
    }
}
