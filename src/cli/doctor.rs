//! `vmward doctor`: whether this machine can keep vmward's promises.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
use nix::unistd::geteuid;
use serde_json::{Value, json};

use crate::cli::output;
use crate::keystore::{Keystore, KeystoreError};
use crate::qemu::Capabilities;

use super::config::{Config, Paths};
use super::keystore_failure::keystore_failure;
use super::program::DEFAULT_EMULATOR;
use super::{CliError, Exit, Global};

/// `linux/magic.h`.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);
/// A secret takes a page of its own, and a start with a hundred disks should not run out of them.
const ENOUGH_LOCKED_BYTES: u64 = 1 << 20;

/// Arguments of `vmward doctor`.
#[derive(clap::Args)]
pub(crate) struct DoctorArgs {
    /// Print an array of objects
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Ok,
    Warning,
    Error,
}

struct Finding {
    /// What was looked at.
    about: &'static str,
    state: State,
    message: String,
    hint: Option<String>,
}

impl Finding {
    fn new(about: &'static str, state: State, message: impl Into<String>) -> Self {
        Self { about, state, message: message.into(), hint: None }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Runs `vmward doctor`.
pub(crate) fn run(global: &Global, args: &DoctorArgs) -> Result<ExitCode, CliError> {
    let config = Config::load(global)?;
    let keystores = config.open_keystores()?;
    let mut findings: Vec<_> = keystores.stores.iter().map(|store| keystore(store.as_ref())).collect();
    findings.extend([
        runtime_dir(&config.paths),
        left_overs(&config.paths),
        locked_memory(),
        swap(),
        qemu(&config.paths),
    ]);
    if args.json {
        let list: Vec<Value> = findings.iter().map(as_json).collect();
        output::line(format_args!("{:#}", Value::Array(list)))?;
    } else {
        for finding in &findings {
            output::line(format_args!("{:7}  {}: {}", word(finding.state), finding.about, finding.message))?;
            if let Some(hint) = &finding.hint {
                output::line(format_args!("         Hint: {hint}"))?;
            }
        }
    }
    let failed = findings.iter().any(|f| f.state == State::Error);
    Ok(if failed { Exit::Unavailable.into() } else { ExitCode::SUCCESS })
}

fn word(state: State) -> &'static str {
    match state {
        State::Ok => "ok",
        State::Warning => "warning",
        State::Error => "error",
    }
}

fn as_json(finding: &Finding) -> Value {
    json!({
        "about": finding.about,
        "state": word(finding.state),
        "message": finding.message,
        "hint": finding.hint,
    })
}

/// Whether a store answers, and whether the key to its values is there: one of them is read, and dropped.
fn keystore(store: &dyn Keystore) -> Finding {
    const ABOUT: &str = "keystore";
    let started = Instant::now();
    let tried = store.list().and_then(|listing| {
        for definition in &listing.definitions {
            if store.has_value(definition)? {
                store.value(definition)?;
                break;
            }
        }
        Ok(listing)
    });
    match tried {
        Ok(listing) if listing.broken.is_empty() => {
            let (count, took) = (listing.definitions.len(), started.elapsed().as_millis());
            let plural = if count == 1 { "" } else { "s" };
            Finding::new(
                ABOUT,
                State::Ok,
                format!("{} has {count} secret{plural} (in {took} ms)", store.uri()),
            )
        }
        Ok(listing) => {
            let said: Vec<_> = listing.broken.iter().map(ToString::to_string).collect();
            Finding::new(ABOUT, State::Error, format!("{}: {}", store.uri(), said.join("; ")))
        }
        // One that is asked for one secret at a time.
        Err(e @ KeystoreError::Unsupported { .. }) => Finding::new(ABOUT, State::Ok, e.to_string()),
        Err(e) => {
            let failure = keystore_failure(e);
            let cause = failure.source.map_or(String::new(), |e| format!(" ({e})"));
            Finding {
                hint: failure.hint,
                ..Finding::new(ABOUT, State::Error, format!("{}: {}{cause}", store.uri(), failure.message))
            }
        }
    }
}

fn runtime_dir(paths: &Paths) -> Finding {
    const ABOUT: &str = "runtime directory";
    let dir = paths.runtime_dir.display();
    // It is made with the first guest: till then what counts is where it will be.
    let there = paths.runtime_dir.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    match statfs(there) {
        Ok(fs) if [TMPFS_MAGIC, RAMFS_MAGIC].contains(&fs.filesystem_type()) => {
            Finding::new(ABOUT, State::Ok, format!("{dir} is in memory"))
        }
        Ok(_) => Finding::new(
            ABOUT,
            State::Warning,
            format!("{dir} is not on a tmpfs: the master keys of running guests are written to a disk"),
        )
        .hint("mount a tmpfs there, or set VMWARD_RUNTIME_DIR to a directory on one"),
        Err(e) => Finding::new(ABOUT, State::Error, format!("{} cannot be looked at ({e})", there.display())),
    }
}

/// Lib dirs that no supervisor holds a lock on.
fn left_overs(paths: &Paths) -> Finding {
    const ABOUT: &str = "left-overs";
    let is_left = |dir: &PathBuf| {
        let unlocked = File::open(dir).is_ok_and(|d| d.try_lock_shared().is_ok());
        unlocked && fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
    };
    let entries = fs::read_dir(&paths.runtime_dir).into_iter().flatten().filter_map(Result::ok);
    let dirs = entries.map(|e| e.path()).filter(|p| p.is_dir());
    let left: Vec<_> = dirs.filter(is_left).map(|p| p.display().to_string()).collect();
    if left.is_empty() {
        return Finding::new(ABOUT, State::Ok, "no guest has left anything behind");
    }
    Finding::new(ABOUT, State::Warning, format!("a supervisor died and left {}", left.join(", ")))
        .hint("`vmward run` of the same guest takes it over or wipes it")
}

fn locked_memory() -> Finding {
    const ABOUT: &str = "locked memory";
    match getrlimit(Resource::RLIMIT_MEMLOCK) {
        // root locks as much as it likes.
        Ok((soft, _)) if soft >= ENOUGH_LOCKED_BYTES || geteuid().is_root() => {
            Finding::new(ABOUT, State::Ok, "secrets stay out of swap")
        }
        Ok((soft, _)) => Finding::new(
            ABOUT,
            State::Warning,
            format!("only {} KiB may be locked: the secrets of many disks could reach swap", soft / 1024),
        )
        .hint("raise `memlock` in /etc/security/limits.conf, or LimitMEMLOCK= of the unit"),
        Err(e) => Finding::new(ABOUT, State::Error, format!("the limit cannot be read ({e})")),
    }
}

/// vmward locks its own secrets in memory; QEMU does not lock the keys of its open disks.
fn swap() -> Finding {
    const ABOUT: &str = "swap";
    let areas = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let names = areas.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    let on_disk: Vec<_> = names.filter(|name| !name.starts_with("/dev/zram")).collect();
    if on_disk.is_empty() {
        return Finding::new(ABOUT, State::Ok, "nothing is swapped to a disk");
    }
    Finding::new(
        ABOUT,
        State::Warning,
        format!("{} is in use: QEMU's memory, with the keys of open disks, may be written there", on_disk.join(", ")),
    )
    .hint("encrypt it with a key of its own at each boot (crypttab: /dev/urandom swap), or give the guest locked memory")
}

fn qemu(paths: &Paths) -> Finding {
    const ABOUT: &str = "QEMU";
    match Capabilities::of_program(Path::new(DEFAULT_EMULATOR), &paths.cache_dir) {
        Ok(capabilities) => {
            let (major, minor, micro) = capabilities.version;
            Finding::new(ABOUT, State::Ok, format!("{DEFAULT_EMULATOR} is {major}.{minor}.{micro}"))
        }
        Err(e) => Finding::new(ABOUT, State::Error, e.to_string())
            .hint("install it (Debian: qemu-system-x86), or name another one in each guest's <emulator>"),
    }
}
