//! The single steps in QEMU: making a disk's parts one after the other, undoing them in reverse.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::domain::Domain;
use crate::qemu::{Capabilities, DiskPlan, JsonObject, QemuObject, storage};
use crate::qmp::{COMMAND_DEADLINE, Qmp, QmpError, SLOW_COMMAND_DEADLINE};
use crate::xml::Diagnostics;

/// How long the guest may take to let go of a device that came in only to be taken out again.
const UNDO_DEADLINE: Duration = Duration::from_secs(15);

/// What a disk consists of in QEMU, by name, in the order in which it was made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DiskParts {
    /// The disk's target.
    pub target: String,
    /// The id of the frontend.
    pub alias: String,
    /// The id of the character device of a vhost-user disk, which has no nodes.
    pub chardev: Option<String>,
    /// The objects that stay as long as the disk does (its secrets do not).
    pub objects: Vec<String>,
    /// The block nodes, base image first.
    pub nodes: Vec<String>,
}

impl DiskParts {
    /// The parts of a disk that is made from a plan.
    pub fn of(target: &str, plan: &DiskPlan) -> Self {
        Self {
            target: target.to_owned(),
            alias: text(&plan.device, "id"),
            chardev: plan.chardev.as_ref().map(|c| c.id.clone()),
            objects: plan.objects.iter().map(|o| o.id().to_owned()).collect(),
            nodes: plan.nodes.iter().map(|n| text(n, "node-name")).collect(),
        }
    }

    /// The parts of all disks that a guest was started with. Its secret objects are gone by then.
    pub fn of_all(domain: &Domain, capabilities: &Capabilities) -> Vec<Self> {
        // The plans were made for the command line before: there is nothing new to say about them.
        let plans = storage::plan_disks(domain, capabilities, &mut Diagnostics::new());
        let with_disks = domain.devices.disks.iter().zip(plans);
        with_disks
            .map(|(disk, mut plan)| {
                plan.objects.retain(|o| !matches!(o, QemuObject::Secret(_)));
                Self::of(&disk.target, &plan)
            })
            .collect()
    }

    /// The node that stands for the disk's topmost image, below a filter; an empty drive and a vhost-user disk have
    /// none.
    pub fn image_node(&self) -> Option<&str> {
        self.nodes.iter().rev().map(String::as_str).find(|name| !storage::is_filter(name))
    }

    /// The steps that made it, without the device.
    fn steps(&self, keep: impl Fn(&str) -> bool) -> Vec<Step> {
        let objects = self.objects.iter().filter(|id| !keep(id)).cloned().map(Step::Object);
        let chardev = self.chardev.iter().cloned().map(Step::Chardev);
        objects.chain(chardev).chain(self.nodes.iter().cloned().map(Step::Node)).collect()
    }
}

/// One thing that is made in QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// `object-add`.
    Object(String),
    /// `chardev-add`.
    Chardev(String),
    /// `blockdev-add`.
    Node(String),
    /// `device_add`.
    Device(String),
    /// `block_set_io_throttle`, of a device.
    Throttle(String),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(id) => write!(f, "object {id}"),
            Self::Chardev(id) => write!(f, "character device {id}"),
            Self::Node(name) => write!(f, "block node {name}"),
            Self::Device(alias) => write!(f, "device {alias}"),
            Self::Throttle(alias) => write!(f, "limits of {alias}"),
        }
    }
}

/// What became of the steps that had been done before one failed.
#[derive(Debug, Clone, Default)]
pub struct Undone {
    /// Undone, in the order in which they were.
    pub undone: Vec<Step>,
    /// Still there, with what QEMU said.
    pub left: Vec<(Step, QmpError)>,
}

impl fmt::Display for Undone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |steps: &[Step]| steps.iter().map(Step::to_string).collect::<Vec<_>>().join(", ");
        if self.undone.is_empty() && self.left.is_empty() {
            return f.write_str("there was nothing to undo");
        }
        if !self.undone.is_empty() {
            write!(f, "undone: {}", names(&self.undone))?;
        }
        for (n, (step, why)) in self.left.iter().enumerate() {
            let separator = if n > 0 || !self.undone.is_empty() { "; " } else { "" };
            write!(f, "{separator}could not be undone: {step} ({why})")?;
        }
        Ok(())
    }
}

/// A step that failed.
#[derive(Debug)]
pub(super) struct Failed {
    pub step: Step,
    pub source: QmpError,
    pub undone: Undone,
}

/// What is to be made in QEMU, with the secrets sealed.
pub(super) struct Parts<'a> {
    pub objects: Vec<JsonObject>,
    pub plan: &'a DiskPlan,
    /// Whether the device is made as well, or only what is behind it.
    pub frontend: bool,
}

