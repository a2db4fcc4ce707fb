//! From a usage to its secret without reading every definition.
//!
//! `.by-usage/KIND-HASH` holds the UUIDs of the secrets whose usage has that hash; the definitions decide. What
//! is not in the index is not in the store, as long as `.by-usage/stamp` says that it is current: it names the
//! boot and the directory's time of change. So a file that somebody copied in or took out, and a power loss in
//! the middle of a change, make it stale, and the next lookup makes it anew: it needs no syncing to disk.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::PathBuf;

use uuid::Uuid;

use crate::keystore::KeystoreError;
use crate::secret::{SecretDefinition, Usage, UsageKind};

use super::lock::StoreLock;
use super::{FileStore, disk};

const INDEX: &str = ".by-usage";
const STAMP: &str = "stamp";

impl FileStore {
    /// The secret with that usage.
    pub(super) fn find_usage(
        &self,
        kind: UsageKind,
        id: &str,
    ) -> Result<Option<SecretDefinition>, KeystoreError> {
        if let Some(_lock) = StoreLock::shared(&self.dir)?
            && self.index_is_current()
        {
            return self.find_indexed(kind, id);
        }
        match self.write_lock() {
            Ok(lock) => self.find_usage_locked(&lock, kind, id),
            // Who may only read the store reads all of it.
            Err(KeystoreError::Io { source, .. }) if is_read_only(&source) => self.find_scanning(kind, id),
            Err(e) => Err(e),
        }
    }

    /// The same for a writer; makes the index anew if it is stale.
    pub(super) fn find_usage_locked(
        &self,
        lock: &StoreLock,
        kind: UsageKind,
        id: &str,
    ) -> Result<Option<SecretDefinition>, KeystoreError> {
        if !self.index_is_current() && !self.rebuild_index(lock)? {
            return self.find_scanning(kind, id);
        }
        self.find_indexed(kind, id)
    }

    /// Does something to the directory and its index, after which an index that was current still is.
    pub(super) fn keeping_index(
        &self,
        _lock: &StoreLock,
        change: impl FnOnce() -> Result<(), KeystoreError>,
    ) -> Result<(), KeystoreError> {
        let current = self.index_is_current();
        change()?;
        if current { self.write_stamp() } else { Ok(()) }
    }

    /// Adds a new secret. Where there is no index, the next lookup makes one.
    pub(super) fn add_to_index(&self, usage: &Usage, uuid: Uuid) -> Result<(), KeystoreError> {
        let path = self.bucket(usage.kind, &usage.id);
        let mut uuids = disk::read_text(&path)?.unwrap_or_default();
        uuids.push_str(&format!("{uuid}\n"));
        match disk::write_cache(&path, &uuids) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(KeystoreError::io(path, "written")(e)),
            _ => Ok(()),
        }
    }

    fn find_indexed(&self, kind: UsageKind, id: &str) -> Result<Option<SecretDefinition>, KeystoreError> {
        let Some(uuids) = disk::read_text(&self.bucket(kind, id))? else { return Ok(None) };
        for uuid in uuids.lines().filter_map(|line| Uuid::try_parse(line).ok()) {
            // One that was undefined is still named here.
            if let Some(definition) = self.definition(uuid)?
                && has_usage(&definition, kind, id)
            {
                return Ok(Some(definition));
            }
        }
        Ok(None)
    }

    fn find_scanning(&self, kind: UsageKind, id: &str) -> Result<Option<SecretDefinition>, KeystoreError> {
        let listing = self.scan()?;
        match listing.definitions.into_iter().find(|d| has_usage(d, kind, id)) {
            Some(definition) => Ok(Some(definition)),
            // The one that is looked for may be the one that cannot be read.
            None => listing.broken.into_iter().next().map_or(Ok(None), Err),
        }
    }

    /// Makes the index anew. There is none as long as a definition cannot be read.
    fn rebuild_index(&self, _lock: &StoreLock) -> Result<bool, KeystoreError> {
        let dir = self.dir.join(INDEX);
        let listing = self.scan()?;
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(KeystoreError::io(dir, "removed")(e));
            }
            _ => {}
        }
        if !listing.broken.is_empty() {
            return Ok(false);
        }
        fs::DirBuilder::new().mode(0o700).create(&dir).map_err(KeystoreError::io(&dir, "made"))?;
        let mut buckets: BTreeMap<PathBuf, String> = BTreeMap::new();
        for definition in &listing.definitions {
            if let Some(usage) = &definition.usage {
                let bucket = buckets.entry(self.bucket(usage.kind, &usage.id)).or_default();
                bucket.push_str(&format!("{}\n", definition.uuid));
            }
        }
        for (path, uuids) in buckets {
            disk::write_cache(&path, &uuids).map_err(KeystoreError::io(path, "written"))?;
        }
        self.write_stamp()?;
        Ok(true)
    }

    fn bucket(&self, kind: UsageKind, id: &str) -> PathBuf {
        self.dir.join(INDEX).join(format!("{}-{:016x}", kind.as_str(), fnv1a(id.as_bytes())))
    }

    pub(super) fn index_is_current(&self) -> bool {
        let stamp = fs::read_to_string(self.dir.join(INDEX).join(STAMP));
        matches!((stamp, self.stamp()), (Ok(old), Ok(now)) if old == now)
    }

    fn write_stamp(&self) -> Result<(), KeystoreError> {
        let path = self.dir.join(INDEX).join(STAMP);
        let write = || disk::write_cache(&path, &self.stamp()?);
        write().map_err(KeystoreError::io(&path, "written"))
    }

    fn stamp(&self) -> io::Result<String> {
        let metadata = fs::metadata(&self.dir)?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Ok(format!("{} {}.{:09}\n", boot.trim(), metadata.mtime(), metadata.mtime_nsec()))
    }
}

pub(super) fn has_usage(definition: &SecretDefinition, kind: UsageKind, id: &str) -> bool {
    definition.usage.as_ref().is_some_and(|u| u.kind == kind && u.id == id)
}

fn is_read_only(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

/// FNV-1a, because the names of files must not change with the compiler, as the standard hasher may. Usages
/// with the same hash share a file.
pub(super) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}
