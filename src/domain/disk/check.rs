//! The rules about a whole disk, and about all disks of a guest.

use crate::domain::{Address, AddressType, Domain, DriveAddress};
use crate::xml::{Diagnostics, Element, Span};

use super::{Bus, Disk, Driver, Format, Kind, Source};

impl Disk {
    /// Says what of a disk contradicts itself. `element` is where `<transient>` and the places of the parts are.
    pub(super) fn check(&self, element: &Element, diagnostics: &mut Diagnostics) {
        self.check_kind(element, diagnostics);
        self.check_identity(element, diagnostics);
        self.check_driver(diagnostics);
        self.check_address(diagnostics);
        self.check_name(element, diagnostics);
        self.check_transient(element, diagnostics);
        self.check_sharing(element, diagnostics);
    }

    fn check_kind(&self, element: &Element, diagnostics: &mut Diagnostics) {
        let at = place(element, "target");
        let bus = self.bus.as_str();
        match self.kind {
            Kind::Cdrom if matches!(self.bus, Bus::Virtio | Bus::Fdc) => {
                diagnostics.error(at, format!("there is no CD drive on the bus '{bus}'"));
            }
            Kind::Floppy if self.bus != Bus::Fdc => {
                diagnostics.error(at, format!("there is no floppy drive on the bus '{bus}'"));
            }
            Kind::Disk | Kind::Lun if self.bus == Bus::Fdc => {
                diagnostics.error(at, "the bus 'fdc' is for floppy drives").hint("write device='floppy'");
            }
            Kind::Lun => self.check_lun(element, diagnostics),
            Kind::Disk | Kind::Cdrom | Kind::Floppy => {}
        }
        if self.image.is_none() {
            let removable = matches!(self.kind, Kind::Cdrom | Kind::Floppy);
            if !removable {
                diagnostics.error(element.span, format!("the disk '{}' has no <source>", self.target));
            } else if self.bus == Bus::Usb {
                diagnostics.error(element.span, "a drive on the bus 'usb' must not be empty");
            }
        }
        if self.readonly && self.kind == Kind::Disk && matches!(self.bus, Bus::Ide | Bus::Sata) {
            diagnostics
                .error(place(element, "readonly"), format!("there are no read-only disks on the bus '{bus}'"))
                .hint("use bus='virtio' or bus='scsi', or device='cdrom'");
        }
        if self.model.is_some() && self.bus != Bus::Virtio {
            diagnostics.error(element.span, "only disks on the bus 'virtio' have a model");
        }
    }

    fn check_lun(&self, element: &Element, diagnostics: &mut Diagnostics) {
        if self.bus != Bus::Scsi {
            diagnostics
                .error(element.span, "device='lun' passes SCSI commands, which needs the bus 'scsi'")
                .hint("QEMU's virtio-blk passes no SCSI commands any more");
        }
        if let Some(image) = &self.image {
            let passes = match &image.source {
                Source::Block { .. } => true,
                Source::Network(n) => matches!(n.protocol, super::Protocol::Iscsi { .. }),
                _ => false,
            };
            if !passes || image.format != Format::Raw {
                diagnostics.error(image.span, "device='lun' needs a raw block device or an iSCSI unit");
            }
            if image.slice.is_some() {
                diagnostics.error(image.span, "device='lun' is a whole unit, not a slice of it");
            }
            if let Some(encryption) = &image.encryption {
                diagnostics.error(
                    encryption.span,
                    "device='lun' passes commands to the unit past QEMU's decryption",
                );
            }
        }
        for name in ["serial", "wwn", "vendor", "product"] {
            if let Some(e) = element.child(name) {
                diagnostics.error(e.span, format!("the unit of device='lun' has its own {name}"));
            }
        }
    }

