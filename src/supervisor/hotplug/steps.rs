//! The single steps in QEMU: making a disk's parts one after the other, undoing them in reverse.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::OwnedFd;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::domain::Domain;
use crate::qemu::{Capabilities, DiskPlan, JsonObject, QemuObject, storage};
use crate::qmp::{COMMAND_DEADLINE, Qmp, QmpError, SLOW_COMMAND_DEADLINE, Sent};
use crate::supervisor::{Checkpoint, FdSet};
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
    /// What runs beside QEMU for it alone, by the names of the devices that those are to a helper.
    #[serde(default)]
    pub helpers: Vec<String>,
    /// The sets of descriptors through which QEMU has opened them.
    #[serde(default)]
    pub descriptors: Vec<FdSet>,
    /// Its luks node, if vmward has unlocked the image: the header that QEMU has beside it was for that opening alone,
    /// and what is done with it (amending it, above all) does nothing to the image.
    #[serde(default)]
    pub unlocked_outside: Option<String>,
    /// Of a drive: the medium that is not in it. That is the one which is about to come, until it is saved that the guest
    /// has it, and from then on the one that was there before, until nothing of it is left.
    #[serde(default)]
    pub out: Option<Box<DiskParts>>,
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
            helpers: plan.helpers.iter().filter(|h| h.is_of_one_disk()).map(|h| h.device.clone()).collect(),
            descriptors: Vec::new(),
            unlocked_outside: None,
            out: None,
        }
    }

    /// Whether a node or an object of that name is one of its parts.
    pub fn has(&self, name: &str) -> bool {
        let is_its = self.nodes.iter().chain(&self.objects).any(|part| part == name);
        is_its || self.out.as_ref().is_some_and(|out| out.has(name))
    }

    /// Whether a set of descriptors is one of its parts.
    pub(super) fn has_set(&self, number: u32) -> bool {
        let is_its = self.descriptors.iter().any(|set| set.number == number);
        is_its || self.out.as_ref().is_some_and(|out| out.has_set(number))
    }

    /// What runs beside QEMU for it alone, and for a medium that is not in it.
    pub fn all_helpers(&self) -> Vec<String> {
        let out = self.out.iter().flat_map(|out| out.all_helpers());
        self.helpers.iter().cloned().chain(out).collect()
    }

    /// What could not be removed of it, if there is anything.
    fn rest(mut self, left: &[(Step, QmpError)]) -> Option<Box<Self>> {
        let is_left = |step| left.iter().any(|(l, _)| *l == step);
        self.objects.retain(|id| is_left(Step::Object(id.clone())));
        self.nodes.retain(|name| is_left(Step::Node(name.clone())));
        self.descriptors.retain(|set| is_left(Step::FdSet(set.number)));
        self.out = self.out.and_then(|out| out.rest(left));
        let is_empty = self.objects.is_empty() && self.nodes.is_empty() && self.descriptors.is_empty();
        (!is_empty || self.out.is_some()).then(|| Box::new(self))
    }

    /// Notes that one of its nodes is opened through a set of descriptors.
    pub fn note(&mut self, set: &FdSet) {
        if set.image.is_none() {
            self.unlocked_outside = Some(set.node.clone());
        }
        self.descriptors.push(set.clone());
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
    fn steps(&self, keep: &dyn Fn(&str) -> bool) -> Vec<Step> {
        let out = self.out.iter().flat_map(|out| out.steps(keep));
        let objects = self.objects.iter().filter(|id| !keep(id)).cloned().map(Step::Object);
        let fd_sets = self.descriptors.iter().map(|set| Step::FdSet(set.number));
        let chardev = self.chardev.iter().cloned().map(Step::Chardev);
        out.chain(objects)
            .chain(fd_sets)
            .chain(chardev)
            .chain(self.nodes.iter().cloned().map(Step::Node))
            .collect()
    }
}

/// One thing that is made in QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// `object-add`.
    Object(String),
    /// `add-fd`, into a set of its own.
    FdSet(u32),
    /// `chardev-add`.
    Chardev(String),
    /// `blockdev-add`.
    Node(String),
    /// `device_add`.
    Device(String),
    /// `block_set_io_throttle`, of a device.
    Throttle(String),
}

