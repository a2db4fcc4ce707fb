//! Deleting a snapshot: what was written since goes into the images below, and the overlays go.

use std::fs;
use std::iter;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::domain::disk::Disk;
use crate::qemu::JsonObject;
use crate::qmp::COMMAND_DEADLINE;
use crate::supervisor::hotplug::{Step, undo};
use crate::supervisor::opened::Writable;
use crate::supervisor::{Change, FdSet, Running, live_xml};
use crate::volume::{self, VolumeError};
use crate::xml::{Diagnostics, Element};

use super::chain::without;
use super::{Snapshot, SnapshotDisk, SnapshotError, list, metadata, node};

/// Copying a disk takes as long as it takes.
const NO_DEADLINE: Duration = Duration::from_secs(u32::MAX as u64);

/// What is to be merged on one disk.
struct Merge {
    /// The disk without the overlay.
    element: Element,
    disk: Disk,
    /// The arguments of `block-commit`.
    arguments: JsonObject,
    /// The sets of images that QEMU can only read, and writes to now.
    written: Vec<FdSet>,
    /// It is the image that the guest writes to.
    is_topmost: bool,
    /// The nodes of the overlay, the lower one first.
    nodes: [String; 2],
    encrypted: bool,
}

/// Deletes a snapshot, disk by disk. The paths of overlays that could not be removed, though nobody needs them any more,
/// are the result.
///
/// The future is to be run to its end: dropping it midway would leave the guest as QEMU has it, and the XML as it was.
pub async fn delete(running: &Running, name: &str) -> Result<Vec<String>, SnapshotError> {
    let change = running.change().await;
    let snapshots = list(running);
    let snapshot = snapshots.into_iter().find(|s| s.name == name);
    let snapshot = snapshot.ok_or_else(|| SnapshotError::NoSuchSnapshot(name.to_owned()))?;
    let mut kept = Vec::new();
    for disk in &snapshot.disks {
        if let Some(file) = merge(running, &change, &snapshot, disk).await? {
            kept.push(file);
        }
    }
    Ok(kept)
}

/// Merges one overlay. Its path, if it could not be removed.
async fn merge(
    running: &Running,
    change: &Change<'_>,
    snapshot: &Snapshot,
    overlay: &SnapshotDisk,
) -> Result<Option<String>, SnapshotError> {
    let target = &overlay.target;
    let failed = |source| SnapshotError::Merge { target: target.clone(), source };
    let flat = json!({ "flat": true });
    let nodes = running.qmp.execute_json("query-named-block-nodes", Some(&flat), COMMAND_DEADLINE);
    let nodes = nodes.await.map_err(failed)?;
    let merge = plan(running, overlay, &nodes).ok_or_else(|| SnapshotError::Unknown(target.clone()))?;
    let job = format!("vmward-commit-{target}");
    let mut lent = Vec::new();
    let merged = async {
        for set in &merge.written {
            if let Some(image) = &set.image {
                lent.push(Writable::begin::<SnapshotError>(&running.qmp, set, image).await?);
            }
        }
        running.qmp.run_job("block-commit", &job, &merge.arguments, NO_DEADLINE).await.map_err(failed)
    };
    let merged = merged.await;
    let written_on = merge.is_topmost && merged.is_ok();
    for writable in lent {
        writable.end(written_on).await;
    }
    merged?;

    let Merge { element, disk, nodes, encrypted, written, .. } = merge;
    let sets =
        running.configuration().disks.iter().find(|d| d.target == *target).map(|d| d.descriptors.clone());
    let (gone, mut sets): (Vec<_>, Vec<_>) =
        sets.unwrap_or_default().into_iter().partition(|set| nodes.contains(&set.node));
    if written_on {
        sets.iter_mut().filter(|set| written.contains(set)).for_each(FdSet::note_written);
    }
    let made = gone.iter().map(|set| Step::FdSet(set.number)).chain(nodes.iter().cloned().map(Step::Node));
    let left = undo(&running.qmp, made.collect()).await.left;
    for (step, why) in &left {
        tracing::warn!("{step} stays until the guest ends: {why}");
    }
    let mut snapshots = list(running);
    for other in snapshots.iter_mut().filter(|s| s.name == snapshot.name) {
        other.disks.retain(|d| d != overlay);
    }
    snapshots.retain(|s| !s.disks.is_empty());
    let saved = change.commit(|configuration| {
        if let Some(parts) = configuration.disks.iter_mut().find(|d| d.target == *target) {
            parts.nodes.retain(|n| !nodes.contains(n));
            parts.descriptors = sets;
        }
        super::replace_disk(configuration, target, element, disk);
        metadata::write(&mut configuration.xml, &snapshots);
    });
    saved.map_err(|e| SnapshotError::Save(Box::new(e)))?;
    let path = overlay.overlay.clone();
    let removed = tokio::task::spawn_blocking(move || remove(Path::new(&path), encrypted)).await;
    match removed {
        Ok(Ok(())) => Ok(None),
        failed => {
            if let Ok(Err(e)) = failed {
                tracing::warn!("{} stays: {e}", overlay.overlay);
            }
            Ok(Some(overlay.overlay.clone()))
        }
    }
}