    fn check_identity(&self, element: &Element, diagnostics: &mut Diagnostics) {
        if self.wwn.is_some() && !matches!(self.bus, Bus::Ide | Bus::Sata | Bus::Scsi) {
            diagnostics
                .error(place(element, "wwn"), "only disks on ide, sata and scsi have a World Wide Name");
        }
        for (name, value) in [("vendor", &self.vendor), ("product", &self.product)] {
            if value.is_some() && self.bus != Bus::Scsi {
                diagnostics.error(place(element, name), format!("only disks on scsi have a {name}"));
            }
        }
        if let Some(geometry) = self.geometry {
            let at = place(element, "geometry");
            if self.bus == Bus::Usb {
                diagnostics.error(at, "disks on usb have no geometry");
            }
            if geometry.translation.is_some() && self.bus != Bus::Ide {
                diagnostics.error(at, "only disks on ide have their geometry translated");
            }
        }
        let spins = self.kind == Kind::Disk && matches!(self.bus, Bus::Scsi | Bus::Ide | Bus::Sata);
        if self.rotation_rate != 0 && !spins {
            diagnostics
                .error(place(element, "target"), "only disks on scsi, ide and sata have a rotation rate");
        }
        let goes_away = self.bus == Bus::Usb || (self.bus == Bus::Scsi && self.kind == Kind::Disk);
        if self.removable.is_some() && !goes_away {
            diagnostics.error(place(element, "target"), "only disks on usb and scsi can be removable");
        }
    }

    fn check_driver(&self, diagnostics: &mut Diagnostics) {
        let Driver { span, .. } = self.driver;
        if self.bus != Bus::Virtio {
            if self.driver.has_virtio_options() {
                diagnostics.error(span, "this <driver> has options that only disks on the bus 'virtio' have");
            }
            if self.driver.iothread.is_some() || !self.driver.iothreads.is_empty() {
                diagnostics
                    .error(span, format!("disks on the bus '{}' have no I/O thread", self.bus.as_str()))
                    .hint("a disk on scsi is served by its controller's I/O thread");
            }
        }
        if self.driver.is_iothread_mapping_partial() {
            diagnostics
                .error(span, "the queues of this disk are not all given to one I/O thread each")
                .hint("list queue 0 to queues - 1 once each, or no <queue> at all");
        }
        if self.driver.copy_on_read && (self.readonly || self.kind != Kind::Disk) {
            diagnostics.error(span, "copy_on_read needs a writable disk to keep what was read");
        }
        if let Some(image) = &self.image {
            if image.metadata_cache.is_some() && image.format != Format::Qcow2 {
                diagnostics.error(span, "<metadata_cache> is for qcow2");
            }
            if self.driver.discard_no_unref == Some(true) && image.format != Format::Qcow2 {
                diagnostics.error(span, "discard_no_unref is for qcow2");
            }
            let direct = self.cache().is_some_and(|f| f.direct);
            if matches!(image.source, Source::VhostVdpa(_)) && !direct {
                diagnostics.error(span, "a vDPA device needs cache='none' or cache='directsync'");
            }
            if matches!(image.source, Source::VhostUser(_)) {
                self.check_vhost_user(diagnostics);
            }
        }
    }

    /// QEMU only relays queues to a vhost-user process: it does no I/O that it could shape.
    fn check_vhost_user(&self, diagnostics: &mut Diagnostics) {
        let Driver { span, cache, io, discard, detect_zeroes, error_policy, read_error_policy, .. } =
            self.driver;
        let shaped = [
            ("cache", cache.is_some()),
            ("io", io.is_some()),
            ("discard", discard.is_some()),
            ("detect_zeroes", detect_zeroes.is_some()),
            ("error_policy", error_policy.is_some()),
            ("rerror_policy", read_error_policy.is_some()),
            ("copy_on_read", self.driver.copy_on_read),
            ("iothread", self.driver.iothread.is_some() || !self.driver.iothreads.is_empty()),
        ];
        for (name, _) in shaped.iter().filter(|(_, set)| *set) {
            diagnostics.error(span, format!("{name} has no effect on a vhost-user disk"));
        }
        if let Some(iotune) = &self.iotune {
            diagnostics.error(iotune.span, "<iotune> has no effect on a vhost-user disk");
        }
        if self.bus != Bus::Virtio || self.kind != Kind::Disk {
            diagnostics.error(self.target_span, "a vhost-user disk is a disk on the bus 'virtio'");
        }
    }

    fn check_address(&self, diagnostics: &mut Diagnostics) {
        let (Some(address), Some(span)) = (&self.info.address, self.info.address_span) else { return };
        let wanted = match self.bus {
            Bus::Virtio => AddressType::Pci,
            Bus::Usb => AddressType::Usb,
            Bus::Scsi | Bus::Sata | Bus::Ide | Bus::Fdc => AddressType::Drive,
        };
        if address.kind() != wanted && !matches!(address, Address::Unassigned) {
            diagnostics.error(
                span,
                format!(
                    "a disk on the bus '{}' takes an address of type '{}'",
                    self.bus.as_str(),
                    wanted.as_str()
                ),
            );
        }
    }

