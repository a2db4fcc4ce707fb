//! The one place that runs qemu-img, and what goes with it: Ceph's rbd, qemu-io and cryptsetup.

use std::cell::Cell;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command as StdCommand, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use nix::fcntl::OFlag;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::pipe2;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::time::Instant;

use crate::qmp::BAD_CLOCK;
use crate::secret::SecretValue;

use super::VolumeError;

/// The first descriptor after the standard ones.
const FIRST_FD: i32 = 3;
/// A pipe of one page takes this without a reader, whatever the user's limits on pipes are. LUKS passphrases
/// are far shorter (cryptsetup's limit is 512 bytes).
const LONGEST_PASSPHRASE: usize = 4096;
/// How often progress is shown.
const TICK: Duration = Duration::from_millis(100);
/// How long a client of a cluster goes on after a signal.
pub(super) const GRACE: Duration = Duration::from_secs(30);
/// More than any list of an image's watchers or snapshots has.
const MOST_PRINTED: u64 = 1 << 20;
/// Where programs are if nobody says, as the C library's `execvp` has it.
const DEFAULT_PATH: &str = "/bin:/usr/bin";
/// Where administrators' programs are.
const SYSTEM_PATH: [&str; 2] = ["/usr/sbin", "/sbin"];
/// How often a call that ends with [`BAD_CLOCK`] is tried, after which it has another reason.
const BAD_CLOCK_TRIES: u32 = 40;

/// The signals that ask vmward to stop, kept from ending it in the middle of something.
pub struct Interrupts {
    streams: Vec<(Signal, SignalStream)>,
    /// One that came while something had to be completed first.
    pending: Option<Signal>,
}

impl Interrupts {
    /// From here on the signals wait to be asked for. Needs a tokio runtime.
    pub fn catch() -> io::Result<Self> {
        [
            (Signal::SIGINT, SignalKind::interrupt()),
            (Signal::SIGTERM, SignalKind::terminate()),
            (Signal::SIGHUP, SignalKind::hangup()),
        ]
        .into_iter()
        .map(|(number, kind)| Ok((number, signal(kind)?)))
        .collect::<io::Result<_>>()
        .map(|streams| Self { streams, pending: None })
    }

    /// Waits for one of them.
    pub async fn wait(&mut self) -> Signal {
        let [(a, first), (b, second), (c, third)] = &mut self.streams[..] else {
            unreachable!("three signals were registered")
        };
        tokio::select! {
            _ = first.recv() => *a,
            _ = second.recv() => *b,
            _ = third.recv() => *c,
        }
    }

    /// Whether one of them has come.
    pub async fn check(&mut self) -> Result<(), VolumeError> {
        if let Some(signal) = self.pending.take() {
            return Err(VolumeError::Interrupted(signal));
        }
        tokio::select! {
            biased;
            signal = self.wait() => Err(VolumeError::Interrupted(signal)),
            () = std::future::ready(()) => Ok(()),
        }
    }
}

/// One run of a program: its arguments, and the descriptors that it inherits.
#[derive(Default)]
pub(super) struct Call {
    verb: &'static str,
    objects: Vec<OsString>,
    args: Vec<OsString>,
    inherited: Vec<OwnedFd>,
    input: Option<OwnedFd>,
    is_remote: bool,
    is_read: bool,
}

impl Call {
    pub(super) fn new(verb: &'static str) -> Self {
        Self { verb, ..Self::default() }
    }

    pub(super) fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Has qemu-img inherit a file, and returns the path under which it finds it.
    pub(super) fn file(&mut self, file: &File) -> Result<String, VolumeError> {
        let fd = file.as_fd().try_clone_to_owned().map_err(VolumeError::Handover)?;
        Ok(self.inherit(fd))
    }

    /// Hands over a passphrase as the secret object `id`. It goes through a pipe: its bytes are in the kernel's
    /// memory until qemu-img has read them once, and in no file.
    pub(super) fn secret(&mut self, id: &str, value: &SecretValue) -> Result<(), VolumeError> {
        value.as_passphrase().map_err(VolumeError::Passphrase)?;
        self.any_secret(id, value)
    }

    /// The same with a value that may be any bytes.
    pub(super) fn any_secret(&mut self, id: &str, value: &SecretValue) -> Result<(), VolumeError> {
        let path = self.value(value)?;
        self.objects.push("--object".into());
        self.objects.push(format!("secret,id={id},file={path}").into());
        Ok(())
    }

    /// Hands over a value, and returns the path under which the program reads it, once.
    pub(super) fn value(&mut self, value: &SecretValue) -> Result<String, VolumeError> {
        Ok(self.inherit(piped(value.expose())?))
    }

    /// Whether a secret object was handed over already.
    pub(super) fn has_secret(&self, id: &str) -> bool {
        let object = format!("secret,id={id},");
        self.objects.iter().any(|o| o.to_str().is_some_and(|o| o.starts_with(&object)))
    }

