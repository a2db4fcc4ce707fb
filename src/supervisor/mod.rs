//! One running domain: launch, lib dir, monitor events, hotplug, shutdown and wipe, recovery, control socket.

mod checkpoint;
mod confinement;
pub mod control;
mod descriptors;
mod error;
mod footprint;
mod helpers;
pub mod hotplug;
mod images;
mod key;
mod launch;
mod lend;
mod lib_dir;
pub mod live_xml;
mod machined;
mod manager;
mod network;
mod opened;
pub mod operate;
mod pinning;
mod prepare;
mod process;
mod recovery;
pub mod rekey;
mod running;
mod server_header;
mod signals;
pub mod snapshot;
mod state;
mod supervise;
mod unlock;
mod user;
mod vcpus;
mod watchdog;

pub use checkpoint::{Checkpoint, STOP_AT};
pub use confinement::{Confinement, ConfinementError, Outside, Places, landlock_abi};
pub use descriptors::check_devices;
pub use error::SupervisorError;
pub use helpers::{HelperFailure, HelperStatus, check_helpers};
pub use images::{check_images, warn_of_large_images, warn_of_slow_images};
use key::KeyInMemory;
pub use key::KeyPlace;
pub use launch::{Launch, Started};
pub use lib_dir::{LibDir, MONITOR_SOCKET};
pub use network::{NetworkError, check_taps};
pub use opened::{FdSet, ImageError, OpenImage};
pub use process::{Ending, ProcessId};
pub use recovery::{Clearance, Cleared, LeftOver, left_over, orphans, read_state, wipe_left_overs};
pub use running::{Change, Configuration, Order, Running};
pub use server_header::ReadError;
pub use signals::StopSignal;
pub use supervise::Outcome;
pub use unlock::Unlock;
pub use user::{DEFAULT_USER, User};

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::close;

use crate::keystore::Keystores;
use crate::qemu::Capabilities;

use signals::Signals;

/// What a supervisor's work comes to.
#[derive(Debug)]
pub enum Ended {
    /// The guest ran.
    Ran(Outcome),
    /// A signal came before it did.
    Interrupted(StopSignal),
}

/// Keeps what this process knows to itself.
pub fn harden() -> Result<(), SupervisorError> {
    let harden = || {
        // QEMU inherits both.
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
        umask(Mode::from_bits_truncate(0o077));
        set_dumpable(false)
    };
    harden().map_err(SupervisorError::Harden)
}

/// Closes what is no standard stream: left open by whoever started this process, and not for QEMU to inherit. Comes
/// before anything is opened. Returns the master key that the service manager has kept for this guest.
pub fn close_inherited() -> Result<Option<File>, SupervisorError> {
    let kept = manager::kept_key().unwrap_or_else(|e| {
        eprintln!("warning: what the service manager has kept cannot be used: {e}");
        None
    });
    let keep = kept.as_ref().map(AsRawFd::as_raw_fd);
    let numbers: Vec<i32> = fs::read_dir("/proc/self/fd")
        .map_err(|e| SupervisorError::Harden(Errno::from_raw(e.raw_os_error().unwrap_or(0))))?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 2 && Some(*number) != keep)
        .collect();
    for number in numbers {
        // The directory that was just read is among them, and closed already.
        let _ = close(number);
    }
    Ok(kept)
}

/// Starts a domain and stays with it until its end. `kept_key`: what an earlier supervisor had kept, whose guest is
/// gone.
pub async fn run(
    launch: Launch,
    kept_key: Option<File>,
    stop_timeout: Duration,
) -> Result<Ended, SupervisorError> {
    let mut signals = Signals::catch()?;
    drop(kept_key.map(KeyInMemory::stale));
    let started = tokio::select! {
        started = launch::launch(launch) => started?,
        signal = signals.stop() => return Ok(Ended::Interrupted(signal)),
    };
    tracing::info!(
        "the guest '{}' runs (QEMU is process {})",
        started.running.name(),
        started.running.qemu_pid
    );
    let ended = supervise::supervise(started, signals, stop_timeout, None).await;
    Checkpoint::Ended.passed();
    Ok(ended)
}

/// Takes a guest back and stays with it until its end.
pub async fn take_back(
    left_over: LeftOver,
    capabilities: Capabilities,
    keystores: Keystores,
    unlock: Unlock,
    kept_key: Option<File>,
    places: Option<&Places>,
    stop_timeout: Duration,
) -> Result<Ended, SupervisorError> {
    let signals = Signals::catch()?;
    let (started, over) = left_over.take_back(capabilities, keystores, unlock, kept_key, places).await?;
    tracing::info!(
        "the guest '{}' is taken back (QEMU is process {})",
        started.running.name(),
        started.running.qemu_pid
    );
    Ok(supervise::supervise(started, signals, stop_timeout, over).await)
}
