//! Another medium for a drive that a guest has.
//!
//! The new medium is opened before the old one is touched. What fails after that is undone: the old medium is in the
//! drive again, and its nodes go only when it is out for good.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::domain::disk::{Disk, Kind};
use crate::qemu::{DiskPlan, storage};
use crate::qmp::{COMMAND_DEADLINE, Qmp, QmpError};
use crate::supervisor::confinement::check_disk;
use crate::supervisor::{Checkpoint, Configuration, Outside, Running, check_images, live_xml};
use crate::xml::{self, Diagnostics, Element};

use super::attach::{failed, is_unserved, open, save};
use super::steps;
use super::{DiskParts, HotplugError};

/// How long a guest that has locked the tray may take to open it when it is asked to.
const TRAY_DEADLINE: Duration = Duration::from_secs(10);
/// How long until it is looked at again.
const TRAY_INTERVAL: Duration = Duration::from_millis(200);

/// What is to be in the drive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Medium {
    /// Nothing.
    None,
    /// A plain raw image at that absolute path.
    Image(String),
    /// The image of a `<disk>` document.
    Xml(String),
}

/// Changes the medium of the drive with a target. `force`: whether or not the guest has locked the tray. What was said
/// about the XML, though it was taken, is the result.
///
/// The future is to be run to its end, as that of [`super::attach`].
pub async fn change_media(
    running: &Running,
    target: &str,
    medium: Medium,
    force: bool,
    allow_unsupported: bool,
) -> Result<Diagnostics, HotplugError> {
    let change = running.change().await;
    let (old, before) = drive(running, target)?;
    let mut diagnostics = Diagnostics::new();
    let source = match medium {
        Medium::None => None,
        Medium::Image(path) => Some(of_image(&path, &old)),
        Medium::Xml(source) => Some(
            xml::parse(&source, &mut diagnostics).ok_or_else(|| HotplugError::Xml(diagnostics.clone()))?,
        ),
    };
    let read = source.as_ref().map(|element| read(element, &old, &mut diagnostics)).transpose()?;
    if allow_unsupported {
        diagnostics.allow_unsupported();
    }
    let mut disk = Disk { image: None, ..old };
    if let Some(read) = read {
        disk.image = read.filter(|_| !diagnostics.has_errors()).and_then(|read| read.image);
        if disk.image.is_none() {
            return Err(HotplugError::Xml(diagnostics));
        }
    }
    let mut numbers = running.configuration().nodes.clone();
    let plan = match disk.image {
        Some(_) => storage::plan_disk(&disk, &mut numbers, &running.capabilities, &mut diagnostics),
        None => Some(DiskPlan::default()),
    };
    let Some(mut plan) = plan.filter(|_| !diagnostics.has_errors()) else {
        return Err(HotplugError::Xml(diagnostics));
    };
    if let Some(element) = &source
        && is_unserved(running, &mut plan, element, &mut diagnostics)
    {
        return Err(HotplugError::Unserved(diagnostics));
    }

    let mut parts = DiskParts { alias: before.alias.clone(), ..DiskParts::of(target, &plan) };
    let (_, made) = open(running, &mut plan, &mut parts, false).await?;
    if let Err(step) = made {
        return Err(failed(running, step, &parts, &disk, &plan).await);
    }
    // Whoever is killed from here on has the old one put back, until it is saved that the guest has the new one.
    let mut planned = running.configuration().clone();
    let new = DiskParts { out: before.out.clone(), ..parts.clone() };
    replace(&mut planned, DiskParts { out: Some(Box::new(new)), ..before.clone() });
    let drive = Drive { qmp: &running.qmp, id: &before.alias };
    let swapped = match change.announce(&planned) {
        Ok(()) => {
            Checkpoint::ChangeAnnounced.passed();
            let swapped = drive.swap(before.nodes.last(), parts.nodes.last(), force).await;
            swapped.map_err(|unswapped| unswapped.of(target))
        }
        Err(e) => Err(save(e)),
    };
    if let Err(failed) = swapped {
        let left = remove(running, parts).await;
        // Without this, whoever comes back puts the old one where it is.
        let _ = change.commit(|configuration| {
            let Some(left) = left else { return };
            let out = Some(Box::new(DiskParts { out: before.out.clone(), ..*left }));
            replace(configuration, DiskParts { out, ..before });
        });
        return Err(failed);
    }

    parts.out = Some(Box::new(before.clone()));
    change
        .commit(|configuration| {
            if let Some(element) = live_xml::disk(&mut configuration.xml, target) {
                live_xml::change_image(element, source.as_ref());
                live_xml::redact(element);
            }
            configuration.domain.devices.disks.iter_mut().filter(|d| d.target == target).for_each(|d| {
                d.image.clone_from(&disk.image);
            });
            replace(configuration, parts.clone());
            configuration.nodes = numbers;
        })
        .map_err(save)?;
    Checkpoint::MediumSaved.passed();
    parts.out = remove(running, before).await;
    change.commit(|configuration| replace(configuration, parts)).map_err(save)?;
    Ok(diagnostics)
}

