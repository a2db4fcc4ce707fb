//! `<disk>`: one drive of the guest, and the images behind it.

mod auth;
mod check;
mod driver;
mod encryption;
mod frontend;
mod image;
mod iotune;
mod network;
mod source;

pub use auth::Auth;
pub use check::{check_all, check_in};
pub use driver::{Cache, CacheFlags, DetectZeroes, Discard, Driver, ErrorPolicy, Io, IothreadQueues};
pub use encryption::{Encryption, EncryptionFormat, Engine};
pub use frontend::{BlockIo, Bus, Geometry, Kind, Translation};
pub use image::{Backing, Format, Image, Slice, StartupPolicy};
pub use iotune::{IoTune, Limits};
pub use network::{Host, Network, Protocol, Transport, UrlScheme};
pub use source::{Nvme, Reservations, Source, SourceType, VhostUser};

use crate::secret::SecretRef;
use crate::xml::{Diagnostics, Element, Span};

use super::DeviceInfo;
use super::devices::virtio::VirtioModel;

/// One disk.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    /// Where it is and what it is called.
    pub info: DeviceInfo,
    /// What the guest sees: a disk, a CD drive, ...
    pub kind: Kind,
    /// The bus it is on.
    pub bus: Bus,
    /// The guest-side name, unique in a domain: `vda`, `sdb`, ...
    pub target: String,
    /// Where the target stands in the XML.
    pub target_span: Span,
    /// The flavour of virtio-blk.
    pub model: Option<VirtioModel>,
    /// `<driver>`: how the images are used.
    pub driver: Driver,
    /// The image on top; `None` is a drive without a medium.
    pub image: Option<Image>,
    /// The guest cannot write.
    pub readonly: bool,
    /// Several guests may write at once.
    pub shareable: bool,
    /// Says to the guest that the medium may go away (scsi and usb).
    pub removable: Option<bool>,
    /// Rotations per minute; 1 is a solid-state disk. 0: not said.
    pub rotation_rate: u16,
    /// The serial number that the guest sees.
    pub serial: Option<String>,
    /// The World Wide Name that the guest sees.
    pub wwn: Option<u64>,
    /// The vendor that the guest sees (scsi).
    pub vendor: Option<String>,
    /// The product that the guest sees (scsi).
    pub product: Option<String>,
    /// The geometry that the guest sees.
    pub geometry: Option<Geometry>,
    /// Sizes of blocks that the guest sees.
    pub block_io: BlockIo,
    /// Limits on throughput.
    pub iotune: Option<IoTune>,
}

