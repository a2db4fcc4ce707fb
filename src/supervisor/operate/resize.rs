//! A disk that grows while its guest runs.

use serde_json::{Value, json};

use crate::domain::disk::Source;
use crate::qmp::{COMMAND_DEADLINE, SLOW_COMMAND_DEADLINE};
use crate::supervisor::{Checkpoint, Running};

use super::OperationError;

/// Makes a disk that large for the guest, in bytes: where there is a LUKS header in front of them, the image grows to
/// more. A disk that has the size already stays as it is.
pub async fn resize(running: &Running, target: &str, size: u64) -> Result<(), OperationError> {
    let _change = running.change().await;
    let (node, device) = {
        let configuration = running.configuration();
        let parts = configuration.disks.iter().find(|d| d.target == target);
        let parts = parts.ok_or_else(|| OperationError::NoSuchDisk(target.to_owned()))?;
        let disk = configuration.domain.devices.disks.iter().find(|d| d.target == target);
        let device = disk.and_then(|d| d.image.as_ref()).and_then(|image| match &image.source {
            Source::Block { path, .. } => Some(path.clone()),
            _ => None,
        });
        // The topmost, a filter too: one below it would grow without the guest's knowing.
        let node = parts.nodes.last().ok_or_else(|| OperationError::NoImage(target.to_owned()))?;
        (node.clone(), device)
    };
    let failed = |source| OperationError::Resize { target: target.to_owned(), source };
    let flat = json!({ "flat": true });
    let nodes = running.qmp.execute_json("query-named-block-nodes", Some(&flat), COMMAND_DEADLINE);
    let nodes = nodes.await.map_err(failed)?;
    let has = virtual_size(&nodes, &node).unwrap_or(0);
    if size < has {
        return Err(OperationError::Shrink { target: target.to_owned(), has });
    }
    let arguments = json!({ "node-name": node, "size": size });
    match running.qmp.execute_json("block_resize", Some(&arguments), SLOW_COMMAND_DEADLINE).await {
        Ok(_) => {
            Checkpoint::Resized.passed();
            Ok(())
        }
        // block/file-posix.c
        Err(source) => match device {
            Some(path) if source.refusal().is_some_and(|(_, desc)| desc.contains("device file")) => {
                Err(OperationError::BlockDevice { target: target.to_owned(), path, source })
            }
            _ => Err(failed(source)),
        },
    }
}

/// What the guest sees of a node, in bytes.
pub(in crate::supervisor) fn virtual_size(nodes: &Value, name: &str) -> Option<u64> {
    let node = nodes.as_array()?.iter().find(|n| n.get("node-name").and_then(Value::as_str) == Some(name))?;
    node.get("image")?.get("virtual-size")?.as_u64()
}