/// Removes a medium that is not in its drive, and what served it. What stays of it is the result.
async fn remove(running: &Running, medium: DiskParts) -> Option<Box<DiskParts>> {
    let helpers = medium.all_helpers();
    let left = steps::clean_up_medium(&running.qmp, medium).await;
    if left.is_none() {
        running.end_helpers(&helpers).await;
    }
    left
}

/// Puts the medium back that a drive had when a supervisor was killed while it changed that, or removes the one that was
/// there before.
pub(super) async fn complete(qmp: &Qmp, configuration: &mut Configuration) -> Result<(), QmpError> {
    for parts in &mut configuration.disks {
        let Some(out) = parts.out.take() else { continue };
        tracing::warn!("an earlier vmward was killed while it changed the medium of '{}'", parts.target);
        let blocks = qmp.execute_json("query-block", None::<&()>, COMMAND_DEADLINE).await?;
        let block = steps::block_of(&blocks, &parts.alias);
        let inserted = block.and_then(|block| block.get("inserted")?.get("node-name")?.as_str());
        let is_open = block.and_then(|block| block.get("tray_open")?.as_bool()).unwrap_or_default();
        let medium = parts.nodes.last();
        if inserted != medium.map(String::as_str) || is_open {
            let drive = Drive { qmp, id: &parts.alias };
            if let Err(e) = drive.put_back(medium).await {
                tracing::error!("the medium of '{}' could not be put back: {e}", parts.target);
            }
        }
        parts.out = steps::clean_up_medium(qmp, *out).await;
    }
    Ok(())
}

/// Gives a drive other parts.
fn replace(configuration: &mut Configuration, parts: DiskParts) {
    if let Some(place) = configuration.disks.iter_mut().find(|d| d.target == parts.target) {
        *place = parts;
    }
}

/// The drive, and what it consists of now.
fn drive(running: &Running, target: &str) -> Result<(Disk, DiskParts), HotplugError> {
    let configuration = running.configuration();
    let disk = configuration.domain.devices.disks.iter().find(|d| d.target == target);
    let parts = configuration.disks.iter().find(|d| d.target == target);
    let (Some(disk), Some(parts)) = (disk, parts) else {
        return Err(HotplugError::NoSuchDisk(target.to_owned()));
    };
    match disk.kind {
        Kind::Cdrom | Kind::Floppy => Ok((disk.clone(), parts.clone())),
        _ => Err(HotplugError::NotRemovable(target.to_owned())),
    }
}

/// The `<disk>` of a plain image.
fn of_image(path: &str, drive: &Disk) -> Element {
    Element::new("disk")
        .with("type", "file")
        .with("device", drive.kind.as_str())
        .with_child(Element::new("driver").with("name", "qemu").with("type", "raw"))
        .with_child(Element::new("source").with("file", path))
        .with_child(Element::new("target").with("dev", &drive.target).with("bus", drive.bus.as_str()))
}

/// The disk of an element that is to be another medium of the drive.
fn read(element: &Element, drive: &Disk, diagnostics: &mut Diagnostics) -> Result<Option<Disk>, Outside> {
    let Some(disk) = Disk::from_xml(element, diagnostics) else { return Ok(None) };
    element.report_unread(diagnostics);
    check_disk(&disk)?;
    if disk.target != drive.target || disk.kind != drive.kind {
        let (kind, target) = (drive.kind.as_str(), &drive.target);
        diagnostics.error(disk.target_span, format!("this is another drive than the {kind} '{target}'"));
    }
    if disk.image.is_none() {
        diagnostics.error(element.span, "there is no medium in this <disk>").hint("say --eject");
    }
    check_images([&disk], diagnostics);
    Ok(Some(disk))
}

