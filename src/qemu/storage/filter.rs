//! What stands between the images and the device.

use serde_json::json;

use crate::domain::disk::{Bus, Disk, Limits};
use crate::qemu::plan::object;
use crate::qemu::{DiskPlan, JsonObject};

use crate::qemu::properties::Properties;

/// What the names of copy-on-read filters begin with.
const COPY_ON_READ: &str = "libvirt-CoR-";

/// Whether a node of that name is no image but stands above those of a disk.
pub fn is_filter(name: &str) -> bool {
    name.starts_with(COPY_ON_READ)
}

/// Puts the copy-on-read filter on top, if the disk has it; the name of the topmost node is the result.
pub(super) fn copy_on_read(disk: &Disk, top: String, plan: &mut DiskPlan) -> String {
    if !disk.driver.copy_on_read {
        return top;
    }
    let name = format!("{COPY_ON_READ}{}", disk.target);
    plan.nodes.push(object(json!({
        "driver": "copy-on-read",
        "node-name": name,
        "file": top,
        "discard": "unmap",
    })));
    name
}

/// The arguments of `block_set_io_throttle`, to be sent once the device is there. As with libvirt, limits are
/// no part of the graph, so that they can change while the guest runs.
pub(super) fn throttle(disk: &Disk) -> Option<JsonObject> {
    let tune = disk.iotune.as_ref()?;
    let mut arguments = JsonObject::new();
    arguments.put("id", backend(disk));
    for (suffix, unit, limits) in [
        ("", "bps", tune.bytes),
        ("", "iops", tune.iops),
        ("_max", "bps", tune.bytes_max),
        ("_max", "iops", tune.iops_max),
        ("_max_length", "bps", tune.bytes_max_length),
        ("_max_length", "iops", tune.iops_max_length),
    ] {
        put(unit, suffix, limits, &mut arguments);
    }
    arguments.put_nonzero("iops_size", tune.size_iops);
    arguments.put_some("group", tune.group.as_deref());
    Some(arguments)
}

/// The QOM path or id of the device that has the block backend: some are made of two.
fn backend(disk: &Disk) -> String {
    let alias = disk.info.alias.as_deref().unwrap_or_default();
    match disk.bus {
        Bus::Virtio => format!("/machine/peripheral/{alias}/virtio-backend"),
        // usb-storage has a SCSI disk inside.
        Bus::Usb => format!("/machine/peripheral/{alias}/{alias}.0/legacy[0]"),
        Bus::Scsi | Bus::Sata | Bus::Ide | Bus::Fdc => alias.to_owned(),
    }
}

fn put(unit: &str, suffix: &str, limits: Limits, arguments: &mut JsonObject) {
    for (way, limit) in [("", limits.total), ("_rd", limits.read), ("_wr", limits.write)] {
        // The six plain limits are mandatory, the others are not.
        if limit != 0 || suffix.is_empty() {
            arguments.put(&format!("{unit}{way}{suffix}"), limit);
        }
    }
}