    /// What the program reads from its standard input.
    pub(super) fn input(&mut self, bytes: &[u8]) -> Result<(), VolumeError> {
        self.input = Some(piped(bytes)?);
        Ok(())
    }

    /// The program talks to a Ceph cluster. librados complains of a key with the key: what it says is not passed on.
    /// For the cluster a client that is killed has its image open until it times out (Ceph's `osd_client_watch_timeout`,
    /// 30 s), so a signal lets the program come to its end, and kills it after that time or the next one.
    pub(super) fn remote(&mut self) -> &mut Self {
        self.is_remote = true;
        self
    }

    /// What the program prints is wanted.
    pub(super) fn read(&mut self) -> &mut Self {
        self.is_read = true;
        self
    }

    fn inherit(&mut self, fd: OwnedFd) -> String {
        self.inherited.push(fd);
        let last = i32::try_from(self.inherited.len()).unwrap_or(i32::MAX) - 1;
        format!("/dev/fd/{}", FIRST_FD + last)
    }
}

/// The reading end of a pipe that has these bytes in it, and no more to come.
pub(crate) fn piped(bytes: &[u8]) -> Result<OwnedFd, VolumeError> {
    if bytes.len() > LONGEST_PASSPHRASE {
        return Err(VolumeError::PassphraseTooLong(LONGEST_PASSPHRASE));
    }
    let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(|e| VolumeError::Handover(e.into()))?;
    File::from(write).write_all(bytes).map_err(VolumeError::Handover)?;
    Ok(read)
}

/// A program.
#[derive(Debug, Clone)]
pub(super) struct Program {
    name: &'static str,
    path: PathBuf,
}

/// The qemu-img program.
#[derive(Debug, Clone)]
pub struct QemuImg(Program);

impl QemuImg {
    /// The one that `PATH` finds.
    pub fn find() -> Result<Self, VolumeError> {
        Program::find("qemu-img").map(Self)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0.path
    }

    /// Whether it was built with LUKS.
    pub fn makes_luks(&self) -> bool {
        let help = StdCommand::new(&self.0.path).arg("--help").env_clear().output();
        let formats = |help: std::process::Output| {
            let text = String::from_utf8_lossy(&help.stdout).into_owned();
            text.split_once("formats:").is_some_and(|(_, f)| f.split_whitespace().any(|f| f == "luks"))
        };
        help.is_ok_and(formats)
    }

    /// Runs what `call` makes, to its end. `tick` is called now and then, with the share that
    /// is done where the call has qemu-img say it (`-p`). A signal to vmward kills qemu-img.
    pub(super) async fn run(
        &self,
        mut call: impl FnMut() -> Result<Call, VolumeError>,
        interrupts: &mut Interrupts,
        tick: &mut dyn FnMut(Option<f64>),
    ) -> Result<(), VolumeError> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.0.run(call()?, interrupts, tick).await {
                Err(VolumeError::Program { message, .. })
                    if message.contains(BAD_CLOCK) && tries < BAD_CLOCK_TRIES => {}
                result => return result.map(drop),
            }
        }
    }
}

