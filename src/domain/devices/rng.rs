//! `<rng>`.

use std::path::PathBuf;

use crate::domain::DeviceInfo;
use crate::xml::{Diagnostics, Element, keywords};

use super::chardev::Chardev;
use super::virtio::{VirtioModel, VirtioOptions};

keywords! {
    /// Where randomness comes from.
    pub enum RngSource {
        /// A device of the host.
        Random = "random",
        /// A daemon that speaks EGD.
        Egd = "egd",
        /// QEMU's own generator.
        Builtin = "builtin",
    }
}

/// Where randomness comes from, in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RngBackend {
    /// A device of the host.
    Random(PathBuf),
    /// A daemon that speaks EGD.
    Egd(Chardev),
    /// QEMU's own generator.
    Builtin,
}

/// An `<rng>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rng {
    /// Where it is and what it is called.
    pub info: DeviceInfo,
    /// Which virtio.
    pub model: VirtioModel,
    /// Where randomness comes from.
    pub backend: RngBackend,
    /// The most bytes in a period, and the period in ms.
    pub rate: Option<(u64, Option<u32>)>,
    /// What all virtio devices take.
    pub virtio: VirtioOptions,
}

impl Rng {
    /// Reads an `<rng>`.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let info = DeviceInfo::from_xml(element, diagnostics);
        let model = element.require_keyword("model", diagnostics);
        let virtio = VirtioOptions::of_device(element, diagnostics);
        let rate = element.only_child("rate", diagnostics).and_then(|rate| {
            rate.require("bytes", diagnostics);
            Some((rate.number("bytes", diagnostics)?, rate.number("period", diagnostics)))
        });
        let Some(backend) = element.only_child("backend", diagnostics) else {
            diagnostics
                .error(element.span, "<rng> lacks its <backend>")
                .hint("<backend model='random'>/dev/urandom</backend>");
            return None;
        };
        let backend = match backend.require_keyword("model", diagnostics)? {
            RngSource::Random => {
                let path = backend.text();
                RngBackend::Random(if path.is_empty() { "/dev/random" } else { path }.into())
            }
            RngSource::Egd => RngBackend::Egd(Chardev::from_xml(backend, false, diagnostics)?),
            RngSource::Builtin => RngBackend::Builtin,
        };
        Some(Self { info, model: model?, backend, rate, virtio })
    }
}
