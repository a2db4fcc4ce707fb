//! Plugging a disk in.

use std::sync::Arc;

use serde_json::Value;

use crate::domain::disk::Disk;
use crate::keystore::ResolvedSecrets;
use crate::qemu::refusal::WrongSecret;
use crate::qemu::{
    DiskPlan, JsonObject, QemuObject, SecretObject, SecretSource, Service, addresses, storage,
};
use crate::qmp::QmpError;
use crate::secret::{SecretRef, os_random};
use crate::supervisor::confinement::check_disk;
use crate::supervisor::opened::{free_fd_sets, hand_over, open_images};
use crate::supervisor::server_header::{DEADLINE as READ_DEADLINE, Reader};
use crate::supervisor::unlock::{derive, finish};
use crate::supervisor::{
    Checkpoint, Configuration, Outside, Running, SupervisorError, check_helpers, check_images, live_xml,
};
use crate::xml::{self, Diagnostics, Element};

use super::steps::{Failed, Making};
use super::{DiskParts, HotplugError, Step};

/// A disk that was plugged in.
#[derive(Debug)]
pub struct Attached {
    /// Its target.
    pub target: String,
    /// Its id in QEMU.
    pub alias: String,
    /// What was said about its XML, though it was taken.
    pub warnings: Diagnostics,
}

/// What is known of a disk before QEMU hears of it.
struct Prepared {
    disk: Disk,
    element: Element,
    plan: DiskPlan,
    numbers: storage::NodeNumbers,
    /// What has to run for it is not installed, which is said.
    unserved: bool,
}

/// Plugs in the disk of a `<disk>` document, or, where that fails, leaves everything as it was.
///
/// The future is to be run to its end: dropping it midway would leave the steps that were done.
pub async fn attach(
    running: &Running,
    source: &str,
    allow_unsupported: bool,
) -> Result<Attached, HotplugError> {
    let change = running.change().await;
    let mut diagnostics = Diagnostics::new();
    let prepared = prepare(running, source, &mut diagnostics)?;
    if allow_unsupported {
        diagnostics.allow_unsupported();
    }
    let prepared = match prepared {
        Some(prepared) if !diagnostics.has_errors() => prepared,
        Some(Prepared { unserved: true, .. }) => return Err(HotplugError::Unserved(diagnostics)),
        _ => return Err(HotplugError::Xml(diagnostics)),
    };
    let Prepared { disk, mut element, mut plan, numbers, .. } = prepared;

    let mut parts = DiskParts::of(&disk.target, &plan);
    let (mut making, mut made) = open(running, &mut plan, &mut parts, true).await?;
    if made.is_ok() {
        made = making.frontend(&plan).await;
    }
    if let Err(step) = made {
        if !step.undone.left.is_empty() {
            // What could not be undone goes when the guest lets go of the device.
            let keep = |configuration: &mut Configuration| {
                configuration.disks.push(parts.clone());
                configuration.nodes = numbers;
            };
            change.commit(keep).map_err(save)?;
        }
        return Err(failed(running, step, &parts, &disk, &plan).await);
    }

    let attached =
        Attached { target: disk.target.clone(), alias: parts.alias.clone(), warnings: diagnostics };
    live_xml::fill_in(&mut element, &disk.info);
    live_xml::redact(&mut element);
    change
        .commit(|configuration| {
            if let Some(devices) = live_xml::devices(&mut configuration.xml) {
                devices.children.push(element);
            }
            configuration.domain.devices.disks.push(disk);
            configuration.disks.push(parts);
            configuration.nodes = numbers;
        })
        .map_err(save)?;
    Checkpoint::AttachSaved.passed();
    Ok(attached)
}

