//! What was learnt of a QEMU program, kept until the program changes.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Capabilities, Host, ProbeError};

/// Changes with what is kept: an older file is of no use then.
const FORMAT: u32 = 1;

/// What makes a program the one that was asked.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    format: u32,
    path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    /// In nanoseconds; of the last change of the inode, which no package manager sets back.
    changed: i128,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    identity: Identity,
    capabilities: Capabilities,
}

impl Capabilities {
    /// What the program can do: from the cache, or asked of it and put there. A cache that cannot be read or
    /// written only costs time.
    pub fn of_program(path: &Path, cache_dir: &Path) -> Result<Self, ProbeError> {
        let Ok(metadata) = fs::metadata(path) else { return Err(ProbeError::Missing(path.to_owned())) };
        let identity = Identity {
            format: FORMAT,
            path: path.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec()),
        };
        let file = cache_dir.join(format!("qemu-{:x}-{:x}.json", identity.device, identity.inode));
        if let Some(entry) = read(&file).filter(|e| e.identity == identity) {
            return Ok(Self { host: Host::of_this_machine(), ..entry.capabilities });
        }
        let capabilities = Self::probe(path)?;
        let entry = Entry { identity, capabilities };
        if let Err(e) = write(&file, cache_dir, &entry) {
            tracing::warn!("{} could not be written, QEMU will be asked again: {e}", file.display());
        }
        Ok(entry.capabilities)
    }
}

fn read(file: &Path) -> Option<Entry> {
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}

fn write(file: &Path, dir: &Path, entry: &Entry) -> std::io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mut temporary = tempfile::NamedTempFile::new_in(dir)?;
    serde_json::to_writer(&mut temporary, entry)?;
    temporary.flush()?;
    temporary.persist(file)?;
    Ok(())
}
