//! What a supervisor that was killed while it plugged in a disk has left in QEMU.

use serde::Deserialize;
use serde_json::json;

use crate::qmp::{COMMAND_DEADLINE, Qmp, QmpError};
use crate::supervisor::Configuration;

use super::Step;
use super::steps::undo;

/// A block node, as `query-named-block-nodes` has it.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Node {
    node_name: String,
}

/// Removes the nodes, descriptors and secrets of a disk that never came to be known: their numbers have not been
/// given to any disk yet. What the guest uses stays, and a warning says so.
pub(in crate::supervisor) async fn tidy(qmp: &Qmp, configuration: &Configuration) -> Result<(), QmpError> {
    // What could not be undone of a disk has such numbers as well, and is known.
    let is_known = |name: &str| configuration.disks.iter().any(|d| d.has(name));
    let is_left = |name: &str| configuration.nodes.is_later(name) && !is_known(name);
    let objects = qmp.execute(qapi::qmp::qom_list { path: "/objects".to_owned() }).await?;
    let mut left: Vec<Step> =
        objects.into_iter().filter(|o| is_left(&o.name)).map(|o| Step::Object(o.name)).collect();
    let sets = qmp.execute(qapi::qmp::query_fdsets {}).await?;
    let ours = sets.iter().filter(|set| set.fds.iter().any(|fd| fd.opaque.as_deref().is_some_and(is_left)));
    let ours = ours.filter_map(|set| u32::try_from(set.fdset_id).ok());
    let ours = ours.filter(|set| !configuration.disks.iter().any(|d| d.fd_sets.contains(set)));
    left.extend(ours.map(Step::FdSet));
    let command = "query-named-block-nodes";
    let nodes = qmp.execute_json(command, Some(&json!({ "flat": true })), COMMAND_DEADLINE).await?;
    let nodes: Vec<Node> = serde_json::from_value(nodes)
        .map_err(|e| QmpError::Reply { command: command.to_owned(), source: e.into() })?;
    // QEMU lists the newest first, and a node with a header beside it takes that along.
    let nodes = nodes.into_iter().rev().map(|node| node.node_name).filter(|name| is_left(name));
    left.extend(nodes.filter(|name| !name.ends_with("-header")).map(Step::Node));
    if left.is_empty() {
        return Ok(());
    }
    tracing::warn!("an earlier vmward was killed while it plugged in a disk: what is there of it is removed");
    for (step, why) in undo(qmp, left).await.left {
        tracing::warn!("{step} stays in QEMU until the guest ends: {why}");
    }
    Ok(())
}
