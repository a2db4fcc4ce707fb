//! `<video>`.

use std::path::PathBuf;

use crate::domain::DeviceInfo;
use crate::xml::{Diagnostics, Element, keywords};

use super::virtio::VirtioOptions;

keywords! {
    /// Graphics cards.
    pub enum VideoModel {
        /// Standard VGA.
        Vga = "vga",
        /// Cirrus Logic.
        Cirrus = "cirrus",
        /// VMware SVGA.
        Vmvga = "vmvga",
        /// QXL.
        Qxl = "qxl",
        /// virtio-gpu.
        Virtio = "virtio",
        /// Bochs display.
        Bochs = "bochs",
        /// A frame buffer in guest memory.
        Ramfb = "ramfb",
        /// No card at all.
        None = "none",
    }
}

keywords! {
    /// Who draws for a virtio card.
    pub enum VideoBackend {
        /// QEMU.
        Qemu = "qemu",
        /// A vhost-user process.
        VhostUser = "vhostuser",
    }
}

/// A `<video>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Video {
    /// Where it is and what it is called.
    pub info: DeviceInfo,
    /// The card.
    pub model: VideoModel,
    /// Whether it is the one that boots; the first card if none says so.
    pub primary: bool,
    /// The number of screens.
    pub heads: Option<u32>,
    /// QXL: the first RAM bar in KiB.
    pub ram: Option<u64>,
    /// Video memory in KiB.
    pub vram: Option<u64>,
    /// QXL: the 64-bit bar in KiB.
    pub vram64: Option<u64>,
    /// QXL: the VGA part in KiB.
    pub vgamem: Option<u64>,
    /// Whether resources can be blobs.
    pub blob: Option<bool>,
    /// 3D acceleration.
    pub accel3d: Option<bool>,
    /// The device that renders.
    pub render_node: Option<PathBuf>,
    /// The resolution that the guest starts with.
    pub resolution: Option<(u32, u32)>,
    /// Who draws.
    pub backend: VideoBackend,
    /// What all virtio devices take.
    pub virtio: VirtioOptions,
}

impl Video {
    /// A card that nobody described further.
    pub fn new(model: VideoModel) -> Self {
        Self {
            info: DeviceInfo::default(),
            model,
            primary: false,
            heads: None,
            ram: None,
            vram: None,
            vram64: None,
            vgamem: None,
            blob: None,
            accel3d: None,
            render_node: None,
            resolution: None,
            backend: VideoBackend::Qemu,
            virtio: VirtioOptions::default(),
        }
    }

    /// What libvirt takes where no model is named.
    pub const DEFAULT_MODEL: VideoModel = VideoModel::Cirrus;

    /// Reads a `<video>`.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let info = DeviceInfo::from_xml(element, diagnostics);
        let mut video = Self { info, ..Self::new(Self::DEFAULT_MODEL) };
        if let Some(driver) = element.only_child("driver", diagnostics) {
            video.backend = driver.keyword("name", diagnostics).unwrap_or(VideoBackend::Qemu);
            video.virtio = VirtioOptions::from_xml(driver, diagnostics);
        }
        let Some(model) = element.only_child("model", diagnostics) else { return Some(video) };
        video.model = model.require_keyword("type", diagnostics)?;
        video.primary = model.yes_no("primary", diagnostics).unwrap_or(false);
        video.heads = model.number("heads", diagnostics);
        video.ram = model.number("ram", diagnostics);
        video.vram = model.number("vram", diagnostics);
        video.vram64 = model.number("vram64", diagnostics);
        video.vgamem = model.number("vgamem", diagnostics);
        video.blob = model.on_off("blob", diagnostics);
        if let Some(acceleration) = model.only_child("acceleration", diagnostics) {
            video.accel3d = acceleration.yes_no("accel3d", diagnostics);
            // 2D acceleration was a wish to VirtualBox; QEMU has none to switch on.
            if acceleration.yes_no("accel2d", diagnostics) == Some(true) {
                diagnostics.error(acceleration.span, "QEMU's cards do not accelerate 2D");
            }
            video.render_node = acceleration.get("rendernode").map(PathBuf::from);
        }
        if let Some(resolution) = model.only_child("resolution", diagnostics) {
            video.resolution = resolution.number("x", diagnostics).zip(resolution.number("y", diagnostics));
        }
        video.check(element, model, diagnostics);
        Some(video)
    }

    fn check(&self, element: &Element, model: &Element, diagnostics: &mut Diagnostics) {
        let name = self.model.as_str();
        let is = |models: &[VideoModel]| models.contains(&self.model);
        if !is(&[VideoModel::Qxl]) && (self.ram.is_some() || self.vram64.is_some()) {
            diagnostics.error(element.span, "only qxl cards have ram and vram64");
        }
        if self.backend == VideoBackend::VhostUser && !is(&[VideoModel::Virtio]) {
            diagnostics.error(element.span, "only virtio cards are drawn by a vhost-user process");
        }
        if self.virtio != VirtioOptions::default() && !is(&[VideoModel::Virtio]) {
            diagnostics
                .error(element.span, "the options iommu, ats, packed and page_per_vq are for virtio cards");
        }
        if is(&[VideoModel::None]) && self.info.address.is_some() {
            diagnostics.error(element.span, "a card that is not there has no address");
        }
        if self.accel3d == Some(true) && !is(&[VideoModel::Virtio]) {
            diagnostics.error(model.span, "only virtio cards accelerate 3D");
        }
        if self.heads.is_some_and(|heads| heads > 1) && !is(&[VideoModel::Virtio, VideoModel::Qxl]) {
            diagnostics.error(model.span, format!("a card of type '{name}' has one screen"));
        }
        // A framebuffer of less than that holds no picture; QEMU counts in MiB.
        const LEAST_VRAM_KIB: u64 = 1 << 10;
        let counted = is(&[VideoModel::Vga, VideoModel::Qxl, VideoModel::Vmvga]);
        if counted && self.vram.is_some_and(|kib| kib < LEAST_VRAM_KIB) {
            diagnostics.error(model.span, "a card has at least 1024 KiB of vram");
        }
        if self.vgamem.is_some_and(|kib| !kib.is_power_of_two() || kib < LEAST_VRAM_KIB) {
            diagnostics.error(model.span, "vgamem is a power of two, and 1024 KiB at least");
        }
    }
}
