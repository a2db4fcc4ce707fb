//! A program that is run for what it prints: with nothing of this process's but what it is to have, and not beyond its
//! deadline.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use close_fds::set_fds_cloexec_threadsafe;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open};

use crate::keystore::file::disk;
use crate::keystore::{Failure, KeystoreError};
use crate::secret::{SecretValue, ValueError};

/// What every program gets of this process's environment, if it is there.
const USUAL_ENVIRONMENT: &[&str] = &["PATH", "HOME", "LANG"];
/// Where programs are found that the program runs, if nobody says.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The exit codes that mean something, as sysexits.h and vmward itself have them.
const NO_SUCH_SECRET: i32 = 66;
const TRY_AGAIN: i32 = 75;
const NO_PERMISSION: i32 = 77;
/// What is kept of what a program says on its stderr: the end of it,
const SAID_BYTES: usize = 4096;
/// and what is shown of that.
const SAID_LINES: usize = 3;
const SAID_CHARS: usize = 300;
/// How long a killed program may take to go: it may be held in the kernel by a file system.
const KILL_DEADLINE: Duration = Duration::from_secs(1);

/// How a program is run.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// Where it is.
    pub(super) path: PathBuf,
    /// Its first arguments.
    pub(super) arguments: Vec<String>,
    /// What else it gets of the environment.
    pub(super) environment: Vec<String>,
    /// Whether a newline at the end of what it prints is not part of the value.
    pub(super) strip_newline: bool,
}

/// Why there is no value.
#[derive(Debug)]
pub(super) enum RunError {
    /// The program is not to be used.
    Program(KeystoreError),
    /// It does not do what it should, and what it or the system said about it.
    Failed(Failure, Option<String>),
}

impl Program {
    /// Runs it for a value; `None` if it says that there is none.
    pub(super) fn run(&self, more: &[&str], timeout: Duration) -> Result<Option<SecretValue>, RunError> {
        let cannot = |e| RunError::Program(KeystoreError::io(&self.path, "run")(e));
        self.check().map_err(RunError::Program)?;
        let mut running = self.start(more, timeout).map_err(cannot)?;
        let value = SecretValue::read_from(&mut running);
        let ended = match &value {
            Ok(_) => running.wait(),
            Err(_) => Ok(None),
        };
        let failed = |failure| Err(RunError::Failed(failure, None));
        let (mut value, status) = match (value, ended) {
            (Ok(value), Ok(Some(status))) => (value, status),
            (Err(ValueError::Read(e)), _) | (_, Err(e)) if e.kind() == io::ErrorKind::TimedOut => {
                return failed(Failure::TimedOut(timeout));
            }
            (Err(ValueError::Read(e)), _) | (_, Err(e)) => return Err(cannot(e)),
            (Err(e @ ValueError::TooLong), _) => return failed(Failure::BadAnswer(e.to_string())),
            (Err(e), _) => return failed(Failure::Other(e.to_string())),
            (Ok(_), Ok(None)) => return failed(Failure::TimedOut(timeout)),
        };
        if !status.success() {
            return judge(status, running.said(&value));
        }
        if self.strip_newline && value.expose().ends_with(b"\n") {
            value.truncate(value.len() - 1);
        }
        Ok(Some(value))
    }

    /// Refuses a program that somebody else could have put there or changed.
    pub(super) fn check(&self) -> Result<(), KeystoreError> {
        let unsafe_because =
            |why: &str| KeystoreError::Unsafe { path: self.path.clone(), why: why.to_owned() };
        // Only to look at it: who may run a program need not be able to read it.
        let file = File::options()
            .read(true)
            .custom_flags(OFlag::O_PATH.bits())
            .open(&self.path)
            .map_err(KeystoreError::io(&self.path, "run"))?;
        disk::check_owner(&self.path, &file)?;
        let metadata = file.metadata().map_err(KeystoreError::io(&self.path, "run"))?;
        match metadata.is_file() && metadata.mode() & 0o111 != 0 {
            true => Ok(()),
            false => Err(unsafe_because("it is not a program")),
        }
    }

    fn start(&self, more: &[&str], timeout: Duration) -> io::Result<Running> {
        let deadline = Instant::now() + timeout;
        // Inherited: a program that crashes must not leave the value in a core dump.
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
        // What this process opens itself is closed anyway; what it was started with need not be.
        set_fds_cloexec_threadsafe(3, &[]);
        let mut child = Command::new(&self.path)
            .args(&self.arguments)
            .args(more)
            .env_clear()
            .envs(self.environment())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let pidfd = i32::try_from(child.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .ok_or(io::ErrorKind::InvalidInput.into())
            .and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?));
        match pidfd {
            Ok(pidfd) => Ok(Running { child, pidfd, stdout, stderr, said: Vec::new(), deadline }),
            Err(e) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(e)
            }
        }
    }

    fn environment(&self) -> Vec<(&str, OsString)> {
        let names = USUAL_ENVIRONMENT.iter().copied().chain(self.environment.iter().map(String::as_str));
        let mut variables: Vec<_> = names.filter_map(|name| Some((name, env::var_os(name)?))).collect();
        if !variables.iter().any(|(name, _)| *name == "PATH") {
            variables.push(("PATH", DEFAULT_PATH.into()));
        }
        variables
    }
}

