//! Programs that serve devices of the guest beside QEMU: found, started before it, watched while the guest runs,
//! ended after it. What is particular to a program is in its own file.

mod check;
mod nbdkit;
mod passt;
mod reservations;
mod swtpm;
mod virtiofsd;

use std::cell::RefCell;
use std::fs;
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
use tokio::time::{sleep, timeout};
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
/// How long it may take to end once it is asked to, in milliseconds.
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
    process: ProcessId,
    ending: Ending,
    last_words: Vec<String>,
}

/// What brings the ends of helpers to the main loop.
pub(super) type Deaths = mpsc::UnboundedReceiver<Death>;

/// All helpers of a guest. Dropped, they are ended.
pub(super) struct Helpers {
    lib_dir: PathBuf,
    user: Option<User>,
    uuid: Uuid,
    serving: RefCell<Vec<Serving>>,
    deaths: mpsc::UnboundedSender<Death>,
}

impl Helpers {
    /// None yet.
    fn new(lib_dir: &Path, user: Option<&User>, uuid: Uuid) -> (Rc<Self>, Deaths) {
        let (sender, deaths) = mpsc::unbounded_channel();
        let (lib_dir, user) = (lib_dir.to_owned(), user.cloned());
        (Rc::new(Self { lib_dir, user, uuid, serving: RefCell::default(), deaths: sender }), deaths)
    }

    /// Those of a guest that is being started.
    pub(super) async fn start(
        wanted: &[Helper],
        place: &Place<'_>,
    ) -> Result<(Rc<Self>, Deaths), SupervisorError> {
        let (helpers, deaths) = Self::new(place.lib_dir, place.user, place.uuid);
        helpers.start_all(wanted, place).await?;
        Ok((helpers, deaths))
    }