impl Disk {
    /// Reads a `<disk>`, of a domain or on its own (hotplug). `None` if there is not enough to go on with;
    /// what was wrong is in `diagnostics` either way.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        if element.name != "disk" {
            diagnostics.error(element.span, format!("this is <{}>, not <disk>", element.name));
            return None;
        }
        // Which disks an external snapshot takes by default: vmward makes no snapshots of its own accord.
        element.get("snapshot");
        // What vmward does anyway: QEMU gets no privilege, and the kernel filters SCSI commands.
        for (name, usual) in [("rawio", "no"), ("sgio", "filtered")] {
            if element.attributes.iter().any(|a| a.name == name && a.value == usual) {
                element.get(name);
            }
        }
        if let Some(raw) = element.attributes.iter().find(|a| a.name == "rawio" && a.value == "yes") {
            element.get("rawio");
            diagnostics.outside_qemu(raw.name_span, "vmward gives QEMU no privilege for raw SCSI commands");
        }
        // Xen's driver domains: QEMU is where the disk is, whatever this says.
        if let Some(backend) = element.child("backenddomain") {
            backend.mark_read();
        }
        // The state of a block job, which libvirt prints in a running guest's XML and ignores when it reads it.
        if let Some(mirror) = element.child("mirror") {
            mirror.mark_read();
        }
        let found = Self::read(element, diagnostics);
        if found.is_none() {
            // What was not read because of the error is no news.
            element.mark_read();
        }
        found
    }

    fn read(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let info = DeviceInfo::from_xml(element, diagnostics);
        let kind = match element.attribute("device") {
            None => Kind::Disk,
            Some(_) => element.keyword("device", diagnostics)?,
        };
        let target = frontend::Target::from_xml(element, kind, diagnostics)?;
        let driver = Driver::from_xml(element, diagnostics);
        let readonly = frontend::flag(element, "readonly", diagnostics) || kind == Kind::Cdrom;
        let image = Image::top_from_xml(element, readonly, diagnostics);
        let disk = Self {
            info,
            kind,
            bus: target.bus,
            target: target.name,
            target_span: target.span,
            model: element.keyword("model", diagnostics),
            image: None,
            readonly,
            shareable: frontend::flag(element, "shareable", diagnostics),
            removable: target.removable,
            rotation_rate: target.rotation_rate,
            serial: frontend::serial(element, diagnostics),
            wwn: frontend::wwn(element, diagnostics),
            vendor: frontend::inquiry(element, "vendor", diagnostics),
            product: frontend::inquiry(element, "product", diagnostics),
            geometry: Geometry::from_xml(element, diagnostics),
            block_io: BlockIo::from_xml(element, diagnostics),
            iotune: IoTune::from_xml(element, diagnostics),
            driver,
        };
        // Only now: the rest was to be read for its own problems.
        let disk = Self { image: image.ok()?, ..disk };
        disk.check(element, diagnostics);
        Some(disk)
    }

    /// The images from the top to the base.
    pub fn chain(&self) -> impl Iterator<Item = &Image> {
        std::iter::successors(self.image.as_ref(), |image| image.backing_image())
    }

    /// What the caches may do. A disk that several guests write to is not cached on the host, unless the XML
    /// says how it is: what one guest wrote would not reach the others.
    pub fn cache(&self) -> Option<CacheFlags> {
        let shared = self.shareable && !self.readonly;
        match self.driver.cache {
            None | Some(Cache::Default) if shared => Cache::None.flags(),
            cache => cache.and_then(Cache::flags),
        }
    }

    /// The secrets that it uses: from its top layer to its base, storage before format.
    pub fn secrets(&self) -> Vec<SecretRef> {
        self.chain().flat_map(Image::secrets).collect()
    }

    /// Whether any of its images is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.chain().any(|image| image.encryption.is_some())
    }

    /// The number in its name: 0 for `vda`, 27 for `sdab`. libvirt derives aliases and drive addresses from it.
    pub fn index(&self) -> u32 {
        frontend::name_index(&self.target).unwrap_or_default()
    }
}

/// The disks of `<devices>`, in libvirt's order, and checked against each other.
pub fn all_from_xml(devices: &Element, diagnostics: &mut Diagnostics) -> Vec<Disk> {
    let mut disks = Vec::new();
    for element in devices.children("disk") {
        if let Some(disk) = Disk::from_xml(element, diagnostics) {
            insert(&mut disks, disk);
        }
    }
    check_all(&disks, diagnostics);
    disks
}

/// Takes the images out that may be missing and are: a drive without its medium stays empty, a disk goes. The
/// sources that were taken out are the result.
pub fn leave_out_missing(disks: &mut Vec<Disk>, is_there: impl Fn(&str) -> bool) -> Vec<String> {
    let mut missing = Vec::new();
    disks.retain_mut(|disk| {
        let optional = disk.image.as_ref().filter(|i| i.startup_policy == StartupPolicy::Optional);
        let Some(path) = optional.and_then(|i| i.source.local_path()).filter(|p| !is_there(p)) else {
            return true;
        };
        missing.push(path.to_owned());
        disk.image = None;
        // usb-storage is no drive that could be empty.
        matches!(disk.kind, Kind::Cdrom | Kind::Floppy) && disk.bus != Bus::Usb
    });
    missing
}

/// Puts a disk where libvirt would among others: behind those of its bus with a smaller name. The order
/// decides which one is "the first hard disk", and how nodes are numbered.
fn insert(disks: &mut Vec<Disk>, disk: Disk) {
    let mut place = None;
    for (i, other) in disks.iter().enumerate().rev().filter(|(_, d)| d.bus == disk.bus) {
        if other.index() > disk.index() {
            place = Some(i);
        } else if place.is_none() {
            place = Some(i + 1);
        }
    }
    disks.insert(place.unwrap_or(disks.len()), disk);
}

#[cfg(test)]
mod tests;
