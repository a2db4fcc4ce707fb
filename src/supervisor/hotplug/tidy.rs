//! What a supervisor that was killed in the middle of a change has left in QEMU.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::qemu::{VNC_SECRET, is_chardev_key};
use crate::qmp::{COMMAND_DEADLINE, Qmp, QmpError};
use crate::supervisor::{Configuration, FdSet, rekey};

use super::media::complete;
use super::steps::{is_absent, undo};
use super::{DiskParts, Step};

/// How long a job that a dead supervisor has started may still take. QEMU derives a key in 2-3 s, and answers nobody
/// meanwhile.
const JOB_DEADLINE: Duration = Duration::from_secs(10);

/// A block node, as `query-named-block-nodes` has it.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Node {
    node_name: String,
}

/// Removes the devices, nodes, descriptors and secrets of a disk that never came to be known: their numbers have not been
/// given to any disk yet; and the secrets and jobs of what else was going on. What the guest uses stays, and a warning says
/// so.
pub(in crate::supervisor) async fn tidy(
    qmp: &Qmp,
    configuration: &mut Configuration,
) -> Result<(), QmpError> {
    for prefix in [rekey::JOB, "vmward-create-"] {
        qmp.dismiss_jobs(prefix, JOB_DEADLINE).await?;
    }
    complete(qmp, configuration).await?;
    let left = left(qmp, configuration).await?;
    if left.is_empty() {
        return Ok(());
    }
    tracing::warn!("an earlier vmward was killed in the middle of a change: what is there of it is removed");
    let devices = unknown_devices(qmp, configuration, &left).await?;
    if let Some(alias) = devices.first() {
        for alias in &devices {
            match qmp.execute(qapi::qmp::device_del { id: alias.clone() }).await {
                Err(e) if !is_absent(&e) => tracing::warn!("{alias} is not taken out: {e}"),
                _ => {}
            }
        }
        // The guest may take its time. What is behind the device goes when that is gone, as with every disk.
        configuration.disks.push(parts(alias, left));
        return Ok(());
    }
    for (step, why) in undo(qmp, left).await.left {
        tracing::warn!("{step} stays in QEMU until the guest ends: {why}");
    }
    Ok(())
}

/// All that nobody knows, in the order in which it was made.
async fn left(qmp: &Qmp, configuration: &Configuration) -> Result<Vec<Step>, QmpError> {
    // What could not be undone of a disk has such numbers as well, and is known.
    let is_known = |name: &str| configuration.disks.iter().any(|d| d.has(name));
    let is_left = |name: &str| configuration.nodes.is_later(name) && !is_known(name);
    let is_lent =
        |name: &str| [rekey::OPENER, rekey::NEW, VNC_SECRET].contains(&name) || is_chardev_key(name);
    let objects = qmp.execute(qapi::qmp::qom_list { path: "/objects".to_owned() }).await?;
    let objects = objects.into_iter().map(|object| object.name);
    let mut left: Vec<Step> =
        objects.filter(|name| is_left(name) || is_lent(name)).map(Step::Object).collect();
    let sets = qmp.execute(qapi::qmp::query_fdsets {}).await?;
    let ours = sets.iter().filter(|set| set.fds.iter().any(|fd| fd.opaque.as_deref().is_some_and(is_left)));
    let ours = ours.filter_map(|set| u32::try_from(set.fdset_id).ok());
    let ours = ours.filter(|set| !configuration.disks.iter().any(|d| d.has_set(*set)));
    left.extend(ours.map(Step::FdSet));
    let command = "query-named-block-nodes";
    let nodes = qmp.execute_json(command, Some(&json!({ "flat": true })), COMMAND_DEADLINE).await?;
    let nodes: Vec<Node> = serde_json::from_value(nodes)
        .map_err(|e| QmpError::Reply { command: command.to_owned(), source: e.into() })?;
    // QEMU lists the newest first, and a node with a header beside it takes that along.
    let nodes = nodes.into_iter().rev().map(|node| node.node_name).filter(|name| is_left(name));
    left.extend(nodes.filter(|name| !name.ends_with("-header")).map(Step::Node));
    Ok(left)
}

/// The devices that nobody knows and that use what is left.
async fn unknown_devices(
    qmp: &Qmp,
    configuration: &Configuration,
    left: &[Step],
) -> Result<Vec<String>, QmpError> {
    let blocks = qmp.execute_json("query-block", None::<&()>, COMMAND_DEADLINE).await?;
    let unknown = blocks.as_array().into_iter().flatten().filter_map(|block| {
        let node = block.get("inserted")?.get("node-name").and_then(Value::as_str)?;
        // An id, or the path of the device or of its part.
        let device = block.get("qdev").and_then(Value::as_str)?;
        let device = device.strip_prefix("/machine/peripheral/").unwrap_or(device);
        let alias = device.split('/').next()?;
        let is_left = left.contains(&Step::Node(node.to_owned()));
        (is_left && !configuration.disks.iter().any(|d| d.alias == alias)).then(|| alias.to_owned())
    });
    Ok(unknown.collect())
}

/// A disk of which only this is known.
fn parts(alias: &str, left: Vec<Step>) -> DiskParts {
    let mut parts = DiskParts { target: alias.to_owned(), alias: alias.to_owned(), ..DiskParts::default() };
    for step in left {
        match step {
            Step::Object(id) => parts.objects.push(id),
            Step::FdSet(number) => {
                parts.descriptors.push(FdSet { number, node: String::new(), image: None });
            }
            Step::Node(name) => parts.nodes.push(name),
            Step::Chardev(_) | Step::Device(_) | Step::Throttle(_) => {}
        }
    }
    parts
}
