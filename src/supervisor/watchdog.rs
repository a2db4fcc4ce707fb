//! The service manager's watchdog, fed for as long as QEMU's monitor answers.

use std::cell::Cell;
use std::fs;
use std::future::pending;
use std::rc::Rc;
use std::time::Duration;

use qapi::qmp::query_status;
use tokio::time::sleep;

use super::{Running, footprint, manager};

/// Feeds it, if there is one. Nothing wakes up in between but this and what QEMU answers. An end that has begun has
/// deadlines of its own.
pub(super) async fn feed(running: Rc<Running>, ending: Rc<Cell<bool>>) {
    let Some(every) = manager::watchdog() else { return pending().await };
    // Before the unit's time is over there are two answers to be had.
    let (pause, patience) = (every / 2, every / 4);
    loop {
        sleep(pause).await;
        while !(ending.get() || is_well(&running, patience).await) {
            tracing::warn!("QEMU's monitor has not answered for {} s", patience.as_secs_f32());
        }
        manager::alive();
        // Not some time later: nothing else is to wake up the process.
        footprint::release_code();
    }
}

/// Whether QEMU answers, or has a reason not to: while it derives a LUKS key, or waits for remote storage, it answers
/// nobody. Commands that may take so long have a deadline of their own, and a process that somebody stopped does
/// nothing of the sort.
async fn is_well(running: &Running, patience: Duration) -> bool {
    match running.qmp.execute_within(query_status {}, patience).await {
        Ok(_) => true,
        Err(e) if e.is_disconnect() => pending().await,
        Err(_) => running.qmp.has_slow_command() && !is_stopped(running.qemu_pid),
    }
}

/// Whether a process is stopped by a signal or a debugger (`T`, `t` in proc(5)).
fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 't']))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sys::signal::{Signal, kill};
    use nix::sys::wait::{WaitPidFlag, waitpid};
    use nix::unistd::Pid;

    use super::*;

    #[test]
    fn a_stopped_process_is_seen() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        assert!(!is_stopped(child.id()));
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        kill(pid, Signal::SIGSTOP).unwrap();
        waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert!(is_stopped(child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_stopped(child.id()));
    }
}
