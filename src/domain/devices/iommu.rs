//! `<iommu>`.

use crate::domain::DeviceInfo;
use crate::xml::{Diagnostics, Element, keywords};

keywords! {
    /// IOMMUs.
    pub enum IommuModel {
        /// Intel's.
        Intel = "intel",
        /// virtio-iommu.
        Virtio = "virtio",
    }
}

/// An `<iommu>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Iommu {
    /// Where it is and what it is called.
    pub info: DeviceInfo,
    /// Which one.
    pub model: IommuModel,
    /// Interrupt remapping.
    pub intremap: Option<bool>,
    /// Caching mode, for devices of the host.
    pub caching_mode: Option<bool>,
    /// Extended interrupt mode.
    pub eim: Option<bool>,
    /// TLBs in devices.
    pub iotlb: Option<bool>,
    /// The width of addresses.
    pub aw_bits: Option<u32>,
    /// Whether it translates addresses at all, besides remapping interrupts.
    pub dma_translation: Option<bool>,
}

impl Iommu {
    /// Reads an `<iommu>`.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let info = DeviceInfo::from_xml(element, diagnostics);
        let model = element.require_keyword("model", diagnostics)?;
        let driver = element.only_child("driver", diagnostics);
        if let Some(driver) = driver.filter(|_| model != IommuModel::Intel) {
            diagnostics.error(driver.span, "only Intel's IOMMU has a <driver>");
        }
        let mut on_off = |name: &str| driver.and_then(|d| d.on_off(name, diagnostics));
        let (intremap, caching_mode) = (on_off("intremap"), on_off("caching_mode"));
        let (eim, iotlb) = (on_off("eim"), on_off("iotlb"));
        let dma_translation = on_off("dma_translation");
        let aw_bits = driver.and_then(|d| d.number("aw_bits", diagnostics));
        if let Some(driver) = driver.filter(|_| eim == Some(true) && intremap != Some(true)) {
            diagnostics.error(driver.span, "eim='on' needs intremap='on'");
        }
        if model == IommuModel::Intel && info.address.is_some() {
            diagnostics.error(element.span, "Intel's IOMMU is no PCI device, it has no address");
        }
        Some(Self { info, model, intremap, caching_mode, eim, iotlb, aw_bits, dma_translation })
    }
}
