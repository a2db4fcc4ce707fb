//! `<memballoon>`.

use crate::domain::DeviceInfo;
use crate::xml::{Diagnostics, Element, keywords};

use super::virtio::{VirtioModel, VirtioOptions};

keywords! {
    /// Balloons.
    pub enum BalloonModel {
        /// virtio-balloon.
        Virtio = "virtio",
        /// virtio-balloon, 0.9 and 1.0.
        VirtioTransitional = "virtio-transitional",
        /// virtio-balloon, 1.0 alone.
        VirtioNonTransitional = "virtio-non-transitional",
        /// None.
        None = "none",
    }
}

/// A `<memballoon>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memballoon {
    /// Where it is and what it is called.
    pub info: DeviceInfo,
    /// Which virtio; `None`: the guest has no balloon.
    pub model: Option<VirtioModel>,
    /// Whether the guest may take memory back when it runs out of it.
    pub autodeflate: Option<bool>,
    /// Whether the guest says which memory it does not use.
    pub free_page_reporting: Option<bool>,
    /// How often the guest says how much it uses, in seconds.
    pub stats_period: Option<u32>,
    /// What all virtio devices take.
    pub virtio: VirtioOptions,
}

impl Default for Memballoon {
    fn default() -> Self {
        Self {
            info: DeviceInfo::default(),
            model: Some(VirtioModel::Virtio),
            autodeflate: None,
            free_page_reporting: None,
            stats_period: None,
            virtio: VirtioOptions::default(),
        }
    }
}

impl Memballoon {
    /// Reads a `<memballoon>`.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let info = DeviceInfo::from_xml(element, diagnostics);
        let model = match element.require_keyword("model", diagnostics)? {
            BalloonModel::Virtio => Some(VirtioModel::Virtio),
            BalloonModel::VirtioTransitional => Some(VirtioModel::Transitional),
            BalloonModel::VirtioNonTransitional => Some(VirtioModel::NonTransitional),
            BalloonModel::None => None,
        };
        Some(Self {
            info,
            model,
            autodeflate: element.on_off("autodeflate", diagnostics),
            free_page_reporting: element.on_off("freePageReporting", diagnostics),
            stats_period: element
                .only_child("stats", diagnostics)
                .and_then(|stats| stats.number("period", diagnostics)),
            virtio: VirtioOptions::of_device(element, diagnostics),
        })
    }
}
