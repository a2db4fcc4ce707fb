//! `<shmem>`: memory that guests share.

use std::path::PathBuf;

use crate::domain::{DeviceInfo, size};
use crate::xml::{Diagnostics, Element, keywords};

keywords! {
    /// How memory is shared.
    pub enum ShmemModel {
        /// The memory alone.
        Plain = "ivshmem-plain",
        /// With interrupts, through a server.
        Doorbell = "ivshmem-doorbell",
    }
}

keywords! {
    /// Who keeps the memory when the guest moves to another host.
    pub enum ShmemRole {
        /// This guest.
        Master = "master",
        /// Another one.
        Peer = "peer",
    }
}

/// A `<shmem>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shmem {
    /// Where it is and what it is called.
    pub info: DeviceInfo,
    /// The memory's name.
    pub name: String,
    /// How it is shared.
    pub model: ShmemModel,
    /// Who keeps it.
    pub role: Option<ShmemRole>,
    /// Its size in bytes (plain).
    pub size: u64,
    /// The server's socket (doorbell); `None`: libvirt's usual place.
    pub server: Option<PathBuf>,
    /// The number of interrupt vectors (doorbell).
    pub vectors: Option<u32>,
    /// Whether interrupts are handled outside the virtual CPU's thread (doorbell).
    pub ioeventfd: Option<bool>,
}

impl Shmem {
    /// Reads a `<shmem>`.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        /// What libvirt takes where no size is given.
        const DEFAULT_SIZE: u64 = 4 * size::MIB;
        let info = DeviceInfo::from_xml(element, diagnostics);
        let name = element.require("name", diagnostics)?.to_owned();
        if name.contains('/') || name == "." || name == ".." {
            diagnostics.error(element.span, format!("'{name}' is not a name that shared memory can have"));
        }
        let Some(model) = element.only_child("model", diagnostics) else {
            diagnostics
                .error(element.span, "<shmem> names no model")
                .hint("write <model type='ivshmem-plain'/>; QEMU has no plain 'ivshmem' any more");
            return None;
        };
        let model = model.require_keyword("type", diagnostics)?;
        let server = element.only_child("server", diagnostics);
        let msi = element.only_child("msi", diagnostics);
        if model == ShmemModel::Plain {
            for extra in server.iter().chain(&msi) {
                diagnostics.error(extra.span, format!("<{}> is for ivshmem-doorbell", extra.name));
            }
        }
        let size_element = element.only_child("size", diagnostics);
        if let Some(extra) = size_element.filter(|_| model == ShmemModel::Doorbell) {
            diagnostics.error(extra.span, "the server says how large the memory is");
        }
        let bytes =
            size_element.and_then(|e| size::of_element(e, size::MIB, diagnostics)).unwrap_or(DEFAULT_SIZE);
        if let Some(e) = size_element.filter(|_| !bytes.is_power_of_two() || bytes < size::MIB) {
            diagnostics.error(e.span, "the size is a power of two, and 1 MiB at least");
        }
        if model == ShmemModel::Doorbell && server.is_none() {
            diagnostics.error(element.span, "ivshmem-doorbell lacks the <server> that rings the bells");
        }
        if let Some(msi) = msi {
            msi.yes_no("enabled", diagnostics);
        }
        Some(Self {
            info,
            name,
            model,
            role: element.keyword("role", diagnostics),
            size: bytes,
            server: server.and_then(|s| s.get("path")).map(PathBuf::from),
            vectors: msi.and_then(|m| m.number("vectors", diagnostics)),
            ioeventfd: msi.and_then(|m| m.on_off("ioeventfd", diagnostics)),
        })
    }
}
