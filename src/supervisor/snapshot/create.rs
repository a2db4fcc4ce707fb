//! Making a snapshot: the overlays first, all of them, then one step that switches the guest to them.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::domain::disk::{Disk, Format, Image, Kind, Protocol, Source};
use crate::keystore::ResolvedSecrets;
use crate::qemu::storage::NodeNumbers;
use crate::qemu::storage::image::{Crypt, Kind as Header, sniff};
use crate::qemu::{DiskPlan, JsonObject, storage};
use crate::qmp::{COMMAND_DEADLINE, Qmp, QmpError, SLOW_COMMAND_DEADLINE};
use crate::secret::{SecretLookup, SecretRef, SecretValue, UsageKind};
use crate::supervisor::confinement::{Access, check};
use crate::supervisor::hotplug::{Step, undo};
use crate::supervisor::images::first_bytes;
use crate::supervisor::opened::{free_fd_sets, hand_over, open_locked};
use crate::supervisor::operate::virtual_size;
use crate::supervisor::{Checkpoint, Configuration, FdSet, Running, live_xml};
use crate::volume::Kdf;
use crate::xml::{Element, Span};

use super::chain::with_overlay;
use super::{Snapshot, SnapshotDisk, SnapshotError, Unfinished, list, metadata, node, parsed};

/// A snapshot that is to be made.
#[derive(Debug, Clone)]
pub struct Request {
    /// Its name.
    pub name: String,
    /// The targets of its disks, each with the absolute path of its overlay if that is not to be beside the image. None:
    /// all that the guest writes to.
    pub disks: Vec<(String, Option<String>)>,
    /// The secret of the overlays, if it is not to be that of the images below.
    pub secret: Option<SecretLookup>,
}

/// What an overlay is going to be.
struct Overlay {
    target: String,
    path: PathBuf,
    /// The node that it goes on.
    below: String,
    /// What its header says of the image below: path and format.
    backing: (String, &'static str),
    /// The disk with it.
    element: Element,
    disk: Disk,
    /// Its object and its nodes.
    plan: DiskPlan,
    /// The set that its file is in.
    descriptors: Vec<FdSet>,
    secret: Option<SecretRef>,
}

/// A file that goes again unless it is kept.
struct Fresh(Option<PathBuf>);

impl Fresh {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(e) = fs::remove_file(path)
        {
            tracing::warn!("{} could not be removed: {e}", path.display());
        }
    }
}

/// Makes a snapshot, of all its disks or of none.
///
/// The future is to be run to its end: dropping it midway would leave overlays that nobody uses.
pub async fn create(running: &Running, request: Request) -> Result<Snapshot, SnapshotError> {
    let change = running.change().await;
    let mut numbers = running.configuration().nodes.clone();
    let mut overlays = plan(running, &request, &mut numbers)?;
    let secrets = resolve(running, &overlays).await?;
    let sizes = sizes(running, &overlays).await?;
    let mut begun = running.configuration().clone();
    begun.unfinished = overlays.iter().map(Overlay::unfinished).collect();
    for overlay in &overlays {
        // What is there is not this snapshot's, and must not be taken for it.
        require_absent(&overlay.path)?;
    }
    // Before there is a file: a supervisor that comes back removes it.
    change.announce(&begun).map_err(|e| SnapshotError::Save(Box::new(e)))?;
    let mut files = Vec::new();
    let mut opened = Vec::new();
    let made = async {
        for (overlay, size) in overlays.iter_mut().zip(sizes) {
            files.push(make_file(&overlay.path)?);
            Checkpoint::OverlayMade.passed();
            let value = overlay.secret.as_ref().and_then(|secret| secrets.get(secret));
            if overlay.secret.is_some() != value.is_some() {
                return Err(SnapshotError::Aborted);
            }
            open(running, overlay, size, value, &mut opened).await?;
            if value.is_some() {
                require_encrypted(&overlay.path)?;
            }
        }
        Checkpoint::OverlaysOpened.passed();
        Ok(())
    };
    let mut done = made.await;
    let disks = overlays
        .iter()
        .map(|o| SnapshotDisk { target: o.target.clone(), overlay: o.path.display().to_string() });
    let snapshot = Snapshot {
        name: request.name,
        created: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        disks: disks.collect(),
    };
    let mut snapshots = list(running);
    snapshots.push(snapshot.clone());
    let mut planned = running.configuration().clone();
    planned.nodes = numbers;
    metadata::write(&mut planned.xml, &snapshots);
    let switches: Vec<Value> = overlays.iter().map(Overlay::switch).collect();
    overlays.into_iter().for_each(|overlay| overlay.take_effect(&mut planned));
    if done.is_ok() {
        // Before it is so: what the guest writes to an overlay that nobody knows would be lost with the next start.
        done = change.announce(&planned).map_err(|e| SnapshotError::Save(Box::new(e)));
        Checkpoint::SwitchSaved.passed();
    }
    if done.is_ok() {
        done = switch(&running.qmp, switches).await.map_err(SnapshotError::Switch);
        Checkpoint::Switched.passed();
    }
    if let Err(e) = done {
        for (step, why) in undo(&running.qmp, opened).await.left {
            tracing::warn!("{step} stays until the guest ends: {why}");
        }
        change.commit(|_| {}).map_err(|e| SnapshotError::Save(Box::new(e)))?;
        return Err(e);
    }
    files.into_iter().for_each(Fresh::keep);
    change.commit(|configuration| *configuration = planned).map_err(|e| SnapshotError::Save(Box::new(e)))?;
    Ok(snapshot)
}

