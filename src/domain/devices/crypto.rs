//! `<crypto>`.

use crate::domain::DeviceInfo;
use crate::xml::{Diagnostics, Element, keywords};

keywords! {
    /// Crypto devices.
    pub enum CryptoModel {
        /// virtio-crypto.
        Virtio = "virtio",
    }
}

keywords! {
    /// Who has it.
    pub enum CryptoType {
        /// QEMU.
        Qemu = "qemu",
    }
}

keywords! {
    /// Who does the work.
    pub enum CryptoBackend {
        /// QEMU itself.
        Builtin = "builtin",
        /// The kernel.
        Lkcf = "lkcf",
    }
}

/// A `<crypto>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crypto {
    /// Where it is and what it is called.
    pub info: DeviceInfo,
    /// Who does the work.
    pub backend: CryptoBackend,
    /// The number of queues.
    pub queues: Option<u32>,
}

impl Crypto {
    /// Reads a `<crypto>`.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let info = DeviceInfo::from_xml(element, diagnostics);
        element.require_keyword::<CryptoModel>("model", diagnostics);
        element.require_keyword::<CryptoType>("type", diagnostics);
        let Some(backend) = element.only_child("backend", diagnostics) else {
            diagnostics.error(element.span, "<crypto> lacks its <backend>");
            return None;
        };
        let queues = backend.number("queues", diagnostics);
        Some(Self { info, backend: backend.require_keyword("model", diagnostics)?, queues })
    }
}
