//! Programs that serve devices of the guest beside QEMU: found, started before it, watched while the guest runs,
//! ended after it. What is particular to a program is in its own file.

mod check;
mod nbdkit;
mod passt;
mod reservations;
mod swtpm;
mod virtiofsd;

use std::fs;
use std::future::pending;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use command_fds::FdMapping;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::sleep;
use uuid::Uuid;

use crate::qemu::{Helper, Service};
use crate::qmp::FdSetPaths;
use crate::secret::{SecretRef, SecretValue};

use super::SupervisorError;
use super::error::said;
use super::process::{Ending, Process, ProcessId, Program};
use super::user::User;

pub use check::check_helpers;

/// How long a helper may take until it listens.
const READY_DEADLINE: Duration = Duration::from_secs(10);
/// How often is looked.
const READY_INTERVAL: Duration = Duration::from_millis(5);
/// How long it may take to end once it is asked to.
const END_DEADLINE_MS: u16 = 5000;
/// Helpers go when QEMU does: the end of one is an event only if QEMU has not ended so much later.
const GRACE: Duration = Duration::from_millis(500);
/// One that ends sooner than this after its start is not started again: it would end again.
const WORTH_RESTARTING: Duration = Duration::from_secs(5);
/// A pipe holds at least so much without a reader (pipe(7)).
const MAX_PIPED: usize = 4096;
/// The kernel's list of unix sockets (unix(7)).
const UNIX_SOCKETS: &str = "/proc/net/unix";
/// In its column of flags: the socket accepts connections.
const LISTENING: &[u8] = b" 00010000 ";

/// What is particular to a program.
trait HelperProgram {
    /// What it is called in messages.
    fn name(&self) -> &'static str;

    /// What the guest has of it.
    fn gives(&self) -> String;

    /// What the guest has left when it ends, in words that complete "the guest ...".
    fn without(&self) -> &'static str;

    /// Whether it runs as the supervisor's user, because it takes that one's rights.
    fn keeps_rights(&self) -> bool {
        false
    }

    /// Whether QEMU connects anew to one that is started again.
    fn can_restart(&self) -> bool {
        false
    }

    /// How it is started, listening on `socket`.
    fn invocation(&self, socket: &Path, place: &Place<'_>) -> Result<Invocation, SupervisorError>;
}

/// How a helper is started.
struct Invocation {
    program: PathBuf,
    arguments: Vec<String>,
    /// What it inherits.
    descriptors: Vec<FdMapping>,
}

/// Where, for whom and with what helpers are started.
pub(super) struct Place<'a> {
    /// The guest's private directory.
    pub(super) lib_dir: &'a Path,
    /// Who QEMU runs as, if not as the supervisor's user.
    pub(super) user: Option<&'a User>,
    /// The guest's UUID.
    pub(super) uuid: Uuid,
    /// The values of secrets.
    pub(super) secrets: &'a dyn Fn(&SecretRef) -> Option<&'a SecretValue>,
}

/// A helper, for a supervisor that comes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct HelperState {
    /// The alias of its device.
    device: String,
    pub(super) process: ProcessId,
}

/// How a helper is.
#[derive(Debug, Clone)]
pub struct HelperStatus {
    /// Its program.
    pub program: &'static str,
    /// The alias of the device that it serves.
    pub device: String,
    /// Its process, or how that has ended.
    pub process: Result<u32, String>,
}

/// A helper that the guest has, or had.
struct Serving {
    helper: Helper,
    /// `None`: it ended while no supervisor watched it.
    process: Option<Rc<Process>>,
    started: Instant,
    /// How it ended.
    ended: Option<Ending>,
}

/// The end of a helper whose guest goes on.
pub(super) struct Death {
    device: String,
    ending: Ending,
    last_words: Vec<String>,
}

/// All helpers of a guest. Dropped, they are ended.
pub(super) struct Helpers {
    lib_dir: PathBuf,
    user: Option<User>,
    uuid: Uuid,
    serving: Vec<Serving>,
    deaths: mpsc::UnboundedReceiver<Death>,
    sender: mpsc::UnboundedSender<Death>,
}

