//! QEMU's process and those of its helpers: started, watched through their pidfds, listened to, ended.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use rustix::process::{Pid, PidfdFlags, kill_process_group, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Interest};
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use crate::qmp::FdSetPaths;

use super::SupervisorError;
use super::confinement::QemuBounds;
use super::user::User;

/// What QEMU is called in messages.
pub(super) const QEMU: &str = "QEMU";
/// Lines of a process that are kept to be shown when it dies.
const LAST_WORDS: usize = 12;
/// The longest line that is kept.
const MAX_LINE: u64 = 1024;
/// How long a killed process may take to go: it may be held in the kernel by its storage.
const KILL_DEADLINE_MS: u16 = 10_000;
/// How long a process's last words may take once it is gone: a child of its own may hold its stderr.
const LAST_WORDS_DEADLINE: Duration = Duration::from_millis(500);
/// What starts a program as another user with that user's groups. Part of util-linux.
const SETPRIV: &str = "/usr/bin/setpriv";

/// A process and when it was started, which together are never another process's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it was started, in clock ticks since the host's boot (field 22 of `/proc/PID/stat`).
    pub start_ticks: u64,
}

impl ProcessId {
    /// The process that has this number now.
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The second field, the program's name, is in parentheses and may have any character in it.
        let start_ticks =
            stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse().ok());
        let start_ticks = start_ticks.ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { pid, start_ticks })
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With this exit code.
    Exited(i32),
    /// By this signal.
    Killed(i32),
    /// Somehow: only its parent, which is gone, would have been told.
    Unknown,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Exited(code) => write!(f, "ended with exit code {code}"),
            Self::Killed(number) => match Signal::try_from(number) {
                Ok(signal) => write!(f, "was killed by {signal}"),
                Err(_) => write!(f, "was killed by signal {number}"),
            },
            Self::Unknown => f.write_str("ended"),
        }
    }
}

impl From<ExitStatus> for Ending {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Exited(code),
            (None, Some(signal)) => Self::Killed(signal),
            (None, None) => Self::Unknown,
        }
    }
}

/// What starts a program that the end of a reader of its messages, or of its parent, does not end. Part of coreutils.
const ENV: &str = "/usr/bin/env";

/// How a program is started.
pub(super) struct Program<'a> {
    /// What it is called in messages.
    pub(super) name: &'static str,
    /// Where it is.
    pub(super) path: &'a Path,
    /// Its arguments.
    pub(super) arguments: Vec<String>,
    /// Who it runs as, if not as the supervisor's user.
    pub(super) user: Option<&'a User>,
    /// What it inherits besides its standard streams.
    pub(super) descriptors: Vec<FdMapping>,
    /// Variables of its environment beside the usual ones.
    pub(super) environment: &'a [(String, String)],
    /// Whether the guest has a device on the standard streams.
    pub(super) stdio: bool,
    /// Whether the program goes on by itself when nobody reads its messages any more.
    pub(super) outlives_reader: bool,
    /// Whether the program has the kernel send it a SIGTERM when its parent ends. It does not get it.
    pub(super) ends_with_parent: bool,
    /// Its home.
    pub(super) lib_dir: &'a Path,
    /// What its words name instead of sets of descriptors.
    pub(super) fd_sets: FdSetPaths,
    /// What it is held to beside what the supervisor is held to.
    pub(super) bounds: Option<&'a QemuBounds>,
}

/// A process. Dropped, it is killed, if it is this supervisor's.
pub(super) struct Process {
    name: &'static str,
    id: ProcessId,
    pidfd: AsyncFd<OwnedFd>,
    /// Whether it is gone, or not to be ended by this value.
    done: Cell<bool>,
    /// `None` for a process that another supervisor started.
    child: Option<RefCell<Child>>,
    stderr: RefCell<Option<JoinHandle<()>>>,
    last_words: Rc<RefCell<VecDeque<String>>>,
}

