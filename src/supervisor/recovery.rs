//! Coming back to a guest whose supervisor was killed, or wiping what is left of it.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use nix::unistd::geteuid;
use qapi::qmp::{RunState, ShutdownCause, cont, query_status, query_uuid};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::domain::Domain;
use crate::keystore::Keystores;
use crate::qemu::{self, Capabilities, CommandLine, HELPER_SOCKET, Helper, MASTER_KEY_FILE};
use crate::qmp::Qmp;
use crate::xml::{self, Diagnostics};

use super::confinement::{Bounds, Guest, Places};
use super::control::Sockets;
use super::helpers::{Helpers, end_left_over};
use super::launch::{Lease, Started};
use super::lib_dir::{LibDir, MONITOR_SOCKET};
use super::prepare::Prepared;
use super::process::{Ending, Process, ProcessId, QEMU};
use super::running::Parts;
use super::server_header::stop_showing;
use super::state::{Phase, State, StateFile};
use super::{Configuration, Running, SupervisorError, Unlock, hotplug, key, live_xml, operate, snapshot};

/// How long the monitor of a guest that is to be taken back may take to answer.
const MONITOR_DEADLINE: Duration = Duration::from_secs(30);
/// How long QEMU may take to end when its monitor is gone.
const LEAVE_DEADLINE_MS: u16 = 1000;

/// A running guest without a supervisor. Dropped, it stays one.
pub struct LeftOver {
    lib_dir: LibDir,
    process: Process,
    state: State,
}

/// Looks for what an earlier supervisor of this domain left. A guest that runs is returned; everything else is
/// ended and wiped.
pub fn left_over(runtime_dir: &Path, name: &str) -> Result<Option<LeftOver>, SupervisorError> {
    if fs::symlink_metadata(runtime_dir.join(name)).is_err() {
        return Ok(None);
    }
    let lib_dir = LibDir::claim(runtime_dir, name)?;
    let state = StateFile::load(&lib_dir).unwrap_or_else(|e| {
        tracing::warn!("{e}");
        None
    });
    let state = match state {
        // Process numbers of another boot are those of others.
        Some(state) if state.boot != boot_id() => Some(State { helpers: Vec::new(), ..state }),
        Some(state) if state.phase == Phase::Running => match Process::find(QEMU, state.process)? {
            Some(process) if !is_ending(&process, state.process) => {
                return Ok(Some(LeftOver { lib_dir, process, state }));
            }
            _ => Some(state),
        },
        other => other,
    };
    // A start that was cut off: its QEMU has never run the guest.
    for id in processes_with(lib_dir.path(), MASTER_KEY_FILE)? {
        if let Some(process) = Process::find(QEMU, id)? {
            process.own();
        }
    }
    clean_up(&lib_dir, state.as_ref())?;
    tracing::warn!(
        "what an earlier vmward left in {} was wiped; its guest is gone",
        lib_dir.path().display()
    );
    Ok(None)
}

/// What [`wipe_left_overs`] found in one lib dir without a supervisor.
#[derive(Debug)]
pub struct Clearance {
    /// The lib dir.
    pub path: PathBuf,
    /// What became of it.
    pub result: Result<Cleared, SupervisorError>,
}

/// What became of a lib dir without a supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cleared {
    /// Its guest was gone: nothing of it is left.
    Wiped,
    /// Its guest runs: it waits for the next supervisor of its own, and is nobody else's.
    Runs {
        /// QEMU's process id.
        qemu: u32,
    },
}

/// Wipes what guests have left whose supervisor and QEMU are gone: keys, directories, helpers, half a start. The main
/// loop is to be there.
pub fn wipe_left_overs(runtime_dir: &Path) -> Vec<Clearance> {
    let entries = fs::read_dir(runtime_dir).into_iter().flatten().filter_map(Result::ok);
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()));
    let mut found = Vec::new();
    for name in dirs.filter_map(|entry| entry.file_name().into_string().ok()) {
        let path = runtime_dir.join(&name);
        // One that a supervisor holds is not even opened for longer than this.
        if File::open(&path).is_ok_and(|dir| dir.try_lock_shared().is_err()) {
            continue;
        }
        let result = match left_over(runtime_dir, &name) {
            Err(SupervisorError::AlreadyRunning { .. }) => continue,
            Err(e) => Err(e),
            Ok(None) => Ok(Cleared::Wiped),
            Ok(Some(left)) => Ok(Cleared::Runs { qemu: left.state.process.pid }),
        };
        found.push(Clearance { path, result });
    }
    found
}

/// Tells this boot of the host from all others.
pub(super) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Whether a process has ended but for what the kernel still takes apart, and then waits for that: the network devices
/// of a QEMU that was killed take a moment.
fn is_ending(process: &Process, id: ProcessId) -> bool {
    // Its memory is gone first, and its arguments with it.
    let arguments = fs::read(format!("/proc/{}/cmdline", id.pid));
    arguments.is_ok_and(|arguments| arguments.is_empty()) && process.is_gone_within(LEAVE_DEADLINE_MS)
}

