//! Which of the host's processors QEMU's threads use.

use std::fs;
use std::io;
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::Value;

use crate::domain::Domain;
use crate::domain::id_set::IdSet;
use crate::qmp::{Qmp, QmpError};

use super::SupervisorError;

/// Both questions are answered at once.
const DEADLINE: Duration = Duration::from_secs(10);

/// The threads of a QEMU whose guest does not run yet.
struct Threads {
    vcpus: Vec<(u32, i32)>,
    iothreads: Vec<(u32, i32)>,
}

/// Pins QEMU's threads as the domain says, before the guest runs. Threads that come later are those of the
/// emulator, and have its processors.
pub(super) async fn pin(qmp: &Qmp, domain: &Domain, qemu_pid: u32) -> Result<(), SupervisorError> {
    let (pinning, all) = (&domain.pinning, domain.vcpus.host_cpus.as_ref());
    let emulator = pinning.emulator.as_ref().or(all);
    if emulator.is_none() && pinning.vcpus.is_empty() && pinning.iothreads.is_empty() {
        return Ok(());
    }
    let failed = |what: String| move |source: io::Error| SupervisorError::Pin { what, source };
    let threads = threads(qmp).await.map_err(|e| failed("QEMU".to_owned())(io::Error::other(e)))?;
    if let Some(set) = emulator {
        let tasks = tasks(qemu_pid).map_err(failed("QEMU".to_owned()))?;
        for thread in tasks {
            apply(thread, set).map_err(failed("QEMU".to_owned()))?;
        }
    }
    let groups =
        [("vCPU", &threads.vcpus, &pinning.vcpus), ("I/O thread", &threads.iothreads, &pinning.iothreads)];
    for (what, threads, pins) in groups {
        for (id, thread) in threads {
            if let Some(set) = pins.iter().find(|(n, _)| n == id).map(|(_, set)| set).or(all) {
                apply(*thread, set).map_err(failed(format!("{what} {id}")))?;
            }
        }
    }
    Ok(())
}

fn apply(thread: i32, set: &IdSet) -> io::Result<()> {
    let mut cpus = CpuSet::new();
    for cpu in set.iter() {
        cpus.set(cpu as usize)?;
    }
    Ok(sched_setaffinity(Pid::from_raw(thread), &cpus)?)
}

fn tasks(pid: u32) -> io::Result<Vec<i32>> {
    let names = fs::read_dir(format!("/proc/{pid}/task"))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter_map(|name| name.parse().ok()).collect())
}

async fn threads(qmp: &Qmp) -> Result<Threads, QmpError> {
    let ask = async |command: &str| qmp.execute_json(command, None::<&Value>, DEADLINE).await;
    let (vcpus, iothreads) = (ask("query-cpus-fast").await?, ask("query-iothreads").await?);
    let number =
        |item: &Value, key: &str| item.get(key).and_then(Value::as_i64).and_then(|n| i32::try_from(n).ok());
    let list = |answer: &Value| answer.as_array().cloned().unwrap_or_default();
    let vcpu =
        |item: &Value| Some((u32::try_from(number(item, "cpu-index")?).ok()?, number(item, "thread-id")?));
    let iothread = |item: &Value| {
        let id = item.get("id")?.as_str()?.strip_prefix("iothread")?.parse().ok()?;
        Some((id, number(item, "thread-id")?))
    };
    Ok(Threads {
        vcpus: list(&vcpus).iter().filter_map(vcpu).collect(),
        iothreads: list(&iothreads).iter().filter_map(iothread).collect(),
    })
}