/// Has QEMU open what is behind a disk's device, and what serves that started before. Where that fails nothing of it is
/// left, but for what a step that failed says. `with_device`: the device may be made as well, where there is nothing to be
/// looked at first.
pub(super) async fn open<'a>(
    running: &'a Running,
    plan: &mut DiskPlan,
    parts: &mut DiskParts,
    with_device: bool,
) -> Result<(Making<'a>, Result<(), Failed>), HotplugError> {
    let free = async { free_fd_sets(&running.qmp).await.map_err(HotplugError::Descriptors) };
    let (secrets, free) = tokio::try_join!(resolve(running, plan), free)?;
    let secrets = Arc::new(secrets);
    if !plan.helpers.is_empty() {
        let served = running.helpers.add(&plan.helpers, &|secret| secrets.get(secret)).await;
        served.map_err(|e| HotplugError::Helper(Box::new(e)))?;
        Checkpoint::Served.passed();
        running.save_helpers();
    }
    let opened = open_images_of(running, plan, parts, with_device, free, secrets).await;
    if opened.is_err() {
        running.end_helpers(&parts.helpers).await;
    }
    opened
}

async fn open_images_of<'a>(
    running: &'a Running,
    plan: &mut DiskPlan,
    parts: &mut DiskParts,
    with_device: bool,
    mut free: impl Iterator<Item = u32>,
    secrets: Arc<ResolvedSecrets>,
) -> Result<(Making<'a>, Result<(), Failed>), HotplugError> {
    let (lib_dir, user) = (running.lib_dir(), running.user());
    let environment = running.configuration().domain.passed_through.environment.clone();
    let reader = Reader {
        lib_dir: &lib_dir,
        user: user.as_ref(),
        environment: &environment,
        qmp: Some(&running.qmp),
        deadline: READ_DEADLINE,
    };
    let (images, servers) = (&plan.images, &plan.servers);
    let (opened, derivations) =
        open_images(images, servers, running.unlock, &running.capabilities, &secrets, &reader).await?;
    let openings = derive(derivations, &secrets).done().await?;
    Checkpoint::Unlocked.passed();
    let descriptors = hand_over(opened, plan, |_, _, _| free.next().unwrap_or(u32::MAX));
    descriptors.iter().for_each(|(set, _)| parts.note(set));
    // An object that a disk before this one brought (a helper, a throttle group) serves both.
    let shared = |id: &str| running.configuration().disks.iter().any(|d| d.objects.iter().any(|o| o == id));
    let objects = plan.objects.iter().filter(|o| !shared(o.id()));
    let objects = objects.map(|o| properties(running, o, &secrets)).collect::<Result<Vec<_>, _>>()?;
    let mut making = Making::new(&running.qmp);
    let mut made = making.backend(&objects, descriptors, plan, with_device && openings.is_empty()).await;
    drop((secrets, objects));
    for (step, why) in &making.secrets.left {
        tracing::warn!("{step} stays until the disk goes: {why}");
    }
    parts.objects.retain(|id| !making.secrets.undone.contains(&Step::Object(id.clone())));
    if made.is_ok() {
        match finish(openings, &running.qmp, &reader).await {
            Ok(Ok(())) => {}
            Ok(Err(source)) => {
                return Err(HotplugError::Changed { undone: making.undo().await, source });
            }
            Err(source) => {
                let step = Step::Node(parts.unlocked_outside.clone().unwrap_or_default());
                made = Err(Failed { step, undone: making.undo().await, source });
            }
        }
    }
    Ok((making, made))
}

/// The error of a step that failed, with what served the disk ended, unless something of that is left.
pub(super) async fn failed(
    running: &Running,
    failed: Failed,
    parts: &DiskParts,
    disk: &Disk,
    plan: &DiskPlan,
) -> HotplugError {
    let Failed { step, source, undone } = failed;
    if source.is_disconnect() {
        return HotplugError::Ended { step, source };
    }
    let said = match undone.left.is_empty() {
        true => running.end_helpers(&parts.helpers).await,
        false => Vec::new(),
    };
    let wrong = blame(&step, &source, disk, plan).map(Box::new);
    HotplugError::Step { step, undone, said, wrong, source: source.into() }
}