impl Program {
    /// The one that `PATH` finds, or that is where only root's `PATH` leads.
    pub(super) fn find(name: &'static str) -> Result<Self, VolumeError> {
        let executable =
            |p: &PathBuf| p.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
        env::split_paths(&env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into()))
            .filter(|dir| dir.is_absolute())
            .chain(SYSTEM_PATH.map(PathBuf::from))
            .map(|dir| dir.join(name))
            .find(executable)
            .map(|path| Self { name, path })
            .ok_or(VolumeError::NoProgram(name))
    }

    /// Runs it to its end, and returns what it printed, if that is wanted.
    pub(super) async fn run(
        &self,
        call: Call,
        interrupts: &mut Interrupts,
        tick: &mut dyn FnMut(Option<f64>),
    ) -> Result<Vec<u8>, VolumeError> {
        interrupts.check().await?;
        let (is_read, is_remote, verb) = (call.is_read, call.is_remote, call.verb);
        let mut child = self.spawn(call, None)?;
        let spawn_failed = |source| VolumeError::Spawn { program: self.path.clone(), source };
        let stderr = child.stderr.take();
        let said = async move {
            let mut said = Vec::new();
            if let Some(mut stderr) = stderr {
                // Its complaint is wanted for a message, so what cannot be read of it is no failure.
                let _ = (&mut stderr).take(64 * 1024).read_to_end(&mut said).await;
            }
            said
        };
        let share = Cell::new(None);
        let stdout = child.stdout.take();
        let shown = async {
            let mut shown = Vec::new();
            match (is_read, stdout) {
                // Cut short it is no JSON, which is told then.
                (true, Some(stdout)) => drop(stdout.take(MOST_PRINTED).read_to_end(&mut shown).await),
                (_, stdout) => follow(stdout, &share).await,
            }
            shown
        };
        let finished = async { tokio::join!(child.wait(), said, shown) };
        let mut finished = Box::pin(finished);
        let mut ticks = tokio::time::interval(TICK);
        let mut stopping = None;
        let (status, said, shown) = loop {
            let patience = async {
                match stopping {
                    Some((_, until)) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            let over = tokio::select! {
                done = &mut finished => break done,
                signal = interrupts.wait() => match stopping {
                    None if is_remote => {
                        stopping = Some((signal, Instant::now() + GRACE));
                        None
                    }
                    _ => Some(signal),
                },
                () = patience => stopping.map(|(signal, _)| signal),
                _ = ticks.tick() => {
                    tick(share.get());
                    None
                }
            };
            if let Some(signal) = over {
                drop(finished);
                child.kill().await.map_err(spawn_failed)?;
                return Err(VolumeError::Interrupted(signal));
            }
        };
        interrupts.pending = stopping.map(|(signal, _)| signal);
        let status = status.map_err(spawn_failed)?;
        if status.success() {
            return Ok(shown);
        }
        let message = complaint(self.name, &said, is_remote);
        Err(VolumeError::Program { program: self.name, verb, status, message })
    }

    /// Starts it and goes on while it runs, with a pipe to its standard input. It ends with the value that is returned.
    pub(super) fn start(&self, mut call: Call) -> Result<Child, VolumeError> {
        call.remote();
        self.spawn(call, Some(Stdio::piped()))
    }

    /// What one has said that was started and has ended.
    pub(super) async fn failed(&self, child: Child) -> VolumeError {
        match child.wait_with_output().await {
            Ok(output) => VolumeError::Program {
                program: self.name,
                verb: "",
                status: output.status,
                message: complaint(self.name, &output.stderr, true),
            },
            Err(source) => VolumeError::Spawn { program: self.path.clone(), source },
        }
    }

    fn spawn(&self, call: Call, input: Option<Stdio>) -> Result<Child, VolumeError> {
        let spawn_failed = |source| VolumeError::Spawn { program: self.path.clone(), source };
        // The limit is inherited: a qemu-img that crashes must not leave the passphrase in a core dump. This
        // process, which has it as well, keeps the limit.
        setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|e| spawn_failed(e.into()))?;
        let mut command = StdCommand::new(&self.path);
        command
            .arg(call.verb)
            .args(&call.objects)
            .args(&call.args)
            .env_clear()
            .env("LC_ALL", "C")
            .stdin(input.unwrap_or_else(|| call.input.map_or_else(Stdio::null, Stdio::from)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mappings = (FIRST_FD..)
            .zip(call.inherited)
            .map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd })
            .collect();
        command.fd_mappings(mappings).map_err(|e| spawn_failed(io::Error::other(e)))?;
        if call.is_remote {
            // A terminal sends its signals to whole process groups.
            command.process_group(0);
        }
        let mut command = Command::from(command);
        // The command, which holds this side's copies of the descriptors, goes with this function.
        command.kill_on_drop(true).spawn().map_err(spawn_failed)
    }
}

/// Reads the progress that qemu-img prints, as in "    (12.34/100%)\r", to its end.
async fn follow(stdout: Option<ChildStdout>, share: &Cell<Option<f64>>) {
    let Some(stdout) = stdout else { return };
    let mut stdout = BufReader::new(stdout);
    let mut shown = Vec::new();
    // What cannot be read of it only leaves a bar standing.
    while matches!(stdout.read_until(b')', &mut shown).await, Ok(1..)) {
        let text = String::from_utf8_lossy(&shown);
        let percent = text.rsplit('(').next().and_then(|t| t.split('/').next()?.parse::<f64>().ok());
        share.set(percent.map(|p| (p / 100.0).clamp(0.0, 1.0)).or(share.get()));
        shown.clear();
    }
}

/// What a program said, on one line. qemu-img could not delete the file that it was given as a descriptor, which is how
/// it should be. `only_own`: without what libraries said.
fn complaint(program: &str, said: &[u8], only_own: bool) -> String {
    let said = String::from_utf8_lossy(said);
    let own = |line: &str| line.strip_prefix(program).and_then(|l| l.strip_prefix(": ")).map(str::to_owned);
    let lines: Vec<_> = said
        .lines()
        .map(str::trim)
        .filter_map(|line| own(line).or_else(|| (!only_own && !line.is_empty()).then(|| line.to_owned())))
        .filter(|l| !l.starts_with("Error when deleting file"))
        .collect();
    if lines.is_empty() { "it did not say why".to_owned() } else { lines.join("; ") }
}
