//! Deleting a snapshot: what was written since goes into the images below, and the overlays go.

use std::iter;

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::qemu::JsonObject;
use crate::qmp::COMMAND_DEADLINE;
use crate::supervisor::hotplug::undo;
use crate::supervisor::opened::Writable;
use crate::supervisor::{Change, Checkpoint, Configuration, FdSet, Running, SupervisorError};

use super::unfinished::{destroy, shortened};
use super::{SnapshotDisk, SnapshotError, Unfinished, list, node};

/// What the ids of the jobs that merge begin with; the disk's target follows.
pub(super) const COMMIT_JOB: &str = "vmward-commit-";
/// Copying a disk takes as long as it takes.
const NO_DEADLINE: Duration = Duration::from_secs(u32::MAX as u64);

/// What is to be merged on one disk.
struct Merge {
    /// The arguments of `block-commit`.
    arguments: JsonObject,
    /// The sets of images that QEMU can only read, and writes to now.
    written: Vec<FdSet>,
    /// What a supervisor that comes back is told.
    unfinished: Unfinished,
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
        if let Some(file) = merge(running, &change, disk).await? {
            kept.push(file);
        }
    }
    Ok(kept)
}

/// Merges one overlay. Its path, if it could not be removed.
async fn merge(
    running: &Running,
    change: &Change<'_>,
    overlay: &SnapshotDisk,
) -> Result<Option<String>, SnapshotError> {
    let target = &overlay.target;
    let failed = |source| SnapshotError::Merge { target: target.clone(), source };
    let flat = json!({ "flat": true });
    let nodes = running.qmp.execute_json("query-named-block-nodes", Some(&flat), COMMAND_DEADLINE);
    let nodes = nodes.await.map_err(failed)?;
    let merge = plan(&running.configuration(), overlay, &nodes)
        .ok_or_else(|| SnapshotError::Unknown(target.clone()))?;
    let save = |saved: Result<(), SupervisorError>| saved.map_err(|e| SnapshotError::Save(Box::new(e)));
    let Merge { arguments, written, unfinished, encrypted } = merge;
    let mut begun = running.configuration().clone();
    begun.unfinished = vec![unfinished.clone()];
    save(change.announce(&begun))?;
    Checkpoint::MergeAnnounced.passed();
    let job = format!("{COMMIT_JOB}{target}");
    let mut lent = Vec::new();
    let merged = async {
        for set in &written {
            if let Some(image) = &set.image {
                lent.push(Writable::begin::<SnapshotError>(&running.qmp, set, image).await?);
            }
        }
        running.qmp.run_job("block-commit", &job, &arguments, NO_DEADLINE).await.map_err(failed)
    };
    let merged = merged.await;
    for writable in lent {
        let writes = merged.is_ok() && unfinished.writes.contains(&writable.number());
        writable.end(writes).await;
    }
    if let Err(e) = merged {
        if let Err(e) = change.commit(|_| {}) {
            tracing::warn!("{e}");
        }
        return Err(e);
    }
    Checkpoint::Merged.passed();
    let made = super::unfinished::made(&running.configuration(), &unfinished);
    // At once: what the guest writes from now on is below the overlay, which would hide it if it were opened again.
    save(change.commit(|configuration| {
        super::unfinished::forget(configuration, &unfinished);
        configuration.unfinished = vec![unfinished.clone()];
    }))?;
    Checkpoint::MergeSaved.passed();
    for (step, why) in &undo(&running.qmp, made).await.left {
        tracing::warn!("{step} stays until the guest ends: {why}");
    }
    let path = overlay.overlay.clone();
    let removed = tokio::task::spawn_blocking(move || destroy(Path::new(&path), encrypted)).await;
    if !matches!(removed, Ok(Ok(()))) && running.qmp.has_ended() {
        // A QEMU that dies closes its monitor before its images. The file goes with what else is left of the guest.
        return Ok(None);
    }
    Checkpoint::OverlayRemoved.passed();
    save(change.commit(|configuration| {
        super::unfinished::forget_sets(configuration, &unfinished);
        configuration.unfinished.clear();
    }))?;
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

fn plan(configuration: &Configuration, overlay: &SnapshotDisk, nodes: &Value) -> Option<Merge> {
    let target = &overlay.target;
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

    // The guest can be described without it.
    shortened(configuration, target, &overlay.overlay)?;
    let nodes = vec![parts.nodes[storage].clone(), top.clone()];
    // What is below gets the data, and the image above another name of what is below it.
    let changed = disk.chain().enumerate().filter(|(i, _)| *i == index + 1 || *i + 1 == index);
    let changed = changed.flat_map(|(_, image)| iter::once(image).chain(image.data_store.as_deref()));
    let paths: Vec<_> = changed.filter_map(|image| image.source.local_path()).collect();
    let is_changed = |set: &FdSet| set.is_read_only() && set.path().is_some_and(|path| paths.contains(&path));
    let written: Vec<_> = parts.descriptors.iter().filter(|set| is_changed(set)).cloned().collect();
    // What is below becomes the image that the guest writes to, if there is none above.
    let writes = written.iter().filter(|_| index == 0).map(|set| set.number).collect();
    let path = overlay.overlay.clone().into();
    let unfinished = Unfinished { target: target.clone(), path, below: None, nodes, writes };
    Some(Merge { arguments, written, unfinished, encrypted: image.encryption.is_some() })
}
