//! The master key's place while the guest runs: a file of the lib dir, or memory that no file system has.
//!
//! In memory it is a memfd. QEMU inherits it for reading, and finds it by a symbolic link where the file would be; the
//! service manager keeps it for the next supervisor. Without one there is no way back to the key, but there is one to a
//! key: QEMU is given a new one through a pipe. Its objects that hold secrets were decrypted when they were made.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use qapi::qmp::object_del;
use serde_json::json;

use crate::qemu::MASTER_KEY_FILE;
use crate::qmp::{COMMAND_DEADLINE, Qmp};
use crate::secret::{MASTER_KEY_ID, MASTER_KEY_LEN, MasterKey, SecretValue, os_random};

use super::lib_dir::LibDir;
use super::user::User;
use super::{SupervisorError, manager};

/// Where a guest's master key is to be while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyPlace {
    /// In a file of the lib dir.
    File,
    /// On no file system: in memory that QEMU inherits and the service manager keeps for the next supervisor.
    Memory,
}

/// The pipe through which QEMU is given a new key.
const PIPE: &str = "master-key.pipe";

/// A master key in memory. Dropped, it is overwritten, whoever else still has it.
#[derive(Debug)]
pub(super) struct KeyInMemory(File);

impl KeyInMemory {
    /// Puts a key there, for the next supervisor as well.
    pub(super) fn new(key: &MasterKey) -> io::Result<Self> {
        let memory =
            File::from(memfd_create("master-key", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
        // Who is handed a descriptor may read it. Only this user may write, who has to overwrite it in the end.
        memory.set_permissions(fs::Permissions::from_mode(0o644))?;
        memory.write_all_at(key.value().expose(), 0)?;
        let seals = SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        fcntl(&memory, FcntlArg::F_ADD_SEALS(seals))?;
        manager::keep_key(memory.as_fd());
        Ok(Self(memory))
    }

    /// What an earlier supervisor had kept for a guest that is gone: to be dropped.
    pub(super) fn stale(kept: File) -> Self {
        Self(kept)
    }

    /// A descriptor for QEMU, which cannot write to it.
    pub(super) fn for_reading(&self) -> io::Result<OwnedFd> {
        use std::os::fd::AsRawFd;
        Ok(File::open(format!("/proc/self/fd/{}", self.0.as_raw_fd()))?.into())
    }

    /// The key that an earlier supervisor had kept; `None` if it is none.
    fn read(kept: File) -> Option<(MasterKey, Self)> {
        // Only what cannot be cut short is to be read here.
        fcntl(&kept, FcntlArg::F_GET_SEALS).ok()?;
        let mut value = SecretValue::zeroed(MASTER_KEY_LEN).ok()?;
        kept.read_exact_at(value.expose_mut(), 0).ok()?;
        Some((MasterKey::from_value(value)?, Self(kept)))
    }
}

impl Drop for KeyInMemory {
    fn drop(&mut self) {
        if let Err(e) = self.0.write_all_at(&[0; MASTER_KEY_LEN], 0) {
            tracing::error!("the master key in memory could not be overwritten: {e}");
        }
        manager::forget_key();
    }
}

/// Has QEMU find a descriptor where it looks for the master key.
pub(super) fn link(lib_dir: &LibDir, number: i32) -> Result<(), SupervisorError> {
    let path = lib_dir.path().join(MASTER_KEY_FILE);
    symlink(format!("/dev/fd/{number}"), &path).map_err(SupervisorError::io(path, "made"))
}

/// The master key of a guest that is taken back. `kept`: what the service manager has kept.
pub(super) async fn take_back(
    lib_dir: &LibDir,
    kept: Option<File>,
    qmp: &Qmp,
) -> Result<(MasterKey, Option<KeyInMemory>), SupervisorError> {
    if fs::symlink_metadata(lib_dir.path().join(MASTER_KEY_FILE)).is_ok_and(|there| there.is_file()) {
        return Ok((lib_dir.read_key()?, None));
    }
    if let Some((key, memory)) = kept.and_then(KeyInMemory::read) {
        return Ok((key, Some(memory)));
    }
    tracing::warn!("the master key was in memory, and nobody has kept it: QEMU is given a new one");
    let key = MasterKey::generate(&mut os_random()).map_err(SupervisorError::MasterKey)?;
    let pipe = lib_dir.path().join(PIPE);
    let given = give(qmp, &pipe, lib_dir.user().as_ref(), &key).await;
    let removed = fs::remove_file(&pipe);
    given.map_err(SupervisorError::NewKey)?;
    removed.map_err(SupervisorError::io(pipe, "removed"))?;
    let memory = KeyInMemory::new(&key).map_err(SupervisorError::io("a memfd", "made"))?;
    Ok((key, Some(memory)))
}

/// Gives QEMU a key in place of the one it has.
async fn give(
    qmp: &Qmp,
    pipe: &Path,
    user: Option<&User>,
    key: &MasterKey,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    // One from a supervisor that died right here.
    let _ = fs::remove_file(pipe);
    mkfifo(pipe, Mode::S_IRUSR | Mode::S_IWUSR)?;
    if let Some(user) = user {
        chown(pipe, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    }
    let value = SecretValue::copy_of(key.value().expose())?;
    let to = pipe.to_owned();
    let writer = tokio::task::spawn_blocking(move || {
        // Returns when the other end is opened.
        let pipe = OpenOptions::new().write(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(to)?;
        io::Write::write_all(&mut &pipe, value.expose())
    });
    let replace = async {
        qmp.execute(object_del { id: MASTER_KEY_ID.to_owned() }).await?;
        let object = json!({"qom-type": "secret", "id": MASTER_KEY_ID, "format": "raw", "file": pipe});
        qmp.execute_json("object-add", Some(&object), COMMAND_DEADLINE).await
    };
    let replaced = replace.await;
    // A writer to whom QEMU never came is let go.
    let _end = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(pipe)?;
    let written = writer.await?;
    replaced?;
    Ok(written?)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_key_in_memory_is_read_by_others_and_gone_afterwards() {
        let key = MasterKey::generate(&mut os_random()).unwrap();
        let memory = KeyInMemory::new(&key).unwrap();
        let mut reader = File::from(memory.for_reading().unwrap());
        let mut read = [0; MASTER_KEY_LEN];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(&read, key.value().expose());
        reader.write_all_at(b"x", 0).unwrap_err();
        reader.set_len(0).unwrap_err();
        let kept = memory.0.try_clone().unwrap();
        kept.set_len(0).unwrap_err();
        let (again, same) = KeyInMemory::read(kept.try_clone().unwrap()).unwrap();
        assert_eq!(again.value(), key.value());
        drop(same);
        reader.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(read, [0; MASTER_KEY_LEN]);
        drop(memory);
    }

    #[test]
    fn what_is_no_key_is_not_taken_for_one() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 8], 0).unwrap();
        assert!(KeyInMemory::read(file).is_none());
    }
}