impl Overlay {
    fn unfinished(&self) -> Unfinished {
        let below = Some(self.backing.0.clone());
        Unfinished {
            target: self.target.clone(),
            path: self.path.clone(),
            below,
            nodes: Vec::new(),
            writes: Vec::new(),
        }
    }

    /// How the guest comes to write to it.
    fn switch(&self) -> Value {
        let top = self.plan.nodes.last().and_then(|n| n.get("node-name")).cloned();
        json!({ "type": "blockdev-snapshot", "data": { "node": self.below, "overlay": top } })
    }

    /// From now on it is the disk's topmost image.
    fn take_effect(self, configuration: &mut Configuration) {
        let nodes = self.plan.nodes.iter().filter_map(|n| Some(n.get("node-name")?.as_str()?.to_owned()));
        if let Some(parts) = configuration.disks.iter_mut().find(|d| d.target == self.target) {
            let place =
                parts.nodes.iter().position(|n| *n == self.below).map_or(parts.nodes.len(), |p| p + 1);
            parts.nodes.splice(place..place, nodes);
            parts.descriptors.extend(self.descriptors);
        }
        super::replace_disk(configuration, &self.target, self.element, self.disk);
    }
}

/// Everything that can be decided without QEMU, keystores and files.
fn plan(
    running: &Running,
    request: &Request,
    numbers: &mut NodeNumbers,
) -> Result<Vec<Overlay>, SnapshotError> {
    let name = &request.name;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.starts_with(['.', '-']) || !name.chars().all(plain) {
        return Err(SnapshotError::Name(name.clone()));
    }
    if list(running).iter().any(|s| s.name == *name) {
        return Err(SnapshotError::Exists(name.clone()));
    }
    let mut configuration = running.configuration().xml.clone();
    let configured = running.configuration();
    let disks = &configured.domain.devices.disks;
    let all = || disks.iter().filter(|d| d.kind == Kind::Disk && !d.readonly && d.image.is_some());
    let wanted: Vec<_> = match request.disks.is_empty() {
        true => all().map(|d| (d.target.clone(), None)).collect(),
        false => request.disks.clone(),
    };
    if wanted.is_empty() {
        return Err(SnapshotError::NoDisks);
    }
    let mut overlays: Vec<Overlay> = Vec::new();
    for (target, path) in wanted {
        if overlays.iter().any(|o| o.target == target) {
            return Err(SnapshotError::Twice(target));
        }
        let missing = || SnapshotError::NoSuchDisk(target.clone());
        let disk = disks.iter().find(|d| d.target == target).ok_or_else(missing)?;
        let parts = configured.disks.iter().find(|d| d.target == target).ok_or_else(missing)?;
        let refuse = |why| SnapshotError::Disk { target: target.clone(), why };
        let (image, below) = match (&disk.image, parts.image_node()) {
            (Some(image), Some(node)) => (image, node.to_owned()),
            _ => return Err(refuse("QEMU has no image of it")),
        };
        let backing = backing(disk, image).map_err(refuse)?;
        let path = match path {
            Some(path) => PathBuf::from(path),
            None => beside(Path::new(&backing.0), name),
        };
        let path_text = path.to_str().filter(|p| p.starts_with('/')).map(str::to_owned);
        let path_text =
            path_text.ok_or_else(|| refuse("the path of an overlay is absolute, and UTF-8 text"))?;
        check(&path, Access::Write)
            .map_err(|source| SnapshotError::Outside { target: target.clone(), source })?;
        let secret = secret(disk, request.secret.as_ref());
        let element = live_xml::disk(&mut configuration, &target).ok_or_else(missing)?;
        let element = with_overlay(element, &path_text, secret.as_ref());
        let with = parsed(&element, disk).ok_or_else(|| refuse("its XML does not say enough"))?;
        let plan = storage::plan_overlay(&with, numbers, &running.capabilities.host.tls);
        let descriptors = Vec::new();
        overlays.push(Overlay {
            target,
            path,
            below,
            backing,
            element,
            disk: with,
            plan,
            descriptors,
            secret,
        });
    }
    Ok(overlays)
}

