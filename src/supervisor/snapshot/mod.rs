//! Disk snapshots of a running guest.
//!
//! A snapshot is an overlay on each of its disks: from then on the guest writes there, and what was before stays as it
//! is. Deleting a snapshot merges the overlays into what is below them. An overlay on an encrypted disk is encrypted
//! itself, whatever is asked for: QEMU's own `blockdev-snapshot-sync` would make a plain one without a word.
//!
//! Which snapshots there are stands in the `<metadata>` of the guest's XML, so that it goes where the chain goes.

mod chain;
mod create;
mod delete;
mod error;
mod metadata;
mod unfinished;

pub use create::{Request, create};
pub use delete::delete;
pub use error::SnapshotError;
pub use metadata::{Snapshot, SnapshotDisk};
pub use unfinished::Unfinished;
pub(super) use unfinished::remove_unfinished;

use serde_json::Value;

use crate::domain::disk::Disk;
use crate::xml::Element;

use crate::qmp::{Qmp, QmpError};
use crate::xml::Diagnostics;

use super::{Configuration, Running, live_xml};

/// The snapshots whose overlays are in the guest's disks, the oldest first.
pub fn list(running: &Running) -> Vec<Snapshot> {
    list_of(&running.configuration())
}

/// Completes what an earlier supervisor was killed in the middle of.
pub(super) async fn complete(qmp: &Qmp, configuration: &mut Configuration) -> Result<(), QmpError> {
    unfinished::finish_merges(qmp, configuration).await?;
    create::complete(qmp, configuration).await
}

fn list_of(configuration: &Configuration) -> Vec<Snapshot> {
    let mut snapshots = metadata::read(&configuration.xml);
    for snapshot in &mut snapshots {
        snapshot.disks.retain(|wanted| {
            let disk = configuration.domain.devices.disks.iter().find(|d| d.target == wanted.target);
            disk.is_some_and(|d| d.chain().any(|i| i.source.local_path() == Some(wanted.overlay.as_str())))
        });
    }
    snapshots.retain(|snapshot| !snapshot.disks.is_empty());
    snapshots
}

/// What a disk's new XML says, with what is not in it.
fn parsed(element: &Element, before: &Disk) -> Option<Disk> {
    let mut said = Diagnostics::new();
    let mut disk = Disk::from_xml(element, &mut said).filter(|_| !said.has_hard_errors())?;
    disk.info = before.info.clone();
    Some(disk)
}

/// Puts another chain of images into a disk of what is known of the guest.
fn replace_disk(configuration: &mut Configuration, target: &str, element: Element, disk: Disk) {
    if let Some(place) = live_xml::disk(&mut configuration.xml, target) {
        *place = element;
    }
    if let Some(place) = configuration.domain.devices.disks.iter_mut().find(|d| d.target == target) {
        *place = disk;
    }
}

/// A node of `query-named-block-nodes` that has a property of that value.
fn node<'a>(nodes: &'a Value, property: &str, value: &str) -> Option<&'a Value> {
    nodes.as_array()?.iter().find(|n| n.get(property).and_then(Value::as_str) == Some(value))
}