impl Process {
    /// Starts a program. It lives on if the supervisor is killed: its guest can be taken back.
    pub(super) fn spawn(program: Program<'_>) -> Result<Self, SupervisorError> {
        let failed = |source| SupervisorError::Spawn { program: program.path.to_owned(), source };
        let (stderr, said) = io::pipe().map_err(failed)?;
        let mut command = command(&program);
        command
            .args(&program.arguments)
            .env_clear()
            .envs([("LC_ALL", "C"), ("PATH", "/usr/local/bin:/usr/bin:/bin")])
            .env("HOME", program.lib_dir)
            .envs(program.environment.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stderr(said.try_clone().map_err(failed)?);
        if !program.stdio {
            // Ctrl-C on the terminal is for the supervisor, which then asks the guest. (With a device there, QEMU
            // must stay in the terminal's foreground to read from it.)
            command.stdin(Stdio::null()).stdout(said).process_group(0);
        }
        let highest = program.descriptors.iter().map(|d| d.child_fd).max();
        command.fd_mappings(program.descriptors).map_err(|e| failed(io::Error::other(e)))?;
        // The pipe over which the child reports that it cannot be started must not be in the way of
        // a descriptor's number, or such a report would be lost.
        let _occupied = occupy_up_to(highest).map_err(failed)?;
        let mut child = spawn_within(program.bounds, &mut command).map_err(failed)?;
        drop(command);
        let pid = child.id();
        let watched = ProcessId::of(pid).and_then(|id| Ok((id, watch(pid)?, words_from(stderr.into())?)));
        match watched {
            Ok((id, pidfd, receiver)) => {
                let process = Self::new(program.name, id, pidfd, Some(child));
                process.listen(receiver, program.fd_sets);
                Ok(process)
            }
            Err(e) => {
                // Both fail only for a child that is gone already.
                let _ = child.kill();
                let _ = child.wait();
                Err(SupervisorError::Watch { program: program.name, source: e })
            }
        }
    }

    /// A process that another supervisor started; `None` if it is gone. It lives on when this is dropped, until it
    /// is [owned](Self::own).
    pub(super) fn find(name: &'static str, id: ProcessId) -> Result<Option<Self>, SupervisorError> {
        let pidfd = match watch(id.pid) {
            Ok(pidfd) => pidfd,
            Err(e) if e.raw_os_error() == Some(Errno::ESRCH as i32) => return Ok(None),
            Err(source) => return Err(SupervisorError::Watch { program: name, source }),
        };
        // With the pidfd open the number cannot pass to another process unnoticed.
        if ProcessId::of(id.pid).ok() != Some(id) {
            return Ok(None);
        }
        let process = Self::new(name, id, pidfd, None);
        process.done.set(true);
        // Dead, and only not yet collected by its new parent.
        if process.is_gone_within(0) {
            return Ok(None);
        }
        // The pipe that it talks into is still there, only its reader is gone.
        let stderr = fs::File::open(format!("/proc/{}/fd/2", id.pid));
        match stderr.and_then(|file| words_from(file.into())) {
            Ok(receiver) => process.listen(receiver, FdSetPaths::default()),
            Err(e) => tracing::debug!("what {name} says cannot be read: {e}"),
        }
        Ok(Some(process))
    }

    fn new(name: &'static str, id: ProcessId, pidfd: AsyncFd<OwnedFd>, child: Option<Child>) -> Self {
        Self {
            name,
            id,
            pidfd,
            done: Cell::new(false),
            child: child.map(RefCell::new),
            stderr: RefCell::default(),
            last_words: Rc::default(),
        }
    }

    /// Which process it is.
    pub(super) fn id(&self) -> ProcessId {
        self.id
    }

    /// Waits for its end. Cancel-safe.
    pub(super) async fn ended(&self) -> Ending {
        // An error of the reactor would be one of the pidfd's own: the process is asked either way.
        let _ = self.pidfd.ready(Interest::READABLE).await;
        self.collect()
    }

    fn collect(&self) -> Ending {
        self.done.set(true);
        match &self.child {
            None => Ending::Unknown,
            Some(child) => child.borrow_mut().wait().map_or(Ending::Unknown, Ending::from),
        }
    }

    /// The last lines of what it said, once it has ended.
    pub(super) async fn last_words(&self) -> Vec<String> {
        let reader = self.stderr.borrow_mut().take();
        if let Some(reader) = reader {
            let _ = tokio::time::timeout(LAST_WORDS_DEADLINE, reader).await;
        }
        self.last_words.borrow().iter().cloned().collect()
    }

    /// Kills it.
    pub(super) fn kill(&self) {
        if let Err(e) = pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL) {
            tracing::debug!("{} is not killed: {e}", self.name);
        }
    }

    /// Asks it to end.
    pub(super) fn ask_to_end(&self) {
        if !self.done.get()
            && let Err(e) = pidfd_send_signal(&self.pidfd, self.ending_signal())
        {
            tracing::debug!("{} is not asked to end: {e}", self.name);
        }
    }

    /// What it can be asked with: one that is not to end with its parent has SIGTERM blocked (proc_pid_status(5)).
    fn ending_signal(&self) -> rustix::process::Signal {
        const TERM: u64 = 1 << (Signal::SIGTERM as u32 - 1);
        let status = fs::read_to_string(format!("/proc/{}/status", self.id.pid)).unwrap_or_default();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
        match blocked.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()) {
            Some(mask) if mask & TERM != 0 => rustix::process::Signal::INT,
            _ => rustix::process::Signal::TERM,
        }
    }

    /// Ends it, in peace if that takes no longer than so many milliseconds, with all its children otherwise. Holds
    /// up everything else meanwhile.
    pub(super) fn end_within(&self, milliseconds: u16) {
        if self.done.get() {
            return;
        }
        self.ask_to_end();
        if !self.is_gone_within(milliseconds) {
            tracing::warn!("{} did not end within {milliseconds} ms: it is killed", self.name);
            // It is the first of its group, whose number is its own for as long as it is there.
            let group = i32::try_from(self.id.pid).ok().and_then(Pid::from_raw);
            if let Some(Err(e)) = group.map(|pid| kill_process_group(pid, rustix::process::Signal::KILL)) {
                tracing::debug!("the children of {} are not killed: {e}", self.name);
            }
        }
        self.collect_within(KILL_DEADLINE_MS);
    }

    fn collect_within(&self, milliseconds: u16) {
        if self.is_gone_within(milliseconds) {
            self.collect();
        } else {
            tracing::warn!("{} (process {}) does not go", self.name, self.id.pid);
        }
    }

    /// Whether it has ended, or does within so many milliseconds. Holds up everything else meanwhile.
    pub(super) fn is_gone_within(&self, milliseconds: u16) -> bool {
        let mut gone = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        poll(&mut gone, PollTimeout::from(milliseconds)).is_ok_and(|n| n > 0)
    }

    /// From now on it is killed when this is dropped.
    pub(super) fn own(&self) {
        self.done.set(false);
    }

    fn listen(&self, receiver: pipe::Receiver, fd_sets: FdSetPaths) {
        let last_words = Rc::clone(&self.last_words);
        let remember = remember(self.name, receiver, fd_sets, last_words);
        *self.stderr.borrow_mut() = Some(tokio::task::spawn_local(remember));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.done.get() {
            return;
        }
        self.kill();
        self.collect_within(KILL_DEADLINE_MS);
    }
}

