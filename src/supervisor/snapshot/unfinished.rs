//! Overlays of which a supervisor that was killed had not decided what they are: those of a snapshot that was being made
//! or deleted. Their files are written down before they come and until they are gone.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::domain::disk::Disk;
use crate::qmp::{COMMAND_DEADLINE, Qmp, QmpError};
use crate::supervisor::hotplug::{Step, block_of, undo};
use crate::supervisor::{Configuration, FdSet, live_xml};
use crate::volume::{self, Image, VolumeError};
use crate::xml::Element;

use super::chain::without;
use super::delete::COMMIT_JOB;
use super::{list_of, metadata, parsed, replace_disk};

/// How long QEMU may take to break off a job.
const JOB_DEADLINE: Duration = Duration::from_secs(30);

/// An overlay that is being made or merged. If the guest's XML does not name it, nobody needs its file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unfinished {
    /// The disk's target.
    pub target: String,
    /// The file.
    pub path: PathBuf,
    /// What its header says is below it, if it is being made: a file of the same name that says otherwise is not it.
    pub below: Option<String>,
    /// Its nodes, the lower one first, if it is being merged.
    pub nodes: Vec<String>,
    /// The sets of descriptors of images that QEMU could only read, and writes to once it is merged.
    #[serde(default)]
    pub writes: Vec<u32>,
}

/// Takes overlays out of the disks that QEMU has merged, and gives up merging the others.
pub(super) async fn finish_merges(qmp: &Qmp, configuration: &mut Configuration) -> Result<(), QmpError> {
    let merges: Vec<_> = configuration.unfinished.iter().filter(|u| !u.nodes.is_empty()).cloned().collect();
    qmp.cancel_jobs(COMMIT_JOB, JOB_DEADLINE).await?;
    if merges.is_empty() {
        return Ok(());
    }
    let blocks = qmp.execute_json("query-block", None::<&()>, COMMAND_DEADLINE).await?;
    for merge in merges {
        let made = made(configuration, &merge);
        if is_merged(&blocks, configuration, &merge) {
            tracing::warn!("an earlier vmward was killed while it deleted a snapshot, which is completed");
            forget(configuration, &merge);
        }
        if !is_named(&configuration.xml, &merge.path) {
            for (step, why) in undo(qmp, made).await.left {
                tracing::warn!("{step} stays until the guest ends: {why}");
            }
            forget_sets(configuration, &merge);
        }
    }
    Ok(())
}

/// Whether the guest's disk has one image less in QEMU than in the XML, which names this one.
fn is_merged(blocks: &Value, configuration: &Configuration, merge: &Unfinished) -> bool {
    let depth = || {
        let disk = configuration.domain.devices.disks.iter().find(|d| d.target == merge.target)?;
        let alias = disk.info.alias.as_deref()?;
        let block = block_of(blocks, alias)?;
        let now = usize::try_from(block.get("inserted")?.get("backing_file_depth")?.as_u64()?).ok()?;
        Some((now, disk.chain().count()))
    };
    is_named(&configuration.xml, &merge.path) && depth().is_some_and(|(now, known)| now + 2 == known)
}

/// What QEMU has of an overlay that is merged.
pub(super) fn made(configuration: &Configuration, merge: &Unfinished) -> Vec<Step> {
    let sets = configuration.disks.iter().flat_map(|disk| &disk.descriptors);
    let sets = sets.filter(|set| merge.nodes.contains(&set.node)).map(|set| Step::FdSet(set.number));
    sets.chain(merge.nodes.iter().cloned().map(Step::Node)).collect()
}

/// The XML without an overlay, and the snapshots without it.
pub(super) fn forget(configuration: &mut Configuration, merge: &Unfinished) {
    let path = merge.path.to_str().unwrap_or_default();
    let mut snapshots = list_of(configuration);
    for snapshot in &mut snapshots {
        snapshot.disks.retain(|d| d.target != merge.target || d.overlay != path);
    }
    snapshots.retain(|s| !s.disks.is_empty());
    let Some(without) = shortened(configuration, &merge.target, path) else { return };
    if let Some(parts) = configuration.disks.iter_mut().find(|d| d.target == merge.target) {
        parts.nodes.retain(|n| !merge.nodes.contains(n));
        let written = parts.descriptors.iter_mut().filter(|set| merge.writes.contains(&set.number));
        written.for_each(FdSet::note_written);
    }
    replace_disk(configuration, &merge.target, without.0, without.1);
    metadata::write(&mut configuration.xml, &snapshots);
}

/// The same of the sets that its nodes were opened through, which are known until they are gone.
pub(super) fn forget_sets(configuration: &mut Configuration, merge: &Unfinished) {
    for parts in &mut configuration.disks {
        parts.descriptors.retain(|set| !merge.nodes.contains(&set.node));
    }
}

/// A disk without one of its images.
pub(super) fn shortened(
    configuration: &Configuration,
    target: &str,
    overlay: &str,
) -> Option<(Element, Disk)> {
    let disk = configuration.domain.devices.disks.iter().find(|d| d.target == target)?;
    let index = disk.chain().position(|i| i.source.local_path() == Some(overlay))?;
    let mut xml = configuration.xml.clone();
    let element = without(live_xml::disk(&mut xml, target)?, index)?;
    let disk = parsed(&element, disk)?;
    Some((element, disk))
}

/// Removes the files that nobody needs; of encrypted ones the keys go first.
pub(in crate::supervisor) fn remove_unfinished(unfinished: &[Unfinished], xml: &Element) {
    let mut seen = HashSet::new();
    for overlay in unfinished.iter().filter(|u| !is_named(xml, &u.path) && seen.insert(&u.path)) {
        match remove(overlay) {
            Ok(true) => tracing::warn!("{} is removed, which nobody needs", overlay.path.display()),
            Ok(false) => {}
            Err(e) => tracing::warn!("{} stays, though nobody needs it: {e}", overlay.path.display()),
        }
    }
}

fn remove(overlay: &Unfinished) -> Result<bool, VolumeError> {
    let path = &overlay.path;
    let there = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        there => there.map_err(|source| VolumeError::Io { path: path.clone(), what: "looked at", source })?,
    };
    if there.len() == 0 && there.is_file() {
        return remove_file(path).map(|()| true);
    }
    let image = Image::probe(path)?;
    let below = image.backing.as_ref().map(|backing| backing.name.as_str());
    if overlay.below.is_some() && below != overlay.below.as_deref() {
        return Ok(false);
    }
    destroy(path, image.encryption.is_some()).map(|()| true)
}

/// Removes the file of an overlay.
pub(super) fn destroy(path: &Path, encrypted: bool) -> Result<(), VolumeError> {
    match encrypted {
        true => volume::destroy(path).map(drop),
        false => remove_file(path),
    }
}

fn remove_file(path: &Path) -> Result<(), VolumeError> {
    fs::remove_file(path).map_err(|source| VolumeError::Io { path: path.to_owned(), what: "removed", source })
}

/// Whether an image of a disk is that file.
fn is_named(xml: &Element, path: &Path) -> bool {
    let is_it = xml.name == "source" && xml.get("file").is_some_and(|file| Path::new(file) == path);
    is_it || xml.children.iter().any(|child| is_named(child, path))
}