/// The numbers of the QEMUs that run for the guest of a lib dir, whose supervisor is gone.
pub fn orphans(lib_dir: &Path) -> Vec<u32> {
    processes_with(lib_dir, MASTER_KEY_FILE).unwrap_or_default().iter().map(|id| id.pid).collect()
}

/// Leaves nothing of a guest whose QEMU is gone.
fn clean_up(lib_dir: &LibDir, state: Option<&State>) -> Result<(), SupervisorError> {
    let known = state.iter().flat_map(|state| &state.helpers).map(|helper| helper.process);
    end_left_over(known.chain(processes_with(lib_dir.path(), HELPER_SOCKET)?))?;
    drop(state.map(|state| Prepared::taken_over(state.made.clone())));
    if let Some(state) = state {
        state.remove_unfinished();
    }
    lib_dir.wipe()
}

/// The processes of this user, or of the lib dir's, that were started with a file of the lib dir whose name begins
/// so.
fn processes_with(lib_dir: &Path, name: &str) -> Result<Vec<ProcessId>, SupervisorError> {
    let file = lib_dir.join(name);
    let file = file.as_os_str().as_bytes();
    let users = [Some(geteuid().as_raw()), fs::metadata(lib_dir).ok().map(|m| m.uid())];
    let mut found = Vec::new();
    let processes = fs::read_dir("/proc").map_err(SupervisorError::io("/proc", "read"))?;
    for entry in processes.filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        // A process that ends meanwhile is none of those that are looked for.
        let Ok(id) = ProcessId::of(pid) else { continue };
        let Ok(arguments) = fs::read(entry.path().join("cmdline")) else { continue };
        let owned = entry.metadata().is_ok_and(|m| users.contains(&Some(m.uid())));
        if owned && pid != std::process::id() && arguments.windows(file.len()).any(|w| w == file) {
            found.push(id);
        }
    }
    Ok(found)
}

/// Ends what serves a disk that never came to be known, or that is gone, with the sockets of that. `wanted`: what the guest's
/// XML asks for.
fn end_strangers(lib_dir: &Path, wanted: &[Helper], qemu: u32) -> Result<(), SupervisorError> {
    // Some have processes of their own with the same arguments.
    let name = |helper: &Helper| helper.socket.file_name()?.to_str().map(str::to_owned);
    let names: Vec<_> = wanted.iter().filter_map(name).collect();
    let mut known = Vec::new();
    for name in &names {
        known.extend(processes_with(lib_dir, name)?);
    }
    let strangers = processes_with(lib_dir, HELPER_SOCKET)?;
    end_left_over(strangers.into_iter().filter(|id| id.pid != qemu && !known.contains(id)))?;
    for entry in fs::read_dir(lib_dir).into_iter().flatten().filter_map(Result::ok) {
        let is_left = |name: &str| name.starts_with(HELPER_SOCKET) && !names.iter().any(|n| n == name);
        if entry.file_name().to_str().is_some_and(is_left)
            && let Err(e) = fs::remove_file(entry.path())
        {
            tracing::warn!("{} stays until the guest ends: {e}", entry.path().display());
        }
    }
    Ok(())
}

impl LeftOver {
    /// Takes the guest back. If that cannot be, it goes on without a supervisor.
    pub(super) async fn take_back(
        self,
        capabilities: Capabilities,
        keystores: Keystores,
        unlock: Unlock,
        kept_key: Option<File>,
        places: Option<&Places>,
    ) -> Result<(Started, Option<ShutdownCause>), SupervisorError> {
        let Self { lib_dir, process, state } = self;
        let pid = state.process.pid;
        let (qmp, mut configuration, line, over) = match take_back(&lib_dir, &state, &capabilities).await {
            Ok(taken) => taken,
            // It has ended meanwhile.
            Err(_) if process.is_gone_within(LEAVE_DEADLINE_MS) => {
                clean_up(&lib_dir, Some(&state))?;
                let last_words = process.last_words().await;
                return Err(SupervisorError::Died { ending: Ending::Unknown, last_words });
            }
            Err(why) => return Err(SupervisorError::Stranded { pid, why }),
        };
        for set in configuration.disks.iter().flat_map(|disk| &disk.descriptors) {
            set.name_in(qmp.fd_sets());
        }
        let (master_key, key_in_memory) = key::take_back(&lib_dir, kept_key, &qmp).await?;
        let control = Sockets::listen(&lib_dir)?;
        let events = qmp.events();
        let started = UNIX_EPOCH + Duration::from_secs(state.started);
        let user = lib_dir.user();
        let guest = Guest {
            domain: &configuration.domain,
            line: &line,
            program: None,
            user: user.as_ref(),
            runtime_dir: lib_dir.path().parent().unwrap_or(lib_dir.path()),
        };
        let bounds = places.map(|places| Bounds::new(places, &guest));
        let (uuid, left) = (state.uuid, state.helpers.clone());
        let made = state.made.clone();
        let lib_dir = Rc::new(lib_dir);
        let state_file = StateFile::new(Rc::clone(&lib_dir), state);
        if !configuration.unfinished.is_empty() {
            // What the XML is now, and then that all is done: whoever comes next need not find out again.
            state_file.save_configuration(&configuration)?;
            snapshot::remove_unfinished(&configuration.unfinished, &configuration.xml);
            configuration.unfinished.clear();
            state_file.save_configuration(&configuration)?;
        }
        if let Some(bounds) = bounds {
            // QEMU is held already to what it was started with.
            bounds.enforce().await.map_err(SupervisorError::Confinement)?;
        }
        // Up to here the guest has gone on without whoever could not take it back; from here on it ends with this process's
        // part of it.
        process.own();
        let lease = Lease(Rc::clone(&lib_dir));
        let prepared = Prepared::taken_over(made);
        end_strangers(lib_dir.path(), &line.helpers, pid)?;
        let (helpers, deaths) = Helpers::take_back(line.helpers, &left, lib_dir.path(), user.as_ref(), uuid)?;
        let (sender, orders) = mpsc::unbounded_channel();
        let running = Rc::new(Running::new(Parts {
            qmp,
            capabilities,
            master_key,
            keystores: Arc::new(keystores),
            unlock,
            qemu_pid: pid,
            started,
            configuration,
            helpers: Rc::clone(&helpers),
            state_file,
            orders: sender,
        }));
        running.save_helpers();
        let started = Started {
            running,
            events,
            orders,
            process,
            helpers,
            deaths,
            control,
            lease,
            key_in_memory,
            prepared,
        };
        Ok((started, over))
    }
}

