//! Where running guests have their keys, and what dead ones left there.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};

use crate::cli::CliError;
use crate::cli::config::Paths;
use crate::cli::control::runtime;
use crate::supervisor::{self, Clearance, Cleared};

use super::Finding;

/// `linux/magic.h`.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

const LEFT_OVERS: &str = "left-overs";

/// What is said about the runtime directory.
pub(super) fn findings(paths: &Paths) -> [Finding; 2] {
    [in_memory(paths), left_overs(paths)]
}

fn in_memory(paths: &Paths) -> Finding {
    const ABOUT: &str = "runtime directory";
    let dir = paths.runtime_dir.display();
    // It is made with the first guest: till then what counts is where it will be.
    let there = paths.runtime_dir.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    match statfs(there) {
        Ok(fs) if [TMPFS_MAGIC, RAMFS_MAGIC].contains(&fs.filesystem_type()) => {
            Finding::ok(ABOUT, format!("{dir} is in memory"))
        }
        Ok(_) => Finding::warning(
            ABOUT,
            format!("{dir} is not on a tmpfs: the master keys of running guests are written to a disk"),
        )
        .hint("mount a tmpfs there, or set VMWARD_RUNTIME_DIR to a directory on one"),
        Err(e) => Finding::error(ABOUT, format!("{} cannot be looked at ({e})", there.display())),
    }
}

/// Wipes what guests that are gone have left.
pub(super) fn fix(paths: &Paths) -> Result<Vec<Finding>, CliError> {
    let runtime = runtime()?;
    let wiped = tokio::task::LocalSet::new()
        .block_on(&runtime, async { supervisor::wipe_left_overs(&paths.runtime_dir) });
    if wiped.is_empty() {
        return Ok(vec![nothing_left()]);
    }
    let say = |cleared: Clearance| {
        let dir = cleared.path.display();
        match cleared.result {
            Ok(Cleared::Wiped) => Finding::ok(LEFT_OVERS, format!("{dir} was wiped: its guest is gone")),
            Ok(Cleared::Runs { qemu }) => Finding::warning(
                LEFT_OVERS,
                format!("{dir} has a guest that runs without a supervisor (QEMU is process {qemu})"),
            )
            .hint("`vmward run` with the guest's XML takes it over"),
            Err(e) => {
                let cause = std::error::Error::source(&e).map_or(String::new(), |e| format!(" ({e})"));
                Finding::error(LEFT_OVERS, format!("{dir} cannot be wiped: {e}{cause}"))
            }
        }
    };
    Ok(wiped.into_iter().map(say).collect())
}

fn nothing_left() -> Finding {
    Finding::ok(LEFT_OVERS, "no guest has left anything behind")
}

/// Lib dirs that no supervisor holds a lock on.
fn left_overs(paths: &Paths) -> Finding {
    let is_left = |dir: &PathBuf| {
        let unlocked = File::open(dir).is_ok_and(|d| d.try_lock_shared().is_ok());
        unlocked && fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
    };
    let describe = |dir: PathBuf| {
        let running: Vec<_> = supervisor::orphans(&dir).iter().map(u32::to_string).collect();
        match running.is_empty() {
            true => dir.display().to_string(),
            false => format!("{} and a QEMU that runs (process {})", dir.display(), running.join(", ")),
        }
    };
    let entries = fs::read_dir(&paths.runtime_dir).into_iter().flatten().filter_map(Result::ok);
    let dirs = entries.map(|e| e.path()).filter(|p| p.is_dir());
    let mut left: Vec<_> = dirs.filter(is_left).map(describe).collect();
    left.sort();
    if left.is_empty() {
        return nothing_left();
    }
    Finding::warning(LEFT_OVERS, format!("a supervisor died and left {}", left.join(", ")))
        .hint("`vmward run` of the same guest takes it over or wipes it; `vmward doctor --fix` wipes what has no QEMU")
}
