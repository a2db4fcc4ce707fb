//! `<filesystem>`: directories of the host in the guest.

use std::path::PathBuf;

use crate::domain::{DeviceInfo, Domain};
use crate::xml::{Diagnostics, Element, keywords};

use super::virtio::{VirtioModel, VirtioOptions};
use super::virtiofsd::Virtiofsd;

keywords! {
    /// What is given to the guest.
    pub enum FilesystemType {
        /// A directory.
        Mount = "mount",
    }
}

keywords! {
    /// How it is given.
    pub enum FilesystemDriver {
        /// By QEMU, over 9p.
        Path = "path",
        /// By QEMU, over 9p, by file handles.
        Handle = "handle",
        /// By virtiofsd.
        Virtiofs = "virtiofs",
    }
}

keywords! {
    /// Whose the guest's files are on the host.
    pub enum AccessMode {
        /// The guest's user's.
        Passthrough = "passthrough",
        /// QEMU's user's; the guest's is kept beside.
        Mapped = "mapped",
        /// QEMU's user's.
        Squash = "squash",
    }
}

keywords! {
    /// When writes reach the host's disk.
    pub enum WritePolicy {
        /// At once.
        Immediate = "immediate",
    }
}

keywords! {
    /// What becomes of files with the same number on several devices.
    pub enum Multidevs {
        /// As QEMU thinks best.
        Default = "default",
        /// They get other numbers.
        Remap = "remap",
        /// They are not there.
        Forbid = "forbid",
        /// QEMU says so.
        Warn = "warn",
    }
}

/// What is given to the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilesystemSource {
    /// A directory.
    Directory(PathBuf),
    /// The socket of a virtiofsd that somebody else started.
    Socket(PathBuf),
}

/// A `<filesystem>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filesystem {
    /// Where it is and what it is called.
    pub info: DeviceInfo,
    /// Which virtio (9p).
    pub model: VirtioModel,
    /// How it is given.
    pub driver: FilesystemDriver,
    /// What is given.
    pub source: FilesystemSource,
    /// The name that the guest mounts it by.
    pub tag: String,
    /// Whose the files are.
    pub access: AccessMode,
    /// When writes reach the disk.
    pub write_policy: Option<WritePolicy>,
    /// The mode of new files, for `mapped`.
    pub file_mode: Option<u32>,
    /// The mode of new directories, for `mapped`.
    pub directory_mode: Option<u32>,
    /// What becomes of equal file numbers.
    pub multidevs: Option<Multidevs>,
    /// Whether the guest can only read.
    pub readonly: bool,
    /// virtiofs: the length of the queue.
    pub queue_size: Option<u32>,
    /// virtiofs: what its daemon is told.
    pub daemon: Virtiofsd,
    /// What all virtio devices take.
    pub virtio: VirtioOptions,
}

impl Filesystem {
    /// Reads a `<filesystem>`.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let info = DeviceInfo::from_xml(element, diagnostics);
        if element.attribute("type").is_some() {
            element.keyword::<FilesystemType>("type", diagnostics)?;
        }
        let driver_element = element.only_child("driver", diagnostics);
        let driver = match driver_element.filter(|d| d.attribute("type").is_some()) {
            Some(driver) => driver.keyword("type", diagnostics)?,
            None => FilesystemDriver::Path,
        };
        let virtiofs = driver == FilesystemDriver::Virtiofs;
        let source = Self::source(element, virtiofs, diagnostics)?;
        let Some(target) = element.only_child("target", diagnostics) else {
            diagnostics.error(element.span, "<filesystem> lacks its <target>");
            return None;
        };
        let readonly = element.only_child("readonly", diagnostics);
        if let Some(readonly) = readonly.filter(|_| virtiofs) {
            diagnostics.error(readonly.span, "virtiofs has no read-only filesystems");
        }
        let mode = |name: &str, diagnostics: &mut Diagnostics| {
            let attribute = element.attribute(name)?;
            let found = u32::from_str_radix(&attribute.value, 8).ok().filter(|m| *m <= 0o777);
            if found.is_none() {
                diagnostics.error(attribute.span, format!("'{}' is not a file mode", attribute.value));
            }
            found
        };
        Some(Self {
            info,
            model: element.keyword("model", diagnostics).unwrap_or(VirtioModel::Virtio),
            driver,
            source,
            tag: target.require("dir", diagnostics)?.to_owned(),
            access: element.keyword("accessmode", diagnostics).unwrap_or(AccessMode::Passthrough),
            write_policy: driver_element.and_then(|d| d.keyword("wrpolicy", diagnostics)),
            file_mode: mode("fmode", diagnostics),
            directory_mode: mode("dmode", diagnostics),
            multidevs: element.keyword("multidevs", diagnostics),
            readonly: readonly.is_some(),
            queue_size: driver_element.and_then(|d| d.number("queue", diagnostics)),
            daemon: if virtiofs {
                Virtiofsd::of_filesystem(element, diagnostics)
            } else {
                Virtiofsd::default()
            },
            virtio: driver_element.map(|d| VirtioOptions::from_xml(d, diagnostics)).unwrap_or_default(),
        })
    }

    fn source(element: &Element, virtiofs: bool, diagnostics: &mut Diagnostics) -> Option<FilesystemSource> {
        let Some(source) = element.only_child("source", diagnostics) else {
            diagnostics.error(element.span, "<filesystem> lacks its <source>");
            return None;
        };
        if let Some(socket) = source.attribute("socket").filter(|_| virtiofs) {
            return Some(FilesystemSource::Socket((&socket.value).into()));
        }
        source.require("dir", diagnostics).map(|dir| FilesystemSource::Directory(dir.into()))
    }
}

/// The rules between filesystems and the rest of their guest.
pub fn check_in(domain: &Domain, diagnostics: &mut Diagnostics) {
    if domain.shares_memory() {
        return;
    }
    let virtiofs = |f: &&Filesystem| f.driver == FilesystemDriver::Virtiofs;
    for filesystem in domain.devices.filesystems.iter().filter(virtiofs) {
        diagnostics
            .error(filesystem.info.span, "virtiofsd has to see the guest's memory, which is not shared")
            .hint("write <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>");
    }
}