impl Step {
    /// The name of what it makes, if it has one.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::FdSet(_) => None,
            Self::Object(name)
            | Self::Chardev(name)
            | Self::Node(name)
            | Self::Device(name)
            | Self::Throttle(name) => Some(name),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(id) => write!(f, "object {id}"),
            Self::FdSet(number) => write!(f, "descriptor set {number}"),
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

impl Undone {
    fn note(&mut self, step: Step, removed: Result<(), QmpError>) {
        match removed {
            // With QEMU everything in it is gone.
            Err(e) if e.is_disconnect() => {}
            Err(e) if !is_absent(&e) => self.left.push((step, e)),
            _ => {
                Checkpoint::Undone.passed();
                self.undone.push(step);
            }
        }
    }
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

/// A disk that is being made in QEMU. Its steps are sent without waiting for the one before: where one fails, those that
/// depend on it fail as well. A step that fails undoes all of them.
pub(super) struct Making<'a> {
    qmp: &'a Qmp,
    /// On their way.
    sent: VecDeque<(Step, Reply<'a>)>,
    made: Vec<Step>,
    /// The first that failed.
    failed: Option<(Step, QmpError)>,
    /// What became of the secrets, which QEMU needs no more once the images are open.
    pub(super) secrets: Undone,
}

/// What QEMU will say of a step, unless that could not be sent.
type Reply<'a> = Result<Sent<'a>, QmpError>;

impl<'a> Making<'a> {
    /// Nothing of it yet.
    pub(super) fn new(qmp: &'a Qmp) -> Self {
        Self { qmp, sent: VecDeque::new(), made: Vec::new(), failed: None, secrets: Undone::default() }
    }

    /// Makes what the device needs; `objects` with their secrets sealed. `at_once`: and the device, if it can be no other's
    /// image that the guest would see there.
    pub(super) async fn backend(
        &mut self,
        objects: &[JsonObject],
        descriptors: Vec<(FdSet, OwnedFd)>,
        plan: &DiskPlan,
        at_once: bool,
    ) -> Result<(), Failed> {
        for object in objects {
            self.send(Step::Object(text(object, "id")), object).await;
        }
        for (set, descriptor) in descriptors {
            let sent = set.send(self.qmp, descriptor).await;
            self.note(Step::FdSet(set.number), sent).await;
        }
        if let Some(chardev) = &plan.chardev {
            self.send(Step::Chardev(chardev.id.clone()), &chardev.properties()).await;
        }
        for node in &plan.nodes {
            self.send(Step::Node(text(node, "node-name")), &brief(node)).await;
        }
        Checkpoint::BackendSent.passed();
        // QEMU is at the last node when it has answered the others: it derives a key there. The rest is sent meanwhile.
        while self.sent.len() > 1 {
            self.hear_first().await;
        }
        let mut removals = Vec::new();
        // An object that it has refused to make is not this disk's.
        for step in secrets(plan).into_iter().filter(|step| self.made.contains(step)) {
            let sent =
                self.qmp.send("object-del", Some(&json!({ "id": step.name() })), COMMAND_DEADLINE).await;
            removals.push((step, sent));
        }
        // Whatever is left of another disk under the last node's name has kept the name of the node below it, too.
        if at_once && plan.nodes.len() > 1 && self.failed.is_none() {
            self.send_frontend(plan).await;
        }
        self.done().await?;
        for (step, sent) in removals {
            let removed = match sent {
                Ok(sent) => sent.reply().await,
                Err(e) => Err(e),
            };
            self.secrets.note(step, removed.map(drop));
        }
        self.made.retain(|step| !self.secrets.undone.contains(step));
        Ok(())
    }

    /// Makes the device, if it is not made.
    pub(super) async fn frontend(&mut self, plan: &DiskPlan) -> Result<(), Failed> {
        if !self.made.iter().any(|step| matches!(step, Step::Device(_))) {
            self.send_frontend(plan).await;
        }
        self.done().await
    }

    async fn send_frontend(&mut self, plan: &DiskPlan) {
        self.send(Step::Device(text(&plan.device, "id")), &plan.device).await;
        if let Some(limits) = &plan.throttle {
            self.send(Step::Throttle(text(limits, "id")), limits).await;
        }
    }

    /// Undoes it all.
    pub(super) async fn undo(&mut self) -> Undone {
        undo(self.qmp, std::mem::take(&mut self.made)).await
    }

    async fn send(&mut self, step: Step, arguments: &JsonObject) {
        let (command, deadline) = match step {
            Step::Object(_) => ("object-add", COMMAND_DEADLINE),
            // Derives a LUKS key, or waits for a server.
            Step::Node(_) => ("blockdev-add", SLOW_COMMAND_DEADLINE),
            Step::FdSet(_) => ("add-fd", COMMAND_DEADLINE),
            Step::Chardev(_) => ("chardev-add", COMMAND_DEADLINE),
            Step::Device(_) => ("device_add", COMMAND_DEADLINE),
            Step::Throttle(_) => ("block_set_io_throttle", COMMAND_DEADLINE),
        };
        let sent = self.qmp.send(command, Some(arguments), deadline).await;
        self.note(step, sent).await;
    }

