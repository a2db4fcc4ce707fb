//! What the service manager is told (sd_notify(3)), if there is one. Outside of a service all of this does nothing.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use sd_notify::NotifyState;

/// What the master key is called in the service manager's descriptor store.
const MASTER_KEY: &str = "master-key";

/// Whether this process is what the service manager started, and not one that some service started (`SYSTEMD_EXEC_PID` in
/// systemd.exec(5)).
pub(super) fn started_this() -> bool {
    std::env::var("SYSTEMD_EXEC_PID").is_ok_and(|pid| pid == std::process::id().to_string())
}

/// Says what happens, for `systemctl status`.
pub(super) fn status(text: &str) {
    tell(&[NotifyState::Status(text)]);
}

/// The guest runs.
pub(super) fn ready(text: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(text)]);
}

/// Something is read anew; [`ready`] says when that is done.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now, NotifyState::Status("reads its certificates anew")]),
        Err(e) => tracing::debug!("the service manager was not told: {e}"),
    }
}

/// The end has begun, and may take so long.
pub(super) fn stopping(text: &str, within: Duration) {
    tell(&[NotifyState::Stopping, NotifyState::Status(text)]);
    // Of its own: it counts in the state that the first brings about.
    more_time(within);
}

/// What is being done may take so long from now on, whatever the unit's limits are.
pub(super) fn more_time(within: Duration) {
    tell(&[NotifyState::Custom(&format!("EXTEND_TIMEOUT_USEC={}", within.as_micros()))]);
}

/// How often it wants to hear [`alive`], if it does.
pub(super) fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|every| !every.is_zero())
}

/// All is well.
pub(super) fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// Has the master key kept for the next supervisor. A unit that has no `FileDescriptorStoreMax=` keeps none.
pub(super) fn keep_key(key: BorrowedFd<'_>) {
    let kept = sd_notify::notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(MASTER_KEY)], &[key]);
    if let Err(e) = kept {
        tracing::warn!("the service manager does not keep the master key for another supervisor: {e}");
    }
}

/// The master key is kept no longer.
pub(super) fn forget_key() {
    tell(&[NotifyState::FdStoreRemove, NotifyState::FdName(MASTER_KEY)]);
}

/// The master key that an earlier supervisor had kept. To be asked before inherited descriptors are closed.
pub(super) fn kept_key() -> io::Result<Option<File>> {
    let kept = sd_notify::listen_fds_with_names()?.find(|(_, name)| name == MASTER_KEY);
    // Opened by its number, it is a descriptor of this process's own.
    kept.map(|(fd, _)| OpenOptions::new().read(true).write(true).open(format!("/proc/self/fd/{fd}")))
        .transpose()
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(state) {
        tracing::debug!("the service manager was not told: {e}");
    }
}
