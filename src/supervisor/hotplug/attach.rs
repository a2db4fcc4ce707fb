//! Plugging a disk in.

use crate::domain::disk::Disk;
use crate::keystore::ResolvedSecrets;
use crate::qemu::{DiskPlan, JsonObject, QemuObject, SecretObject, SecretSource, addresses, storage};
use crate::secret::{SecretRef, os_random};
use crate::supervisor::{Configuration, Running, live_xml};
use crate::xml::{self, Diagnostics, Element};

use super::steps::{self, Failed, Parts};
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
    let prepared = prepare(running, source, &mut diagnostics);
    if allow_unsupported {
        diagnostics.allow_unsupported();
    }
    let Some(prepared) = prepared.filter(|_| !diagnostics.has_errors()) else {
        return Err(HotplugError::Xml(diagnostics));
    };
    let Prepared { disk, mut element, plan, numbers } = prepared;

    let secrets = resolve(running, &plan).await?;
    let mut parts = DiskParts::from(&plan);
    // An object that a disk before this one brought (a helper, a throttle group) serves both.
    let shared = |id: &str| running.configuration().disks.iter().any(|d| d.objects.iter().any(|o| o == id));
    let objects = plan.objects.iter().filter(|o| !shared(o.id()));
    let objects = objects.map(|o| properties(running, o, &secrets)).collect::<Result<_, _>>()?;
    steps::make(&running.qmp, &Parts { objects, nodes: &plan.nodes, device: &plan.device }).await.map_err(
        |Failed { step, source, undone }| match source.is_disconnect() {
            true => HotplugError::Ended { step, source },
            false => HotplugError::Step { step, undone, source },
        },
    )?;
    drop(secrets);

    // The disk is open: QEMU needs no secret any more. One that cannot be removed goes with the disk.
    let secrets = plan.objects.iter().filter(|o| matches!(o, QemuObject::Secret(_)));
    let removed = steps::undo(&running.qmp, secrets.map(|o| Step::Object(o.id().to_owned())).collect()).await;
    for (step, why) in &removed.left {
        tracing::warn!("{step} stays until the disk goes: {why}");
    }
    parts.objects.retain(|id| !removed.undone.contains(&Step::Object(id.clone())));

    let attached =
        Attached { target: disk.target.clone(), alias: parts.alias.clone(), warnings: diagnostics };
    live_xml::fill_in(&mut element, &disk.info);
    live_xml::redact(&mut element);
    change
        .commit(|configuration| {
            if let Some(devices) = live_xml::devices(&mut configuration.xml) {
                devices.children.push(element);
            }
            disk.insert_into(&mut configuration.domain.devices.disks);
            configuration.disks.push(parts);
            configuration.node_numbers = numbers;
        })
        .map_err(|e| HotplugError::Save(Box::new(e)))?;
    Ok(attached)
}

/// Everything that can be said and decided without QEMU and without a keystore.
fn prepare(running: &Running, source: &str, diagnostics: &mut Diagnostics) -> Option<Prepared> {
    let element = xml::parse(source, diagnostics)?;
    let mut disk = Disk::from_xml(&element, diagnostics)?;
    element.report_unread(diagnostics);
    let configuration = running.configuration();
    check(&disk, &configuration, diagnostics);
    addresses::assign_disk(&mut disk, &configuration.domain, &running.capabilities, diagnostics);
    let mut numbers = configuration.node_numbers.clone();
    let plan = storage::plan_disk(&disk, &mut numbers, &running.capabilities, diagnostics)?;
    Some(Prepared { disk, element, plan, numbers })
}

/// The rules between the disk and those that are there.
fn check(disk: &Disk, configuration: &Configuration, diagnostics: &mut Diagnostics) {
    let disks = &configuration.domain.devices.disks;
    if let Some(other) = disks.iter().find(|d| d.target == disk.target) {
        let alias = other.info.alias.as_deref().unwrap_or("a disk");
        diagnostics
            .error(disk.target_span, format!("the guest already has a disk '{}' ({alias})", disk.target))
            .hint("`vmward status` shows the targets that are taken");
    }
    if let Some(alias) = disk.info.alias.as_ref().filter(|a| disks.iter().any(|d| d.info.alias.as_ref() == Some(*a))) {
        diagnostics.error(disk.info.span, format!("the guest already has a device with the alias '{alias}'"));
    }
}

async fn resolve(running: &Running, plan: &DiskPlan) -> Result<ResolvedSecrets, HotplugError> {
    let wanted: Vec<SecretRef> = plan
        .objects
        .iter()
        .filter_map(|o| match o {
            QemuObject::Secret(SecretObject { source: SecretSource::Keystore(secret), .. }) => Some(secret.clone()),
            _ => None,
        })
        .collect();
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
    let value = match &secret.source {
        SecretSource::Keystore(reference) => secrets.get(reference).ok_or(HotplugError::Aborted)?,
        SecretSource::Xml(value) => value,
    };
    Ok(secret.properties(&running.master_key.seal(value, &mut os_random())))
}