    async fn note(&mut self, step: Step, sent: Reply<'a>) {
        self.sent.push_back((step, sent));
        if Checkpoint::are_apart() {
            self.hear_first().await;
        }
    }

    /// Waits until QEMU has answered everything.
    async fn done(&mut self) -> Result<(), Failed> {
        while !self.sent.is_empty() {
            self.hear_first().await;
        }
        match self.failed.take() {
            None => Ok(()),
            Some((step, source)) => Err(Failed { step, undone: self.undo().await, source }),
        }
    }

    async fn hear_first(&mut self) {
        let Some((step, sent)) = self.sent.pop_front() else { return };
        let reply = match sent {
            // What is behind one that was not answered in time has had its time as well.
            Ok(sent) if matches!(self.failed, Some((_, QmpError::Timeout { .. }))) => {
                sent.reply_by(Instant::now()).await
            }
            Ok(sent) => sent.reply().await,
            Err(e) => Err(e),
        };
        let Err(source) = reply else {
            match &step {
                Step::Object(_) => Checkpoint::ObjectAdded.passed(),
                Step::FdSet(_) => Checkpoint::DescriptorAdded.passed(),
                Step::Node(_) => Checkpoint::NodeAdded.passed(),
                Step::Device(_) => Checkpoint::DeviceAdded.passed(),
                Step::Chardev(_) | Step::Throttle(_) => {}
            }
            self.made.push(step);
            return;
        };
        // QEMU may carry out later what it did not answer in time.
        if matches!(source, QmpError::Timeout { .. }) {
            self.made.push(step.clone());
        }
        self.failed.get_or_insert((step, source));
    }
}

/// A node without what is so in any case: QEMU takes some µs for each byte of a command.
fn brief(node: &JsonObject) -> JsonObject {
    let is_default =
        |name: &str, value: &Value| ["auto-read-only", "read-only"].contains(&name) && *value == false;
    node.iter()
        .filter(|(name, value)| !is_default(name, value))
        .map(|(n, v)| (n.clone(), v.clone()))
        .collect()
}

/// The secrets of a disk, which QEMU needs no more once its images are open.
fn secrets(plan: &DiskPlan) -> Vec<Step> {
    let secrets = plan.objects.iter().filter(|object| matches!(object, QemuObject::Secret(_)));
    secrets.map(|object| Step::Object(object.id().to_owned())).collect()
}

/// Undoes steps, the last first. One that fails does not keep the others from being tried.
pub(in crate::supervisor) async fn undo(qmp: &Qmp, made: Vec<Step>) -> Undone {
    let mut result = Undone::default();
    for step in made.into_iter().rev() {
        let removed = remove(qmp, &step).await;
        result.note(step, removed);
    }
    result
}

async fn remove(qmp: &Qmp, step: &Step) -> Result<(), QmpError> {
    let (command, arguments): (_, Value) = match step {
        Step::Object(id) => ("object-del", json!({ "id": id })),
        Step::FdSet(number) => ("remove-fd", json!({ "fdset-id": number })),
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
    qmp.execute_json(command, Some(&arguments), COMMAND_DEADLINE).await.map(drop)
}

/// Whether QEMU refused because what is to be removed is not there (any more).
pub(in crate::supervisor) fn is_absent(error: &QmpError) -> bool {
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
    undo(qmp, parts.steps(&keep)).await
}

/// Removes a medium that is not in its drive. What stays of it is the result.
pub(super) async fn clean_up_medium(qmp: &Qmp, medium: DiskParts) -> Option<Box<DiskParts>> {
    let left = clean_up(qmp, &medium, |_| false).await.left;
    for (step, why) in &left {
        tracing::warn!("{step} stays until it can go with the medium after it: {why}");
    }
    medium.rest(&left)
}

/// What `query-block` says of a device.
pub(in crate::supervisor) fn block_of<'a>(blocks: &'a Value, alias: &str) -> Option<&'a Value> {
    // An id, or the path of the device or of its part.
    let device = |block: &'a Value| block.get("qdev").and_then(Value::as_str).unwrap_or_default();
    blocks.as_array()?.iter().find(|block| device(block).split('/').any(|part| part == alias))
}

fn text(properties: &JsonObject, name: &str) -> String {
    properties.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}