    /// The name of a disk on a controller tells which one it is on, if its address does not: five letters would make
    /// millions of them.
    fn check_name(&self, element: &Element, diagnostics: &mut Diagnostics) {
        // libvirt fills a SCSI controller with this many by their names, others with fewer.
        const MOST_ON_ONE: u32 = 7;
        let on_controller = !matches!(self.bus, Bus::Virtio | Bus::Usb);
        if on_controller
            && self.info.address.is_none()
            && self.index() / MOST_ON_ONE > DriveAddress::LAST_CONTROLLER
        {
            diagnostics
                .error(
                    place(element, "target"),
                    format!("no guest has as many disks as '{}' stands for", self.target),
                )
                .hint("the names go from sda to sdz, then from sdaa");
        }
    }

    /// vmward makes no overlays at start. Without one, what the guest writes would stay; with a plain one, an
    /// encrypted disk's data would be on the host in the clear. So this is never only "unsupported".
    fn check_transient(&self, element: &Element, diagnostics: &mut Diagnostics) {
        let Some(transient) = element.child("transient") else { return };
        transient.mark_read();
        if self.is_encrypted() {
            diagnostics
                .error(transient.span, "a transient overlay of an encrypted disk would not be encrypted");
        } else {
            diagnostics
                .error(transient.span, "vmward has no transient disks")
                .hint("make an overlay with qemu-img create -b, and delete it afterwards");
        }
    }

    fn check_sharing(&self, element: &Element, diagnostics: &mut Diagnostics) {
        if self.shareable
            && !self.readonly
            && let Some(image) = self.image.as_ref().filter(|i| i.format != Format::Raw)
        {
            diagnostics.error(
                place(element, "shareable"),
                format!("several guests cannot write to one '{}' image", image.format.as_str()),
            );
        }
    }
}

/// Where a part stands, or the disk.
fn place(element: &Element, child: &str) -> Span {
    element.child(child).map_or(element.span, |c| c.span)
}

/// The rules between disks and the rest of their guest.
pub fn check_in(domain: &Domain, diagnostics: &mut Diagnostics) {
    let shared = domain.shares_memory();
    for disk in &domain.devices.disks {
        let driver = &disk.driver;
        let threads = driver.iothread.into_iter().chain(driver.iothreads.iter().map(|t| t.iothread));
        for id in threads.filter(|id| !domain.iothreads.contains(*id)) {
            diagnostics
                .error(driver.span, format!("the guest has no I/O thread {id}"))
                .hint("<iothreads>N</iothreads> makes the threads 1 to N");
        }
        if let Some(image) = disk.image.as_ref().filter(|_| !shared)
            && matches!(image.source, Source::VhostUser(_) | Source::VhostVdpa(_))
        {
            diagnostics
                .error(
                    image.span,
                    "whoever serves this disk has to see the guest's memory, which is not shared",
                )
                .hint("write <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>");
        }
    }
}

/// The rules about disks beside each other.
pub fn check_all(disks: &[Disk], diagnostics: &mut Diagnostics) {
    for (i, disk) in disks.iter().enumerate() {
        let before = disks.get(..i).unwrap_or_default();
        if let Some(first) = before.iter().find(|d| d.target == disk.target) {
            // The list may be in another order than the text.
            let (first, second) = in_order(first, disk);
            diagnostics
                .error(second.target_span, format!("the target '{}' is taken already", disk.target))
                .related(first.target_span, "by this disk")
                .hint("each disk needs a name of its own");
        }
        if disk.wwn.is_some()
            && let Some(first) = before.iter().find(|d| d.wwn == disk.wwn)
        {
            let (first, second) = in_order(first, disk);
            diagnostics
                .error(second.info.span, "two disks have the same World Wide Name")
                .related(first.info.span, "the first one");
        }
        let group = |d: &Disk| d.iotune.as_ref().and_then(|t| t.group.clone());
        if let (Some(name), Some(tune)) = (group(disk), &disk.iotune)
            && let Some(first) = before.iter().find(|d| group(d).as_ref() == Some(&name))
            && let Some(other) = &first.iotune
            && (super::IoTune { span: other.span, ..tune.clone() }) != *other
        {
            diagnostics
                .error(tune.span, format!("disks of the throttling group '{name}' have different limits"))
                .related(other.span, "the first one");
        }
    }
}

fn in_order<'a>(a: &'a Disk, b: &'a Disk) -> (&'a Disk, &'a Disk) {
    if a.info.span.start <= b.info.span.start { (a, b) } else { (b, a) }
}