    /// Starts more of them while the guest runs: all, or none. `secrets` are the values of theirs.
    pub(super) async fn add<'a>(
        &'a self,
        wanted: &[Helper],
        secrets: &'a dyn Fn(&SecretRef) -> Option<&'a SecretValue>,
    ) -> Result<(), SupervisorError> {
        let (lib_dir, user) = (self.lib_dir.as_path(), self.user.as_ref());
        let started = self.start_all(wanted, &Place { lib_dir, user, uuid: self.uuid, secrets }).await;
        if started.is_err() {
            self.end(&wanted.iter().map(|helper| helper.device.clone()).collect::<Vec<_>>()).await;
        }
        started
    }

    /// Starts them, and waits until each is ready.
    async fn start_all(&self, wanted: &[Helper], place: &Place<'_>) -> Result<(), SupervisorError> {
        for helper in wanted {
            if let Service::Tpm(tpm) = &helper.service {
                swtpm::manufacture(tpm, place).await?;
            }
            let serving = Serving::spawn(helper.clone(), place)?;
            let process = serving.process.clone();
            // Ended from here on, whatever happens.
            self.serving.borrow_mut().push(serving);
            if let Some(process) = process {
                ready(helper, &process, place).await?;
            }
        }
        let is_new = |serving: &&Serving| wanted.contains(&serving.helper);
        self.serving.borrow().iter().filter(is_new).for_each(|serving| self.watch(serving));
        Ok(())
    }

    /// Ends those of these devices, which need them no more; what they said at last.
    pub(super) async fn end(&self, devices: &[String]) -> Vec<String> {
        let is_meant = |serving: &Serving| devices.contains(&serving.helper.device);
        let processes = self.processes(is_meant);
        processes.iter().for_each(|(_, process)| process.ask_to_end());
        let deadline = Duration::from_millis(END_DEADLINE_MS.into());
        for (_, process) in &processes {
            if timeout(deadline, process.ended()).await.is_err() {
                process.end_within(0);
            }
        }
        for serving in self.serving.borrow_mut().extract_if(.., |serving| is_meant(serving)) {
            // Not all of them remove it themselves.
            if let Err(e) = remove_socket(&serving.helper.socket) {
                tracing::warn!("{e}");
            }
        }
        last_words(&processes).await
    }

    /// The processes of some, with what they are called.
    fn processes(&self, is_meant: impl Fn(&Serving) -> bool) -> Vec<(&'static str, Rc<Process>)> {
        let named = |s: &Serving| Some((program_of(&s.helper.service).name(), s.process.clone()?));
        self.serving.borrow().iter().filter(|serving| is_meant(serving)).filter_map(named).collect()
    }

    /// Those that an earlier supervisor started. `wanted` is what the guest's XML asks for.
    pub(super) fn take_back(
        wanted: Vec<Helper>,
        left: &[HelperState],
        lib_dir: &Path,
        user: Option<&User>,
        uuid: Uuid,
    ) -> Result<(Rc<Self>, Deaths), SupervisorError> {
        let (helpers, deaths) = Self::new(lib_dir, user, uuid);
        for helper in wanted {
            let state = left.iter().find(|state| state.device == helper.device);
            let name = program_of(&helper.service).name();
            let process = state.map(|state| Process::find(name, state.process)).transpose()?.flatten();
            let process = process.inspect(Process::own).map(Rc::new);
            let gone = process.is_none();
            let serving = Serving { helper, process, started: Instant::now(), ended: None };
            helpers.watch(&serving);
            let index = helpers.serving.borrow().len();
            helpers.serving.borrow_mut().push(serving);
            if gone {
                helpers.lost(index, Ending::Unknown, &[], true);
            }
        }
        Ok((helpers, deaths))
    }

    fn watch(&self, serving: &Serving) {
        let Some(process) = serving.process.clone() else { return };
        let deaths = self.deaths.clone();
        tokio::task::spawn_local(async move {
            let ending = process.ended().await;
            let last_words = process.last_words().await;
            sleep(GRACE).await;
            // Without a main loop the guest has ended.
            let _ = deaths.send(Death { process: process.id(), ending, last_words });
        });
    }

    /// Says what the end of a helper means, and starts it again where that helps. One that was [ended](Self::end) is none
    /// of the guest's any more.
    pub(super) fn died(&self, death: &Death) {
        let is_it = |serving: &Serving| serving.process.as_ref().is_some_and(|p| p.id() == death.process);
        let found = self.serving.borrow().iter().position(is_it);
        let Some(index) = found else { return };
        let lived = self.serving.borrow()[index].started.elapsed() >= WORTH_RESTARTING;
        self.lost(index, death.ending, &death.last_words, lived);
    }

    fn lost(&self, index: usize, ending: Ending, last_words: &[String], lived: bool) {
        let helper = match self.serving.borrow_mut().get_mut(index) {
            Some(serving) => {
                serving.ended = Some(ending);
                serving.helper.clone()
            }
            None => return,
        };
        let program = program_of(&helper.service);
        let again = program.can_restart() && lived;
        let outcome = match again {
            true => "it is started again".to_owned(),
            false => format!("the guest {}", program.without()),
        };
        let (name, gives) = (program.name(), program.gives());
        tracing::warn!("{name}, which gave the guest {gives}, {ending}: {outcome}{}", said(last_words));
        if again && let Err(e) = self.start_again(index, helper) {
            tracing::error!("{e}");
        }
    }

    fn start_again(&self, index: usize, helper: Helper) -> Result<(), SupervisorError> {
        remove_socket(&helper.socket)?;
        let place = Place {
            lib_dir: &self.lib_dir,
            user: self.user.as_ref(),
            uuid: self.uuid,
            // None of those that can be started again takes one.
            secrets: &|_| None,
        };
        let serving = Serving::spawn(helper, &place)?;
        self.watch(&serving);
        if let Some(old) = self.serving.borrow_mut().get_mut(index) {
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
        self.serving.borrow().iter().filter_map(state).collect()
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
        self.serving.borrow().iter().map(status).collect()
    }

    /// What they said, for a QEMU that did not start: the reason is often there.
    pub(super) async fn last_words(&self) -> Vec<String> {
        last_words(&self.processes(|_| true)).await
    }

    /// Ends them all, once their guest is gone. Holds up everything else meanwhile.
    pub(super) fn end_all(&self) {
        let processes = self.processes(|_| true);
        self.serving.take();
        processes.iter().for_each(|(_, process)| process.ask_to_end());
        processes.iter().for_each(|(_, process)| process.end_within(END_DEADLINE_MS));
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        self.end_all();
    }
}

/// What these said at last.
async fn last_words(processes: &[(&'static str, Rc<Process>)]) -> Vec<String> {
    let mut said = Vec::new();
    for (name, process) in processes {
        let words = process.last_words().await;
        // Those that name themselves say it once.
        let prefix = format!("{name}: ");
        said.extend(words.iter().map(|w| format!("{prefix}{}", w.strip_prefix(&prefix).unwrap_or(w))));
    }
    said
}

fn remove_socket(path: &Path) -> Result<(), SupervisorError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(SupervisorError::io(path, "removed")(e)),
        _ => Ok(()),
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
        // Debian 12's asks for it (1.32.5), whatever its options are.
        ends_with_parent: name == nbdkit::NBDKIT,
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
        // A child that another test is starting has it for a moment.
        for _ in 0..3000 {
            if !listens(&path) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("it listens still");
    }

    #[test]
    fn programs_are_found_on_the_path() {
        assert!(find("sh").is_some_and(|path| path.is_absolute()));
        assert_eq!(find("vmward-no-such-program"), None);
    }
}