/// Makes all of it, or, where a step fails, none.
pub(super) async fn make(qmp: &Qmp, parts: &Parts<'_>) -> Result<(), Failed> {
    let objects = parts.objects.iter().map(|o| (Step::Object(text(o, "id")), o));
    let plan = parts.plan;
    let chardev = plan.chardev.as_ref().map(|c| (c.id.clone(), c.properties()));
    let chardev = chardev.iter().map(|(id, properties)| (Step::Chardev(id.clone()), properties));
    let nodes = plan.nodes.iter().map(|n| (Step::Node(text(n, "node-name")), n));
    let device = parts.frontend.then(|| (Step::Device(text(&plan.device, "id")), &plan.device));
    let throttle =
        plan.throttle.iter().filter(|_| parts.frontend).map(|t| (Step::Throttle(text(t, "id")), t));
    let mut made = Vec::new();
    for (step, arguments) in objects.chain(chardev).chain(nodes).chain(device).chain(throttle) {
        let (command, deadline) = match step {
            Step::Object(_) => ("object-add", COMMAND_DEADLINE),
            // Derives a LUKS key, or waits for a server.
            Step::Node(_) => ("blockdev-add", SLOW_COMMAND_DEADLINE),
            Step::Chardev(_) => ("chardev-add", COMMAND_DEADLINE),
            Step::Device(_) => ("device_add", COMMAND_DEADLINE),
            Step::Throttle(_) => ("block_set_io_throttle", COMMAND_DEADLINE),
        };
        match qmp.execute_json(command, Some(arguments), deadline).await {
            Ok(_) => made.push(step),
            Err(source) => {
                // QEMU may carry out later what it did not answer in time.
                if matches!(source, QmpError::Timeout { .. }) {
                    made.push(step.clone());
                }
                return Err(Failed { step, undone: undo(qmp, made).await, source });
            }
        }
    }
    Ok(())
}

/// Undoes steps, the last first. One that fails does not keep the others from being tried.
pub(in crate::supervisor) async fn undo(qmp: &Qmp, made: Vec<Step>) -> Undone {
    let mut result = Undone::default();
    for step in made.into_iter().rev() {
        match remove(qmp, &step).await {
            Ok(()) => result.undone.push(step),
            // With QEMU everything in it is gone.
            Err(e) if e.is_disconnect() => {}
            Err(e) => result.left.push((step, e)),
        }
    }
    result
}

async fn remove(qmp: &Qmp, step: &Step) -> Result<(), QmpError> {
    let (command, arguments): (_, Value) = match step {
        Step::Object(id) => ("object-del", json!({ "id": id })),
        Step::Chardev(id) => ("chardev-remove", json!({ "id": id })),
        Step::Node(name) => ("blockdev-del", json!({ "node-name": name })),
        Step::Device(alias) => {
            return match unplug(qmp, alias, UNDO_DEADLINE).await? {
                Unplug::Gone => Ok(()),
                _ => Err(QmpError::Timeout { command: "device_del".to_owned(), deadline: UNDO_DEADLINE }),
            };
        }
        // They go with the device.
        Step::Throttle(_) => return Ok(()),
    };
    match qmp.execute_json(command, Some(&arguments), COMMAND_DEADLINE).await {
        Err(e) if is_absent(&e) => Ok(()),
        other => other.map(drop),
    }
}

/// Whether QEMU refused because what is to be removed is not there (any more).
pub(super) fn is_absent(error: &QmpError) -> bool {
    // `object-del` and `blockdev-del` have no class of their own for this, only their words:
    // "object 'x' not found" (qom/object_interfaces.c), "Failed to find node with node-name='x'" (block.c).
    error.refusal().is_some_and(|(class, desc)| {
        class == "DeviceNotFound" || desc.ends_with("not found") || desc.starts_with("Failed to find node")
    })
}

/// How the wait for a device's end ended.
#[derive(Debug)]
pub(super) enum Unplug {
    /// It is gone.
    Gone,
    /// The guest refused to let go of it.
    GuestRefused,
    /// It is still there, and may go later.
    StillThere(Duration),
}

/// Takes a device out and waits until it is gone.
pub(super) async fn unplug(qmp: &Qmp, alias: &str, deadline: Duration) -> Result<Unplug, QmpError> {
    // Before the command, so that no event is missed.
    let mut events = qmp.events();
    match qmp.execute(qapi::qmp::device_del { id: alias.to_owned() }).await {
        Ok(_) => {}
        Err(e) if is_absent(&e) => return Ok(Unplug::Gone),
        // An earlier request that the guest has not answered yet still counts.
        Err(e) if e.refusal().is_some_and(|(_, desc)| desc.contains("already in the process of unplug")) => {}
        Err(e) => return Err(e),
    }
    let answered = tokio::time::timeout(deadline, async {
        loop {
            match events.next().await {
                // The frontend's own backend goes first, in an event without `device`.
                Ok(event) if event.text("device") == Some(alias) => match event.name.as_str() {
                    "DEVICE_DELETED" => return Ok(Unplug::Gone),
                    "DEVICE_UNPLUG_GUEST_ERROR" => return Ok(Unplug::GuestRefused),
                    _ => {}
                },
                Ok(_) => {}
                Err(QmpError::EventsMissed(_)) => {
                    if !is_there(qmp, alias).await? {
                        return Ok(Unplug::Gone);
                    }
                }
                Err(e) => return Err(e),
            }
        }
    })
    .await;
    answered.unwrap_or(Ok(Unplug::StillThere(deadline)))
}

/// Whether a device of that id is plugged in.
pub(super) async fn is_there(qmp: &Qmp, alias: &str) -> Result<bool, QmpError> {
    let list = qmp.execute(qapi::qmp::qom_list { path: "/machine/peripheral".to_owned() }).await?;
    Ok(list.iter().any(|property| property.name == alias))
}

/// Removes what is behind a frontend that is gone: nodes from the top down, then objects.
pub(super) async fn clean_up(qmp: &Qmp, parts: &DiskParts, keep: impl Fn(&str) -> bool) -> Undone {
    undo(qmp, parts.steps(keep)).await
}

fn text(properties: &JsonObject, name: &str) -> String {
    properties.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}