/// What the header of an overlay says of the image below: its path and QEMU's name of its format.
fn backing(disk: &Disk, image: &Image) -> Result<(String, &'static str), &'static str> {
    if disk.kind != Kind::Disk || disk.readonly {
        return Err("the guest does not write to it");
    }
    if disk.shareable {
        return Err("other guests write to it as well (<shareable/>)");
    }
    if image.slice.is_some() || image.data_store.is_some() {
        return Err("its image is in a part of a file, or in two files");
    }
    let path = match &image.source {
        Source::File(path) | Source::Block { path, .. } => path,
        Source::Network(network) if matches!(network.protocol, Protocol::Rbd { .. }) => {
            return Err("its image is in a Ceph cluster, where `rbd snap create` makes snapshots");
        }
        Source::Network(_) => return Err("its image is on a server, where its snapshots are made"),
        _ => return Err("its image is no file or block device"),
    };
    let format = match image.format {
        Format::Raw if image.encryption.is_some() => "luks",
        Format::Raw => "raw",
        Format::Qcow2 => "qcow2",
        _ => return Err("its image is neither raw nor qcow2"),
    };
    Ok((path.clone(), format))
}

/// The secret of the overlay on a disk: one on an encrypted disk has one, at least that of the image below.
fn secret(disk: &Disk, own: Option<&SecretLookup>) -> Option<SecretRef> {
    if let Some(lookup) = own {
        let (lookup, span) = (lookup.clone(), Span::default());
        return Some(SecretRef { lookup, kind: UsageKind::Volume, text: true, span });
    }
    let encryption = disk.chain().find_map(|image| image.encryption.as_ref())?;
    encryption.secrets.first().cloned()
}

/// Where an overlay is when nobody says otherwise: `/images/system.qcow2` has `/images/system.NAME.qcow2`.
fn beside(image: &Path, name: &str) -> PathBuf {
    let stem = image.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    image.with_file_name(format!("{stem}.{name}.qcow2"))
}

async fn resolve(running: &Running, overlays: &[Overlay]) -> Result<ResolvedSecrets, SnapshotError> {
    let wanted: Vec<SecretRef> = overlays.iter().filter_map(|o| o.secret.clone()).collect();
    let keystores = Arc::clone(&running.keystores);
    // A keystore may be a server that does not answer: the guest's supervision goes on meanwhile.
    let found = tokio::task::spawn_blocking(move || keystores.resolve(&wanted)).await;
    found.map_err(|_| SnapshotError::Aborted)?.map_err(|mut unresolved| {
        unresolved.pop().map_or(SnapshotError::Aborted, |u| SnapshotError::Secret(u.error))
    })
}

/// What the guest sees of each disk, in bytes.
async fn sizes(running: &Running, overlays: &[Overlay]) -> Result<Vec<u64>, SnapshotError> {
    let flat = json!({ "flat": true });
    let nodes = running.qmp.execute_json("query-named-block-nodes", Some(&flat), COMMAND_DEADLINE);
    let nodes = nodes.await.map_err(SnapshotError::Switch)?;
    let size = |overlay: &Overlay| {
        virtual_size(&nodes, &overlay.below).ok_or_else(|| SnapshotError::Unknown(overlay.target.clone()))
    };
    overlays.iter().map(size).collect()
}

fn require_absent(path: &Path) -> Result<(), SnapshotError> {
    let failed = |source| SnapshotError::File { path: path.to_owned(), what: "made", source };
    match fs::symlink_metadata(path) {
        Ok(_) => Err(failed(io::ErrorKind::AlreadyExists.into())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(failed(e)),
    }
}

/// An empty file, where there was none.
fn make_file(path: &Path) -> Result<Fresh, SnapshotError> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    made.map_err(|source| SnapshotError::File { path: path.to_owned(), what: "made", source })?;
    Ok(Fresh(Some(path.to_owned())))
}

/// Has QEMU make an overlay in its file, and open it. What is open is in `opened`.
async fn open(
    running: &Running,
    overlay: &mut Overlay,
    size: u64,
    value: Option<&SecretValue>,
    opened: &mut Vec<Step>,
) -> Result<(), SnapshotError> {
    let text =
        |node: &JsonObject| node.get("node-name").and_then(Value::as_str).unwrap_or_default().to_owned();
    // It is empty yet, and unlocked by QEMU, which makes it.
    let mut images = Vec::new();
    for image in &overlay.plan.images {
        images.extend(open_locked(image)?);
    }
    let mut free = free_fd_sets(&running.qmp).await?;
    let descriptors = hand_over(images, &mut overlay.plan, |_, _, _| free.next().unwrap_or(u32::MAX));
    for (set, descriptor) in descriptors {
        set.add(&running.qmp, descriptor).await?;
        opened.push(Step::FdSet(set.number));
        overlay.descriptors.push(set);
    }
    let [storage, format] = overlay.plan.nodes.as_slice() else {
        return Err(SnapshotError::Unknown(overlay.target.clone()));
    };
    let secret_id = overlay.plan.objects.first().map(|o| o.id().to_owned());
    let failed = |what| {
        let target = overlay.target.clone();
        move |source| SnapshotError::Overlay { target, what, source }
    };
    let mut options = json!({
        "driver": "qcow2",
        "file": text(storage),
        "size": size,
        "backing-file": overlay.backing.0,
        "backing-fmt": overlay.backing.1,
    });
    if let (Some(id), Some(value)) = (&secret_id, value) {
        options["encrypt"] = json!({ "format": "luks", "key-secret": id });
        if let Some(ms) = Kdf::Auto.iter_time(value) {
            options["encrypt"]["iter-time"] = ms.into();
        }
    }
    let mut arguments = JsonObject::new();
    arguments.insert("options".to_owned(), options);
    let lent: Vec<(&str, &SecretValue)> = secret_id.as_deref().zip(value).into_iter().collect();
    running
        .lend(&lent, async || {
            let add = running.qmp.execute_json("blockdev-add", Some(storage), COMMAND_DEADLINE);
            add.await.map_err(failed("opened"))?;
            opened.push(Step::Node(text(storage)));
            let job = format!("vmward-create-{}", text(storage));
            let made = running.qmp.run_job("blockdev-create", &job, &arguments, SLOW_COMMAND_DEADLINE);
            made.await.map_err(failed("made"))?;
            let add = running.qmp.execute_json("blockdev-add", Some(format), SLOW_COMMAND_DEADLINE);
            add.await.map_err(failed("opened"))?;
            opened.push(Step::Node(text(format)));
            Ok(())
        })
        .await
}

/// No word of QEMU is taken for it.
fn require_encrypted(path: &Path) -> Result<(), SnapshotError> {
    let text = path.to_str().unwrap_or_default();
    let bytes = first_bytes(text).map_err(|source| SnapshotError::File {
        path: path.to_owned(),
        what: "looked at",
        source,
    })?;
    match sniff(&bytes) {
        Header::Qcow2(Crypt::Luks) => Ok(()),
        _ => Err(SnapshotError::CameOutPlain(path.to_owned())),
    }
}

/// One transaction: the guest writes to all of the overlays, or to none.
async fn switch(qmp: &Qmp, actions: Vec<Value>) -> Result<(), QmpError> {
    let arguments = json!({ "actions": actions });
    qmp.execute_json("transaction", Some(&arguments), COMMAND_DEADLINE).await.map(drop)
}

/// Has the guest write to overlays that a supervisor which was killed had opened and announced.
pub(super) async fn complete(qmp: &Qmp, configuration: &Configuration) -> Result<(), QmpError> {
    let disks = &configuration.domain.devices.disks;
    let with_overlays: Vec<_> = configuration
        .disks
        .iter()
        .filter(|parts| disks.iter().any(|d| d.target == parts.target && d.chain().nth(1).is_some()))
        .collect();
    if with_overlays.is_empty() {
        return Ok(());
    }
    // Not flat: only so does QEMU count what is below.
    let nodes = qmp.execute_json("query-named-block-nodes", None::<&()>, COMMAND_DEADLINE).await?;
    let switches = with_overlays.into_iter().filter_map(|parts| {
        let top = parts.nodes.iter().rposition(|name| !storage::is_filter(name))?;
        // An overlay is a file and its format; what it goes on comes before.
        let (top, below) = (&parts.nodes[top], parts.nodes.get(top.checked_sub(2)?)?);
        let depth = node(&nodes, "node-name", top)?.get("backing_file_depth")?.as_u64()?;
        let switch = json!({ "type": "blockdev-snapshot", "data": { "node": below, "overlay": top } });
        (depth == 0).then_some(switch)
    });
    let switches: Vec<Value> = switches.collect();
    if switches.is_empty() {
        return Ok(());
    }
    tracing::warn!("an earlier vmward was killed while it made a snapshot, which is completed");
    switch(qmp, switches).await
}