fn plan(running: &Running, overlay: &SnapshotDisk, nodes: &Value) -> Option<Merge> {
    let target = &overlay.target;
    let configuration = running.configuration();
    let parts = configuration.disks.iter().find(|d| d.target == *target)?;
    let disk = configuration.domain.devices.disks.iter().find(|d| d.target == *target)?;
    let is_it = |path: Option<&str>| path == Some(overlay.overlay.as_str());
    let index = disk.chain().position(|i| is_it(i.source.local_path()))?;
    let (image, below) = (disk.chain().nth(index)?, disk.chain().nth(index + 1)?);

    // The file's node has the plain path, if QEMU has opened it; those above it are described in JSON as soon as there is a
    // key.
    let is_storage = |name: &String| {
        if parts.descriptors.iter().any(|set| set.node == *name && is_it(set.path())) {
            return true;
        }
        let file =
            node(nodes, "node-name", name).filter(|n| n.get("drv").and_then(Value::as_str) == Some("file"));
        is_it(file.and_then(|n| n.get("file")?.as_str()))
    };
    let storage = parts.nodes.iter().position(is_storage)?;
    let base = parts.nodes.get(storage.checked_sub(1)?)?;
    let top = parts.nodes.get(storage + 1)?;
    let mut arguments = JsonObject::new();
    for (name, value) in [("device", parts.nodes.last()?), ("base-node", base), ("top-node", top)] {
        arguments.insert(name.to_owned(), value.as_str().into());
    }
    if index > 0 {
        // What the header of the image above says from now on; QEMU would write JSON with the name of a key.
        arguments.insert("backing-file".to_owned(), below.source.local_path()?.into());
    }
    // So that its error can be read.
    arguments.insert("auto-dismiss".to_owned(), false.into());

    let mut xml = configuration.xml.clone();
    let element = without(live_xml::disk(&mut xml, target)?, index)?;
    let mut said = Diagnostics::new();
    let mut without = Disk::from_xml(&element, &mut said).filter(|_| !said.has_hard_errors())?;
    without.info = disk.info.clone();
    let nodes = [parts.nodes[storage].clone(), top.clone()];
    // What is below gets the data, and the image above another name of what is below it.
    let changed = disk.chain().enumerate().filter(|(i, _)| *i == index + 1 || *i + 1 == index);
    let changed = changed.flat_map(|(_, image)| iter::once(image).chain(image.data_store.as_deref()));
    let paths: Vec<_> = changed.filter_map(|image| image.source.local_path()).collect();
    let is_changed = |set: &FdSet| set.is_read_only() && set.path().is_some_and(|path| paths.contains(&path));
    let written = parts.descriptors.iter().filter(|set| is_changed(set)).cloned().collect();
    let encrypted = image.encryption.is_some();
    Some(Merge { element, disk: without, arguments, written, is_topmost: index == 0, nodes, encrypted })
}

/// Of an encrypted overlay the keys go first.
fn remove(path: &Path, encrypted: bool) -> Result<(), VolumeError> {
    if encrypted {
        return volume::destroy(path).map(drop);
    }
    fs::remove_file(path).map_err(|source| VolumeError::Io { path: path.to_owned(), what: "removed", source })
}
