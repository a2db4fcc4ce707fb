//! vCPUs that are plugged in before the guest runs.

use serde_json::{Value, json};

use crate::domain::vcpu::Vcpus;
use crate::qmp::{COMMAND_DEADLINE, Qmp, QmpError};

/// Plugs in the vCPUs that are not QEMU's own, in their order.
pub(super) async fn plug(qmp: &Qmp, vcpus: &Vcpus) -> Result<(), QmpError> {
    if vcpus.plugged.is_empty() {
        return Ok(());
    }
    let slots = qmp.execute_json("query-hotpluggable-cpus", None::<&Value>, COMMAND_DEADLINE).await?;
    let mut slots = slots.as_array().cloned().unwrap_or_default();
    // QEMU lists them as it likes. Numbers go through threads, cores and sockets, as those of its own vCPUs.
    slots.sort_by_key(place);
    for id in &vcpus.plugged {
        let device = slots.get(*id as usize).map_or(Value::Null, |slot| device(slot, *id));
        qmp.execute_json("device_add", Some(&device), COMMAND_DEADLINE).await?;
    }
    Ok(())
}

/// Where in the machine a vCPU is plugged in.
fn place(slot: &Value) -> Vec<u64> {
    let part = |name: &&str| slot["props"][name].as_u64().unwrap_or_default();
    ["socket-id", "die-id", "module-id", "core-id", "thread-id"].iter().map(part).collect()
}

/// The arguments of `device_add`, the vCPU's alias as libvirt has it.
fn device(slot: &Value, id: u32) -> Value {
    let mut device = slot["props"].clone();
    device["driver"] = slot["type"].clone();
    device["id"] = json!(format!("vcpu{id}"));
    device
}