impl Helpers {
    /// None yet.
    fn new(lib_dir: &Path, user: Option<&User>, uuid: Uuid) -> Self {
        let (sender, deaths) = mpsc::unbounded_channel();
        Self { lib_dir: lib_dir.to_owned(), user: user.cloned(), uuid, serving: Vec::new(), deaths, sender }
    }

    /// Starts them, and waits until each is ready.
    pub(super) async fn start(wanted: &[Helper], place: &Place<'_>) -> Result<Self, SupervisorError> {
        let mut helpers = Self::new(place.lib_dir, place.user, place.uuid);
        for helper in wanted {
            if let Service::Tpm(tpm) = &helper.service {
                swtpm::manufacture(tpm, place).await?;
            }
            let serving = Serving::spawn(helper.clone(), place)?;
            let process = serving.process.clone();
            // Ended from here on, whatever happens.
            helpers.serving.push(serving);
            if let Some(process) = process {
                ready(helper, &process, place).await?;
            }
        }
        helpers.serving.iter().for_each(|serving| helpers.watch(serving));
        Ok(helpers)
    }

    /// Those that an earlier supervisor started. `wanted` is what the guest's XML asks for.
    pub(super) fn take_back(
        wanted: Vec<Helper>,
        left: &[HelperState],
        lib_dir: &Path,
        user: Option<&User>,
        uuid: Uuid,
    ) -> Result<Self, SupervisorError> {
        let mut helpers = Self::new(lib_dir, user, uuid);
        for helper in wanted {
            let state = left.iter().find(|state| state.device == helper.device);
            let name = program_of(&helper.service).name();
            let process = state.map(|state| Process::find(name, state.process)).transpose()?.flatten();
            let process = process.inspect(Process::own).map(Rc::new);
            let gone = process.is_none();
            let serving = Serving { helper, process, started: Instant::now(), ended: None };
            helpers.watch(&serving);
            helpers.serving.push(serving);
            if gone {
                helpers.lost(helpers.serving.len() - 1, Ending::Unknown, &[], true);
            }
        }
        Ok(helpers)
    }

    fn watch(&self, serving: &Serving) {
        let Some(process) = serving.process.clone() else { return };
        let sender = self.sender.clone();
        let device = serving.helper.device.clone();
        tokio::task::spawn_local(async move {
            let ending = process.ended().await;
            let last_words = process.last_words().await;
            sleep(GRACE).await;
            // Without a main loop the guest has ended.
            let _ = sender.send(Death { device, ending, last_words });
        });
    }

    /// Waits for one to end. Cancel-safe.
    pub(super) async fn death(&mut self) -> Death {
        match self.deaths.recv().await {
            Some(death) => death,
            // The sender is in here.
            None => pending().await,
        }
    }

    /// Says what the end of a helper means, and starts it again where that helps.
    pub(super) fn died(&mut self, death: &Death) {
        let Some(index) = self.serving.iter().position(|s| s.helper.device == death.device) else { return };
        let lived = self.serving[index].started.elapsed() >= WORTH_RESTARTING;
        self.lost(index, death.ending, &death.last_words, lived);
    }

    fn lost(&mut self, index: usize, ending: Ending, last_words: &[String], lived: bool) {
        let Some(serving) = self.serving.get_mut(index) else { return };
        serving.ended = Some(ending);
        let program = program_of(&serving.helper.service);
        let again = program.can_restart() && lived;
        let outcome = match again {
            true => "it is started again".to_owned(),
            false => format!("the guest {}", program.without()),
        };
        let (name, gives) = (program.name(), program.gives());
        tracing::warn!("{name}, which gave the guest {gives}, {ending}: {outcome}{}", said(last_words));
        if again && let Err(e) = self.start_again(index) {
            tracing::error!("{e}");
        }
    }

