//! The device that the guest sees.

use serde_json::Value;

use crate::domain::devices::virtio::VirtioModel;
use crate::domain::disk::{Bus, Disk, ErrorPolicy, Kind, Source, Translation, VhostUser};
use crate::qemu::plan::SocketChardev;
use crate::qemu::{Capabilities, JsonObject};
use crate::xml::Diagnostics;

use crate::qemu::properties::Properties;

/// The character device that a vhost-user disk talks through.
pub(super) fn vhost_user_chardev(
    disk: &Disk,
    socket: &VhostUser,
    capabilities: &Capabilities,
) -> SocketChardev {
    SocketChardev {
        id: vhost_user_chardev_id(disk),
        path: socket.path.clone(),
        reconnect: socket.reconnect.map(|seconds| capabilities.reconnect(seconds)),
    }
}

fn vhost_user_chardev_id(disk: &Disk) -> String {
    format!("chr-vu-{}", disk.info.alias.as_deref().unwrap_or_default())
}

/// `-device` of a disk. `drive` is the topmost node; an empty drive and a vhost-user disk have none.
pub(super) fn device(
    disk: &Disk,
    drive: Option<String>,
    diagnostics: &mut Diagnostics,
) -> Option<JsonObject> {
    let Some(alias) = disk.info.alias.as_deref() else {
        diagnostics.error(disk.target_span, format!("the disk '{}' was given no alias", disk.target));
        return None;
    };
    let mut device = JsonObject::new();
    device.put("driver", driver(disk));
    if disk.bus == Bus::Virtio {
        put_virtio(disk, &mut device);
    }
    device.extend(disk.info.place.clone());
    if disk.bus == Bus::Scsi && disk.kind != Kind::Lun {
        // QEMU once put the name of `-drive` here, and guests know their disks by it.
        let page = disk.serial.clone().unwrap_or_else(|| format!("drive-{alias}"));
        device.put("device_id", page);
    }
    device.put_some("share-rw", disk.shareable.then_some(true));
    device.put_some("drive", drive);
    if matches!(disk.image.as_ref().map(|i| &i.source), Some(Source::VhostUser(_))) {
        device.put("chardev", vhost_user_chardev_id(disk));
    }
    device.put("id", alias);
    // The floppy controller has the boot order of its drives.
    if disk.kind != Kind::Floppy {
        device.put_some("bootindex", disk.info.boot_order);
    }
    put_appearance(disk, &mut device);
    put_error_policy(disk, &mut device);
    Some(device)
}

fn driver(disk: &Disk) -> String {
    let vhost_user = matches!(disk.image.as_ref().map(|i| &i.source), Some(Source::VhostUser(_)));
    let name = match (disk.bus, disk.kind) {
        (Bus::Ide | Bus::Sata, Kind::Cdrom) => "ide-cd",
        (Bus::Ide | Bus::Sata, _) => "ide-hd",
        (Bus::Scsi, Kind::Lun) => "scsi-block",
        (Bus::Scsi, Kind::Cdrom) => "scsi-cd",
        (Bus::Scsi, _) => "scsi-hd",
        (Bus::Usb, _) => "usb-storage",
        (Bus::Fdc, _) => "floppy",
        (Bus::Virtio, _) if vhost_user => "vhost-user-blk-pci",
        (Bus::Virtio, _) => "virtio-blk-pci",
    };
    format!("{name}{}", disk.model.map_or("", VirtioModel::suffix))
}

fn put_virtio(disk: &Disk, device: &mut JsonObject) {
    let driver = &disk.driver;
    device.put_some("iommu_platform", driver.virtio.iommu);
    device.put_some("ats", driver.virtio.ats);
    device.put_some("packed", driver.virtio.packed);
    device.put_some("page-per-vq", driver.virtio.page_per_vq);
    device.put_some("iothread", driver.iothread.map(|id| format!("iothread{id}")));
    device.put_some("ioeventfd", driver.ioeventfd);
    device.put_some("event_idx", driver.event_idx);
    device.put_nonzero("num-queues", driver.queues.unwrap_or_default());
    device.put_nonzero("queue-size", driver.queue_size.unwrap_or_default());
    if !driver.iothreads.is_empty() {
        let mapping: Vec<Value> = driver
            .iothreads
            .iter()
            .map(|thread| {
                let mut entry = JsonObject::new();
                entry.put("iothread", format!("iothread{}", thread.iothread));
                if !thread.queues.is_empty() {
                    entry.put("vqs", thread.queues.clone());
                }
                Value::Object(entry)
            })
            .collect();
        device.put("iothread-vq-mapping", mapping);
    }
}

/// What a disk looks like to the guest.
fn put_appearance(disk: &Disk, device: &mut JsonObject) {
    device.put_nonzero("logical_block_size", disk.block_io.logical_block_size);
    device.put_nonzero("physical_block_size", disk.block_io.physical_block_size);
    device.put_nonzero("discard_granularity", disk.block_io.discard_granularity);
    device.put_some("wwn", disk.wwn);
    device.put_nonzero("rotation_rate", disk.rotation_rate);
    device.put_some("vendor", disk.vendor.as_deref());
    device.put_some("product", disk.product.as_deref());
    let removable = if disk.bus == Bus::Usb { disk.removable.or(Some(false)) } else { disk.removable };
    device.put_some("removable", removable);
    // scsi-block has the cache of the host's unit.
    if disk.kind != Kind::Lun {
        let flags = disk.cache();
        device.put_some("write-cache", flags.map(|f| if f.write_cache { "on" } else { "off" }));
    }
    if let Some(geometry) = disk.geometry {
        device.put_nonzero("cyls", geometry.cylinders);
        device.put_nonzero("heads", geometry.heads);
        device.put_nonzero("secs", geometry.sectors);
        device.put_some("bios-chs-trans", geometry.translation.map(Translation::as_str));
    }
    // libvirt escapes spaces, and guests see the backslash: what they saw is what they see.
    device.put_some("serial", disk.serial.as_deref().map(|s| s.replace(' ', "\\ ")));
}

fn put_error_policy(disk: &Disk, device: &mut JsonObject) {
    let word = |policy: ErrorPolicy| match policy {
        ErrorPolicy::Enospace => "enospc",
        other => other.as_str(),
    };
    let write = disk.driver.error_policy;
    // Reads do as writes do, but for a policy that only writes have.
    let read = disk.driver.read_error_policy.or(write.filter(|p| *p != ErrorPolicy::Enospace));
    device.put_some("werror", write.map(word));
    device.put_some("rerror", read.map(word));
}