/// The monitor, the configuration and the command line of a guest, once it has shown that it is the one; with the reason
/// if it has ended and only waits to be told so.
async fn take_back(
    lib_dir: &LibDir,
    state: &State,
    capabilities: &Capabilities,
) -> Result<(Qmp, Configuration, CommandLine, Option<ShutdownCause>), String> {
    let say = |e: crate::qmp::QmpError| e.to_string();
    let (mut configuration, line) =
        configuration(state, capabilities).ok_or("its saved XML is not understood")?;
    let qmp = Qmp::connect(&lib_dir.path().join(MONITOR_SOCKET), MONITOR_DEADLINE).await.map_err(say)?;
    let uuid = qmp.execute(query_uuid {}).await.map_err(say)?.UUID;
    if Uuid::try_parse(&uuid) != Ok(state.uuid) {
        return Err(format!("it has the UUID {uuid} instead of {}", state.uuid));
    }
    snapshot::complete(&qmp, &mut configuration).await.map_err(say)?;
    stop_showing(&qmp, lib_dir.path()).await.map_err(say)?;
    hotplug::tidy(&qmp, &mut configuration).await.map_err(say)?;
    if let Err(e) = operate::reopen_display(&qmp, &configuration.domain, capabilities).await {
        tracing::warn!("VNC does not listen any more; `vmward reload-tls` tries it again: {e}");
    }
    let over = match qmp.execute(query_status {}).await.map_err(say)?.status {
        RunState::shutdown => Some(ShutdownCause::guest_shutdown),
        RunState::guest_panicked => Some(ShutdownCause::guest_panic),
        // Its supervisor was killed just before it let the guest run.
        RunState::prelaunch => {
            qmp.execute(cont {}).await.map_err(say)?;
            None
        }
        _ => None,
    };
    Ok((qmp, configuration, line, over))
}

/// Whether what an earlier supervisor saved is understood, as far as its QEMU need not be asked.
pub fn read_state(saved: &[u8], capabilities: &Capabilities) -> bool {
    serde_json::from_slice(saved).is_ok_and(|state| configuration(&state, capabilities).is_some())
}

/// What the guest's XML says, and what QEMU would be told of it.
fn configuration(state: &State, capabilities: &Capabilities) -> Option<(Configuration, CommandLine)> {
    // What the XML's author was told at the start need not be said again.
    let mut said = Diagnostics::new();
    let mut xml = xml::parse(&state.xml, &mut said)?;
    let mut domain = Domain::from_xml(&live_xml::without_redacted(&xml), &mut said)?;
    let mut line = qemu::build(&mut domain, capabilities, &mut said)?;
    domain.general.uuid = state.uuid;
    // A disk that was plugged in has the alias that it got then, and its helpers theirs, whatever they would get at a start.
    let devices = live_xml::devices(&mut xml)?;
    for disk in &mut domain.devices.disks {
        let parts = state.disks.iter().find(|parts| parts.target == disk.target);
        let own = line.helpers.iter_mut().filter(|h| disk.chain().any(|image| image.span == h.span));
        for (helper, device) in own.filter(|h| h.is_of_one_disk()).zip(parts.iter().flat_map(|p| &p.helpers))
        {
            helper.socket = capabilities.host.helper_socket(&domain.general.name, device);
            helper.device.clone_from(device);
        }
        let element = devices.children.iter().find(|e| e.span == disk.info.span);
        let alias = element.and_then(|e| e.child("alias")?.get("name"));
        disk.info.alias = alias.map(str::to_owned).or(disk.info.alias.take());
    }
    let configuration = Configuration {
        domain,
        xml,
        nodes: state.nodes.clone(),
        disks: state.disks.clone(),
        unfinished: state.unfinished.clone(),
    };
    Some((configuration, line))
}