/// The secret of the disk that did not open what a step was to open, if that is why the step failed.
fn blame(step: &Step, error: &QmpError, disk: &Disk, plan: &DiskPlan) -> Option<WrongSecret> {
    let told = plan.told(step.name()?)?;
    let secrets = plan.objects.iter().filter_map(|o| match o {
        QemuObject::Secret(secret) => Some((secret, format!("the disk '{}'", disk.target))),
        QemuObject::Plain(_) => None,
    });
    WrongSecret::find(&format!("{}: {}", Value::Object(told.clone()), error.refusal()?.1), secrets)
}

pub(super) fn save(error: SupervisorError) -> HotplugError {
    HotplugError::Save(Box::new(error))
}

/// Everything that can be said and decided without QEMU and without a keystore.
fn prepare(
    running: &Running,
    source: &str,
    diagnostics: &mut Diagnostics,
) -> Result<Option<Prepared>, Outside> {
    let Some(element) = xml::parse(source, diagnostics) else { return Ok(None) };
    let Some(mut disk) = Disk::from_xml(&element, diagnostics) else { return Ok(None) };
    element.report_unread(diagnostics);
    check_disk(&disk)?;
    check_images([&disk], diagnostics);
    let configuration = running.configuration();
    addresses::assign_disk(&mut disk, &configuration.domain, &running.capabilities, diagnostics);
    if diagnostics.has_hard_errors() {
        return Ok(None);
    }
    let mut numbers = configuration.nodes.clone();
    let plan = storage::plan_disk(&disk, &mut numbers, &running.capabilities, diagnostics);
    let Some(mut plan) = plan else { return Ok(None) };
    for descriptor in &plan.descriptors {
        diagnostics.error(descriptor.span, "vmward plugs in no disk that needs a descriptor opened for it");
    }
    if let Some(span) = plan.reservations {
        diagnostics.error(span, "vmward starts no helper for persistent reservations while a guest runs");
    }
    let unserved = is_unserved(running, &mut plan, &element, diagnostics);
    Ok(Some(Prepared { disk, element, plan, numbers, unserved }))
}

/// Has the images of a disk that a helper is to serve be found where that will listen. Whether there is no such helper on
/// this host, which is said.
pub(super) fn is_unserved(
    running: &Running,
    plan: &mut DiskPlan,
    element: &Element,
    diagnostics: &mut Diagnostics,
) -> bool {
    let alias = plan.device.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
    let others = running.helpers();
    let taken = |device: &str| others.iter().any(|helper| helper.device == device);
    storage::serve(plan, &alias, &running.name(), &running.capabilities, taken);
    check_helpers(&plan.helpers, element, running.user().as_ref(), diagnostics).is_some()
}

async fn resolve(running: &Running, plan: &DiskPlan) -> Result<ResolvedSecrets, HotplugError> {
    let of_qemu = plan.objects.iter().filter_map(|o| match o {
        QemuObject::Secret(SecretObject { source: SecretSource::Keystore(secret), .. }) => Some(secret),
        _ => None,
    });
    let of_helpers = plan.helpers.iter().filter_map(|helper| match &helper.service {
        Service::Ssh(file) => Some(&file.password),
        _ => None,
    });
    let wanted: Vec<SecretRef> = of_qemu.chain(of_helpers).cloned().collect();
    let keystores = running.keystores.clone();
    // A keystore may be a server that does not answer: the guest's supervision goes on meanwhile.
    tokio::task::spawn_blocking(move || keystores.resolve(&wanted))
        .await
        .map_err(|_| HotplugError::Aborted)?
        .map_err(HotplugError::Secrets)
}

/// An object as it is sent, a secret's value sealed.
fn properties(
    running: &Running,
    object: &QemuObject,
    secrets: &ResolvedSecrets,
) -> Result<JsonObject, HotplugError> {
    let secret = match object {
        QemuObject::Plain(properties) => return Ok(properties.clone()),
        QemuObject::Secret(secret) => secret,
    };
    let value = secret.source.value(|reference| secrets.get(reference)).ok_or(HotplugError::Aborted)?;
    Ok(secret.properties(&running.master_key.seal(value, &mut os_random())))
}