/// A drive as QEMU knows it.
struct Drive<'a> {
    qmp: &'a Qmp,
    id: &'a str,
}

/// A swap that did not come about.
struct Unswapped {
    /// What was to be done: "opened", ...
    what: &'static str,
    source: QmpError,
    /// Why the old medium is not back in the drive, if it is not.
    lost: Option<QmpError>,
}

impl Unswapped {
    fn of(self, target: &str) -> HotplugError {
        let target = target.to_owned();
        match self {
            Self { lost: Some(lost), source, .. } => {
                tracing::error!("the old medium of '{target}' could not be put back: {lost}");
                HotplugError::MediumLost { target, source: source.into() }
            }
            // block/qapi-sysemu.c
            Self { source, .. } if is_closed(&source) => HotplugError::TrayLocked(target),
            Self { what, source, .. } => HotplugError::Medium { target, what, source: source.into() },
        }
    }
}

/// Whether the medium cannot be taken out because the tray is closed.
fn is_closed(error: &QmpError) -> bool {
    error.refusal().is_some_and(|(_, desc)| desc.contains("is not open"))
}

impl Drive<'_> {
    /// Takes one medium out and puts another one in, or, where that fails, leaves the old one in.
    async fn swap(&self, old: Option<&String>, new: Option<&String>, force: bool) -> Result<(), Unswapped> {
        let unswapped = |what, source| Unswapped { what, source, lost: None };
        self.open(force).await.map_err(|e| unswapped("its tray could not be opened", e))?;
        if let Err(e) = self.take_out(force).await {
            // A guest that opens its tray after all finds the medium in it.
            let _ = self.close().await;
            return Err(unswapped("the old medium could not be taken out", e));
        }
        let inserted = match new {
            Some(node) => self.insert(node).await,
            None => Ok(()),
        };
        let failed = match inserted {
            Err(e) => ("the new medium could not be put in", e),
            Ok(()) => match self.close().await {
                Ok(()) => return Ok(()),
                Err(e) => ("its tray could not be closed", e),
            },
        };
        let restored = self.put_back(old).await;
        Err(Unswapped { what: failed.0, source: failed.1, lost: restored.err() })
    }

    async fn open(&self, force: bool) -> Result<(), QmpError> {
        self.tell("blockdev-open-tray", json!({ "force": force })).await?;
        Checkpoint::TrayOpened.passed();
        Ok(())
    }

    /// A guest that has locked the tray was asked to open it, and may take its time.
    async fn take_out(&self, force: bool) -> Result<(), QmpError> {
        self.while_open("blockdev-remove-medium", json!({}), force).await?;
        Checkpoint::MediumRemoved.passed();
        Ok(())
    }

    async fn insert(&self, node: &str) -> Result<(), QmpError> {
        // There is nothing in the drive that a guest would miss.
        self.while_open("blockdev-insert-medium", json!({ "node-name": node }), true).await?;
        Checkpoint::MediumInserted.passed();
        Ok(())
    }

    /// Does what is only done while the tray is open. `force`: a guest that closes it, as one does which looks what is in
    /// the drive, has it opened again.
    async fn while_open(&self, command: &str, arguments: Value, force: bool) -> Result<(), QmpError> {
        let deadline = Instant::now() + TRAY_DEADLINE;
        loop {
            match self.tell(command, arguments.clone()).await {
                Err(e) if is_closed(&e) && Instant::now() < deadline => sleep(TRAY_INTERVAL).await,
                done => return done,
            }
            if force {
                self.open(true).await?;
            }
        }
    }

    async fn close(&self) -> Result<(), QmpError> {
        self.tell("blockdev-close-tray", json!({})).await?;
        Checkpoint::TrayClosed.passed();
        Ok(())
    }

    async fn put_back(&self, old: Option<&String>) -> Result<(), QmpError> {
        self.open(true).await?;
        self.take_out(true).await?;
        if let Some(node) = old {
            self.insert(node).await?;
        }
        self.close().await
    }

    async fn tell(&self, command: &str, mut arguments: Value) -> Result<(), QmpError> {
        arguments["id"] = self.id.into();
        self.qmp.execute_json(command, Some(&arguments), COMMAND_DEADLINE).await.map(drop)
    }
}