    fn start_again(&mut self, index: usize) -> Result<(), SupervisorError> {
        let Some(helper) = self.serving.get(index).map(|s| s.helper.clone()) else { return Ok(()) };
        match fs::remove_file(&helper.socket) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(SupervisorError::io(&helper.socket, "removed")(e));
            }
            _ => {}
        }
        let place = Place {
            lib_dir: &self.lib_dir,
            user: self.user.as_ref(),
            uuid: self.uuid,
            // None of those that can be started again takes one.
            secrets: &|_| None,
        };
        let serving = Serving::spawn(helper, &place)?;
        self.watch(&serving);
        if let Some(old) = self.serving.get_mut(index) {
            *old = serving;
        }
        Ok(())
    }

    /// What a supervisor that comes back has to know.
    pub(super) fn state(&self) -> Vec<HelperState> {
        let state = |s: &Serving| {
            let process = s.process.as_ref().filter(|_| s.ended.is_none())?.id();
            Some(HelperState { device: s.helper.device.clone(), process })
        };
        self.serving.iter().filter_map(state).collect()
    }

    /// How each is.
    pub(super) fn status(&self) -> Vec<HelperStatus> {
        let status = |s: &Serving| HelperStatus {
            program: program_of(&s.helper.service).name(),
            device: s.helper.device.clone(),
            process: match (&s.process, s.ended) {
                (Some(process), None) => Ok(process.id().pid),
                (_, ending) => Err(ending.unwrap_or(Ending::Unknown).to_string()),
            },
        };
        self.serving.iter().map(status).collect()
    }

    /// What they said, for a QEMU that did not start: the reason is often there.
    pub(super) async fn last_words(&self) -> Vec<String> {
        let mut all = Vec::new();
        for serving in &self.serving {
            let Some(process) = &serving.process else { continue };
            let name = program_of(&serving.helper.service).name();
            let words = process.last_words().await;
            // Those that name themselves say it once.
            let prefix = format!("{name}: ");
            all.extend(words.iter().map(|w| format!("{prefix}{}", w.strip_prefix(&prefix).unwrap_or(w))));
        }
        all
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        let processes = || self.serving.iter().filter_map(|serving| serving.process.as_ref());
        processes().for_each(|process| process.ask_to_end());
        processes().for_each(|process| process.end_within(END_DEADLINE_MS));
    }
}

/// Ends those that an earlier supervisor left when their guest is gone.
pub(super) fn end_left_over(processes: impl IntoIterator<Item = ProcessId>) -> Result<(), SupervisorError> {
    for id in processes {
        if let Some(process) = Process::find("a helper", id)? {
            process.own();
            process.end_within(END_DEADLINE_MS);
        }
    }
    Ok(())
}

impl Serving {
    fn spawn(helper: Helper, place: &Place<'_>) -> Result<Self, SupervisorError> {
        let program = program_of(&helper.service);
        let invocation = program.invocation(&helper.socket, place)?;
        let user = place.user.filter(|_| !program.keeps_rights());
        let process = spawn(program.name(), invocation, user, place.lib_dir)?;
        Ok(Self { helper, process: Some(Rc::new(process)), started: Instant::now(), ended: None })
    }
}

/// Waits until a helper listens.
async fn ready(helper: &Helper, process: &Process, place: &Place<'_>) -> Result<(), SupervisorError> {
    let program = program_of(&helper.service);
    let socket = &helper.socket;
    let listening = async {
        while !listens(socket) {
            sleep(READY_INTERVAL).await;
        }
    };
    let why = tokio::select! {
        () = listening => None,
        ending = process.ended() => Some(HelperFailure::Ended(ending)),
        () = sleep(READY_DEADLINE) => Some(HelperFailure::NotReady(READY_DEADLINE)),
    };
    if let Some(why) = why {
        return Err(failed(program.name(), program, why, process).await);
    }
    match place.user.filter(|_| program.keeps_rights()) {
        Some(user) => lchown(socket, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
            .map_err(SupervisorError::io(socket, "given to QEMU's user")),
        None => Ok(()),
    }
}

async fn failed(
    name: &'static str,
    program: &dyn HelperProgram,
    why: HelperFailure,
    process: &Process,
) -> SupervisorError {
    SupervisorError::Helper {
        program: name,
        gives: program.gives(),
        why,
        last_words: process.last_words().await,
    }
}

/// Why a helper did not start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HelperFailure {
    /// It ended.
    Ended(Ending),
    /// It does not listen after so long.
    NotReady(Duration),
}

