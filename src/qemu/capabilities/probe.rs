//! Asking a QEMU program what it can do, over QMP on its standard input and output.

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Capabilities, Host, OLDEST};

/// A QEMU that does not answer for so long hangs: the slowest answer takes 40 ms on a slow machine.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// Why a QEMU program could not be asked what it can do.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// There is no such program.
    #[error("there is no QEMU at {}", .0.display())]
    Missing(PathBuf),
    /// It could not be started.
    #[error("{} could not be started", .path.display())]
    Start {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It did not answer as QEMU does.
    #[error("{} does not answer as QEMU does{}", .path.display(), said(.stderr))]
    NoAnswer {
        /// The program.
        path: PathBuf,
        /// What it said instead.
        stderr: String,
        /// What was wrong with the answer.
        #[source]
        source: io::Error,
    },
    /// It is older than vmward can use.
    #[error("{} is QEMU {}.{}; vmward needs 7.2 or later", .path.display(), .version.0, .version.1)]
    TooOld {
        /// The program.
        path: PathBuf,
        /// Its version.
        version: (u32, u32, u32),
    },
}

fn said(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!(": {stderr}") }
}

/// A child that does not outlive its use.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is to be reaped.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Capabilities {
    /// Starts the program without a machine, and asks it.
    pub fn probe(path: &Path) -> Result<Self, ProbeError> {
        let start = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => ProbeError::Missing(path.to_owned()),
            _ => ProbeError::Start { path: path.to_owned(), source },
        };
        let (ours, theirs) = UnixStream::pair().map_err(start)?;
        ours.set_read_timeout(Some(ANSWER_WITHIN)).map_err(start)?;
        let output: OwnedFd = theirs.try_clone().map_err(start)?.into();
        let child = Command::new(path)
            .args([
                "-machine",
                "none",
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-S",
                "-qmp",
                "stdio",
            ])
            .stdin(OwnedFd::from(theirs))
            .stdout(output)
            .stderr(Stdio::piped())
            .env_clear()
            .current_dir("/")
            .spawn()
            .map_err(start)?;
        let mut qemu = Qemu(child);
        let version_and_all = ask(&ours);
        let (version, capabilities) = match version_and_all {
            Ok(answers) => answers,
            Err(source) => {
                return Err(ProbeError::NoAnswer {
                    path: path.to_owned(),
                    stderr: last_words(&mut qemu),
                    source,
                });
            }
        };
        if (version.0, version.1) < OLDEST {
            return Err(ProbeError::TooOld { path: path.to_owned(), version });
        }
        Ok(capabilities)
    }
}

/// The first line of what it said on standard error before it ended.
fn last_words(qemu: &mut Qemu) -> String {
    let _ = qemu.0.kill();
    let mut text = String::new();
    if let Some(stderr) = qemu.0.stderr.take() {
        // Whatever could be read is said.
        let _ = stderr.take(4096).read_to_string(&mut text);
    }
    text.lines().next().unwrap_or_default().to_owned()
}

/// A QMP session with one question at a time; events in between are nobody's.
struct Session<'a> {
    lines: io::Lines<BufReader<&'a UnixStream>>,
    socket: &'a UnixStream,
}

impl Session<'_> {
    fn receive(&mut self) -> io::Result<Value> {
        let line = self.lines.next().ok_or(io::ErrorKind::UnexpectedEof)??;
        serde_json::from_str(&line).map_err(io::Error::from)
    }

    fn ask(&mut self, question: Value) -> io::Result<Value> {
        let mut line = question.to_string();
        line.push('\n');
        (&mut &*self.socket).write_all(line.as_bytes())?;
        loop {
            let mut answer = self.receive()?;
            if let Some(answer) = answer.get_mut("return") {
                return Ok(answer.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(io::Error::other(format!("{question}: {error}")));
            }
        }
    }

    fn names(&mut self, question: Value, keys: &[&str]) -> io::Result<BTreeSet<String>> {
        let answer = self.ask(question)?;
        let list = answer.as_array().map(Vec::as_slice).unwrap_or_default();
        let name = |item: &Value, key: &&str| item.get(*key).and_then(Value::as_str).map(str::to_owned);
        Ok(list.iter().flat_map(|item| keys.iter().filter_map(move |key| name(item, key))).collect())
    }
}

fn ask(socket: &UnixStream) -> io::Result<((u32, u32, u32), Capabilities)> {
    let mut session = Session { lines: BufReader::new(socket).lines(), socket };
    let greeting = session.receive()?;
    let part = |name: &str| {
        let number = greeting.pointer(&format!("/QMP/version/qemu/{name}")).and_then(Value::as_u64);
        number.and_then(|n| u32::try_from(n).ok()).ok_or(io::Error::other("the greeting names no version"))
    };
    let version = (part("major")?, part("minor")?, part("micro")?);
    session.ask(json!({"execute": "qmp_capabilities"}))?;
    let mut types = BTreeSet::new();
    for kind in ["device", "user-creatable"] {
        let question =
            json!({"execute": "qom-list-types", "arguments": {"implements": kind, "abstract": false}});
        types.append(&mut session.names(question, &["name"])?);
    }
    let machines = session.names(json!({"execute": "query-machines"}), &["name", "alias"])?;
    let options = session.names(json!({"execute": "query-command-line-options"}), &["option"])?;
    let capabilities = Capabilities {
        version,
        types: Some(types),
        machines: Some(machines),
        sandbox: options.contains("sandbox"),
        host: Host::of_this_machine(),
    };
    Ok((version, capabilities))
}