/// What the exit code of a program means that has not done what it was run for.
fn judge(status: ExitStatus, said: Option<String>) -> Result<Option<SecretValue>, RunError> {
    let failure = match (status.code(), said) {
        (Some(NO_SUCH_SECRET), _) => return Ok(None),
        (Some(TRY_AGAIN), said) => {
            Failure::NotReady(said.unwrap_or_else(|| format!("it ended with exit code {TRY_AGAIN}")))
        }
        (Some(NO_PERMISSION), said) => return Err(RunError::Failed(Failure::Denied, said)),
        (code, said) => {
            let how = match (code, status.signal().map(Signal::try_from)) {
                (Some(code), _) => format!("it ended with exit code {code}"),
                (None, Some(Ok(signal))) => format!("it was killed by {signal}"),
                (None, _) => "it was killed".to_owned(),
            };
            return Err(RunError::Failed(Failure::Other(how), said));
        }
    };
    Err(RunError::Failed(failure, None))
}

/// A program that runs. Dropped, its whole process group is killed.
struct Running {
    child: Child,
    pidfd: OwnedFd,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    said: Vec<u8>,
    deadline: Instant,
}

/// What a program has done.
enum Event {
    /// It has printed something, or closed its stdout.
    Output,
    /// It is gone, and all that it has said was read.
    Ended,
}

/// What it prints. It ends with the program: what that may have left running does not keep its stdout open.
impl Read for Running {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match (self.next()?, &mut self.stdout) {
            (Event::Output, Some(stdout)) => {
                let n = stdout.read(buffer)?;
                if n == 0 {
                    self.stdout = None;
                }
                Ok(n)
            }
            _ => Ok(0),
        }
    }
}

impl Running {
    /// Waits for what it does next.
    fn next(&mut self) -> io::Result<Event> {
        loop {
            let [ended, output, words] = self.poll()?;
            if words {
                self.listen();
            } else if output {
                return Ok(Event::Output);
            } else if ended {
                return Ok(Event::Ended);
            }
        }
    }

    /// Which of these there is: its end, output, words on stderr. One at least, or the deadline has passed.
    fn poll(&self) -> io::Result<[bool; 3]> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let streams = [
            Some(self.pidfd.as_fd()),
            self.stdout.as_ref().map(AsFd::as_fd),
            self.stderr.as_ref().map(AsFd::as_fd),
        ];
        let mut polled: Vec<_> =
            streams.iter().flatten().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        if left.is_zero() || wait(&mut polled, left)? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut polled = polled.iter();
        Ok(streams.map(|stream: Option<BorrowedFd<'_>>| {
            // In the order of the streams that are there.
            stream.is_some() && polled.next().is_some_and(|fd| fd.any().unwrap_or(true))
        }))
    }

    /// Takes in some of what it says, and keeps the end of it.
    fn listen(&mut self) {
        let mut some = [0; 1024];
        match self.stderr.as_mut().map(|stderr| stderr.read(&mut some)) {
            Some(Ok(n)) if n > 0 => {
                self.said.extend_from_slice(&some[..n]);
                self.said.drain(..self.said.len().saturating_sub(SAID_BYTES));
            }
            Some(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
            _ => self.stderr = None,
        }
    }

    /// Waits for its end, within its deadline.
    fn wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.stdout = None;
        while !matches!(self.next()?, Event::Ended) {}
        self.end()
    }

    /// Kills what is left of the group, and collects the program; `None` if it does not go.
    fn end(&mut self) -> io::Result<Option<ExitStatus>> {
        // As long as the program was not collected, its number is no other group's.
        let _ = self.child.kill();
        let _ = killpg(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGKILL);
        let mut gone = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        match wait(&mut gone, KILL_DEADLINE)? {
            0 => Ok(None),
            _ => self.child.wait().map(Some),
        }
    }

    /// The last lines of what it said, fit to be shown. What has the value in it is not.
    fn said(&self, value: &SecretValue) -> Option<String> {
        let said = excerpt(&self.said)?;
        let printed = String::from_utf8_lossy(&self.said);
        let output = std::str::from_utf8(value.expose()).unwrap_or_default();
        let shows_value =
            output.lines().map(str::trim).any(|line| !line.is_empty() && printed.contains(line));
        Some(if shows_value { "what it said has a value in it and is not shown".to_owned() } else { said })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Once collected, its number may be another's.
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.end();
        }
    }
}

/// Waits for one of them, for that long at least. A signal to this process is not its affair.
fn wait(polled: &mut [PollFd<'_>], longest: Duration) -> nix::Result<i32> {
    let end = Instant::now() + longest;
    loop {
        let milliseconds = end.saturating_duration_since(Instant::now()).as_millis().saturating_add(1);
        match poll(polled, PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)) {
            Err(Errno::EINTR) => {}
            done => return done,
        }
    }
}

/// The last lines of a program's words, in characters that a terminal does not take for commands.
fn excerpt(said: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(said);
    let mut lines: Vec<_> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    lines.drain(..lines.len().saturating_sub(SAID_LINES));
    let plain = |c: char| if is_plain(c) { c } else { char::REPLACEMENT_CHARACTER };
    let said: String = lines.join("; ").chars().map(plain).take(SAID_CHARS).collect();
    (!said.is_empty()).then_some(said)
}

/// Not a control character, nor one of those that turn the direction of writing or cannot be seen.
fn is_plain(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_are_shown_without_what_moves_a_terminal() {
        assert_eq!(excerpt(b"a\nb\n\n c\x1b[31m\nd\n").unwrap(), "b; c\u{fffd}[31m; d");
        assert_eq!(excerpt(b" \n"), None);
        assert_eq!(excerpt("\u{202e}x".as_bytes()).unwrap(), "\u{fffd}x");
    }

    proptest! {
        #[test]
        fn words_are_short_and_plain(said in prop::collection::vec(any::<u8>(), 0..2000)) {
            let said = excerpt(&said).unwrap_or_default();
            prop_assert!(said.chars().count() <= SAID_CHARS && said.chars().all(is_plain));
        }
    }
}