impl std::fmt::Display for HelperFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ended(ending) => ending.fmt(f),
            Self::NotReady(after) => write!(f, "was not ready within {} s", after.as_secs()),
        }
    }
}

fn program_of(service: &Service) -> &dyn HelperProgram {
    match service {
        Service::Tpm(tpm) => tpm,
        Service::Directory(shared) => shared,
        Service::Network(passt) => passt,
        Service::Reservations(reservations) => reservations,
        Service::Ssh(file) => file,
    }
}

fn spawn(
    name: &'static str,
    invocation: Invocation,
    user: Option<&User>,
    lib_dir: &Path,
) -> Result<Process, SupervisorError> {
    Process::spawn(Program {
        name,
        path: &invocation.program,
        arguments: invocation.arguments,
        user,
        descriptors: invocation.descriptors,
        environment: &[],
        stdio: false,
        outlives_reader: false,
        lib_dir,
        fd_sets: FdSetPaths::default(),
        bounds: None,
    })
}

/// A pipe with the value of a secret in it, and nothing else ever. `what` it is is for messages.
fn piped(
    secret: &SecretRef,
    what: &'static str,
    child_fd: i32,
    place: &Place<'_>,
) -> Result<FdMapping, SupervisorError> {
    let value = (place.secrets)(secret)
        .ok_or_else(|| SupervisorError::NoSecret(format!("{what} ({})", secret.lookup)))?;
    if value.expose().len() > MAX_PIPED {
        return Err(SupervisorError::LongKey { what, max: MAX_PIPED });
    }
    let piped = || {
        let (reader, mut writer) = io::pipe()?;
        writer.write_all(value.expose())?;
        Ok(OwnedFd::from(reader))
    };
    let parent_fd = piped().map_err(SupervisorError::io("a pipe", "made"))?;
    Ok(FdMapping { parent_fd, child_fd })
}

/// Whether somebody listens on a socket. To connect would tell as well, but helpers take one connection.
fn listens(socket: &Path) -> bool {
    let sockets = fs::read(UNIX_SOCKETS).unwrap_or_default();
    let mut lines = sockets.split(|byte| *byte == b'\n');
    lines.any(|line| {
        line.strip_suffix(socket.as_os_str().as_bytes()).is_some_and(|start| {
            start.ends_with(b" ") && start.windows(LISTENING.len()).any(|flags| flags == LISTENING)
        })
    })
}

/// The program of that name on the supervisor's path, or in one of the directories where helpers are.
fn find(name: &str) -> Option<PathBuf> {
    /// Where distributions put programs that people do not call.
    const DIRECTORIES: &[&str] = &["/usr/libexec", "/usr/lib/qemu", "/usr/lib"];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(DIRECTORIES.iter().map(PathBuf::from));
    directories.filter(|dir| dir.is_absolute()).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// The same, for a start: it was looked for before.
fn found(name: &'static str) -> Result<PathBuf, SupervisorError> {
    find(name).ok_or(SupervisorError::NoHelper(name))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_socket_listens_while_somebody_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        assert!(!listens(&path));
        let listener = UnixListener::bind(&path).unwrap();
        assert!(listens(&path));
        assert!(!listens(&dir.path().join("sock")));
        drop(listener);
        assert!(!listens(&path));
    }

    #[test]
    fn programs_are_found_on_the_path() {
        assert!(find("sh").is_some_and(|path| path.is_absolute()));
        assert_eq!(find("vmward-no-such-program"), None);
    }
}