/// The program, by way of what makes it what the supervisor itself is not.
fn command(program: &Program<'_>) -> Command {
    let mut words: Vec<OsString> = Vec::new();
    if let Some(user) = program.user {
        words.push(SETPRIV.into());
        words.extend([format!("--reuid={}", user.uid), format!("--regid={}", user.gid)].map(Into::into));
        words.extend(["--init-groups", "--no-new-privs", "--inh-caps=-all", "--"].map(Into::into));
    }
    let signals = [
        (!program.outlives_reader, "--ignore-signal=PIPE"),
        (program.ends_with_parent, "--block-signal=TERM"),
    ];
    let mut signals = signals.into_iter().filter(|(wanted, _)| *wanted).map(|(_, option)| option).peekable();
    if signals.peek().is_some() {
        words.extend([ENV].into_iter().chain(signals).chain(["--"]).map(OsString::from));
    }
    words.push(program.path.into());
    let mut command = Command::new(words.remove(0));
    command.args(words);
    command
}

/// Starts a program from a thread that is confined, and ends: what it gave up the program does not have.
fn spawn_within(bounds: Option<&QemuBounds>, command: &mut Command) -> io::Result<Child> {
    let Some(bounds) = bounds else { return command.spawn() };
    let confined = || bounds.enforce().and_then(|()| command.spawn());
    thread::scope(|scope| match scope.spawn(confined).join() {
        Ok(spawned) => spawned,
        Err(panic) => resume_unwind(panic),
    })
}

#[expect(
    deprecated,
    reason = "the constructors became unsafe for types whose descriptor may change; an OwnedFd's never does"
)]
fn watch(pid: u32) -> io::Result<AsyncFd<OwnedFd>> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    AsyncFd::with_interest(pidfd_open(pid, PidfdFlags::empty())?, Interest::READABLE)
}

fn words_from(stderr: OwnedFd) -> io::Result<pipe::Receiver> {
    pipe::Receiver::from_owned_fd(stderr)
}

/// Descriptors on everything up to that number which is not open yet.
fn occupy_up_to(highest: Option<i32>) -> io::Result<Vec<OwnedFd>> {
    use std::os::fd::AsRawFd;
    let mut occupied = Vec::new();
    if let Some(highest) = highest {
        let null = fs::File::open(PathBuf::from("/dev/null"))?;
        loop {
            let next = OwnedFd::from(null.try_clone()?);
            if next.as_raw_fd() > highest {
                break;
            }
            occupied.push(next);
        }
    }
    Ok(occupied)
}

/// Reads what a process says until it ends, and keeps the last of it.
async fn remember(
    name: &str,
    receiver: pipe::Receiver,
    fd_sets: FdSetPaths,
    last_words: Rc<RefCell<VecDeque<String>>>,
) {
    let mut reader = BufReader::with_capacity(1024, receiver);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        let text = fd_sets.put_into(without_timestamp(text.trim_end()));
        // It waits because it is told to.
        if text.is_empty() || text.contains(": info: QEMU waiting for connection on: ") {
            continue;
        }
        tracing::info!("{name} says: {text}");
        let mut words = last_words.borrow_mut();
        if words.len() == LAST_WORDS {
            words.pop_front();
        }
        words.push_back(text.into_owned());
    }
}

/// QEMU puts the time in front of its messages (`-msg timestamp=on`): `2026-11-22T21:00:00.123456Z `.
fn without_timestamp(line: &str) -> &str {
    match line.split_once("Z ") {
        Some((time, rest)) if time.len() == 26 && time.as_bytes()[10] == b'T' => rest,
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_lose_their_time() {
        assert_eq!(without_timestamp("2026-11-22T21:00:00.123456Z qemu: no"), "qemu: no");
        assert_eq!(without_timestamp("a Z b"), "a Z b");
    }

    #[test]
    fn a_process_is_known_by_its_start() {
        let me = ProcessId::of(std::process::id()).unwrap();
        assert_eq!(me, ProcessId::of(me.pid).unwrap());
        assert!(me.start_ticks > 0);
    }
}
