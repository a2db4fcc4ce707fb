//! The domain's private directory while it runs.
//!
//! It belongs to the user that QEMU runs as, who may be somebody else than the supervisor and is not trusted
//! with more than its own guest: no file in here is followed if it is a symbolic link, or taken if it is there
//! unasked. The directory above belongs to the supervisor's user, so the path itself can be relied on.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::statfs::{FsType, TMPFS_MAGIC, fstatfs};
use nix::unistd::geteuid;

use crate::qemu::MASTER_KEY_FILE;
use crate::secret::{MasterKey, SecretValue};

use super::SupervisorError;
use super::checkpoint::Checkpoint;
use super::control::CONTROL_SOCKET;
use super::user::User;

/// The monitor's socket in the lib dir.
pub const MONITOR_SOCKET: &str = "monitor.sock";

/// `linux/magic.h`.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// How long somebody may look into a lib dir that has no supervisor, to see what is left in it.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// More than a state file ever has; what is longer was not written by vmward.
const MAX_FILE_LEN: u64 = 16 << 20;

/// A lib dir, locked for this process until it is dropped.
#[derive(Debug)]
pub struct LibDir {
    path: PathBuf,
    /// The lock is on the directory itself, so that it goes with it.
    lock: File,
}

impl LibDir {
    /// Makes the lib dir of a domain, or takes the one that a dead supervisor left. While another supervisor
    /// has it, that is an error.
    pub fn claim(runtime_dir: &Path, name: &str) -> Result<Self, SupervisorError> {
        make_runtime_dir(runtime_dir)?;
        let path = runtime_dir.join(name);
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => {
                    return Err(SupervisorError::io(path, "made")(e));
                }
                _ => {}
            }
            let opened = OpenOptions::new()
                .read(true)
                .custom_flags((OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits())
                .open(&path);
            let lock = match opened {
                Ok(dir) => dir,
                // Its last owner has just removed it.
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(SupervisorError::io(path, "opened")(e)),
            };
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) if !is_served(&path) && Instant::now() < deadline => {
                    sleep(Duration::from_millis(20));
                    continue;
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(SupervisorError::AlreadyRunning { name: name.to_owned() });
                }
                Err(TryLockError::Error(e)) => return Err(SupervisorError::io(path, "locked")(e)),
            }
            let locked = lock.metadata().map_err(SupervisorError::io(&path, "read"))?;
            if locked.mode() & 0o077 != 0 {
                return Err(SupervisorError::UnsafeDirectory { path, why: "others may look into it" });
            }
            // The last owner may have removed the directory between its opening and its locking here.
            match fs::symlink_metadata(&path) {
                Ok(there) if (there.dev(), there.ino()) == (locked.dev(), locked.ino()) => {
                    return Ok(Self { path, lock });
                }
                _ => {}
            }
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the directory to the user that QEMU runs as.
    pub(super) fn hand_over(&self, user: &User) -> Result<(), SupervisorError> {
        fchown(&self.lock, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
            .map_err(SupervisorError::io(&self.path, "given to QEMU's user"))
    }

    /// Whom the directory was given to, if anybody.
    pub(super) fn user(&self) -> Option<User> {
        User::of(&self.lock.metadata().ok()?)
    }

    /// Whether what is written here can never reach a disk.
    pub(super) fn is_in_memory(&self) -> bool {
        fstatfs(&self.lock).is_ok_and(|fs| [TMPFS_MAGIC, RAMFS_MAGIC].contains(&fs.filesystem_type()))
    }

    /// Writes the master key to its file, for QEMU to read.
    pub(super) fn write_key(&self, key: &MasterKey, user: Option<&User>) -> Result<(), SupervisorError> {
        let path = self.path.join(MASTER_KEY_FILE);
        let write = || {
            let mut file = create(&path)?;
            if let Some(user) = user {
                fchown(&file, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
            }
            file.write_all(key.value().expose())?;
            file.sync_all()?;
            self.lock.sync_all()
        };
        write().map_err(SupervisorError::io(&path, "written"))
    }

    /// Reads the master key that an earlier supervisor wrote.
    pub(super) fn read_key(&self) -> Result<MasterKey, SupervisorError> {
        let path = self.path.join(MASTER_KEY_FILE);
        let file = open(&path).map_err(SupervisorError::io(&path, "read"))?;
        let value = SecretValue::read_from(file).map_err(SupervisorError::MasterKey)?;
        MasterKey::from_value(value).ok_or(SupervisorError::NoMasterKey(path))
    }

    /// Reads a file of the supervisor's own; `None` if it is not there. One that QEMU's user has put in its place is none:
    /// what is done after it is done with the supervisor's rights.
    pub(super) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, SupervisorError> {
        let path = self.path.join(name);
        let read = || {
            let file = open(&path)?;
            if file.metadata()?.uid() != geteuid().as_raw() {
                return Err(io::Error::new(ErrorKind::PermissionDenied, "it belongs to another user"));
            }
            let mut bytes = Vec::new();
            file.take(MAX_FILE_LEN).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        match read() {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(SupervisorError::io(path, "read")(e)),
        }
    }

    /// Writes a file of the supervisor's own, all of it or nothing.
    pub(super) fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), SupervisorError> {
        let path = self.path.join(name);
        let temporary = self.path.join(format!("{name}.new"));
        let write = || {
            // One from a supervisor that died while it wrote.
            remove_file(&temporary)?;
            let mut file = create(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            self.lock.sync_all()
        };
        write().map_err(SupervisorError::io(&path, "written"))
    }

    /// A listening socket that only this user and root reach.
    pub(super) fn listen(&self, name: &str) -> Result<UnixListener, SupervisorError> {
        let path = self.path.join(name);
        remove_file(&path)
            .and_then(|()| UnixListener::bind(&path))
            .map_err(SupervisorError::io(&path, "made"))
    }

    /// Overwrites the master key and removes everything in the directory.
    pub(super) fn clear(&self) -> Result<(), SupervisorError> {
        let key = self.path.join(MASTER_KEY_FILE);
        let mut done = overwrite(&key).map_err(SupervisorError::io(&key, "overwritten"));
        Checkpoint::KeyOverwritten.passed();
        for entry in fs::read_dir(&self.path).map_err(SupervisorError::io(&self.path, "read"))? {
            let entry = entry.map_err(SupervisorError::io(&self.path, "read"))?;
            let path = entry.path();
            let removed = match entry.file_type() {
                Ok(kind) if kind.is_dir() => fs::remove_dir_all(&path),
                _ => remove_file(&path),
            };
            // The rest goes all the same.
            done = done.and(removed.map_err(SupervisorError::io(path, "removed")));
        }
        done
    }

    /// Leaves nothing.
    pub(super) fn wipe(&self) -> Result<(), SupervisorError> {
        self.clear()?;
        Checkpoint::Cleared.passed();
        fs::remove_dir(&self.path).map_err(SupervisorError::io(&self.path, "removed"))
    }
}

/// Whether a supervisor answers there.
fn is_served(path: &Path) -> bool {
    UnixStream::connect(path.join(CONTROL_SOCKET)).is_ok()
}

/// The directory of all lib dirs. Where QEMU may run as another user, others may pass through it.
fn make_runtime_dir(path: &Path) -> Result<(), SupervisorError> {
    let make = || {
        if path.exists() {
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        match geteuid().is_root() {
            // Said once more, because the umask takes from what a new directory gets.
            true => fs::set_permissions(path, Permissions::from_mode(0o755)),
            false => Ok(()),
        }
    };
    make().map_err(SupervisorError::io(path, "made"))?;
    let found = fs::metadata(path).map_err(SupervisorError::io(path, "read"))?;
    if found.uid() != geteuid().as_raw() {
        return Err(SupervisorError::UnsafeDirectory {
            path: path.into(),
            why: "it belongs to another user",
        });
    }
    if found.mode() & 0o022 != 0 {
        return Err(SupervisorError::UnsafeDirectory { path: path.into(), why: "others may write to it" });
    }
    Ok(())
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits())
        .open(path)
}

/// Opens a regular file. `O_NONBLOCK`: a pipe in its place must not hold up the supervisor.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits())
        .open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(ErrorKind::InvalidData.into()) }
}

/// Overwrites a file with zeros where it is.
fn overwrite(path: &Path) -> io::Result<()> {
    let opened = OpenOptions::new()
        .write(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits())
        .open(path);
    let mut file = match opened {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        // A link is not the key that was written here.
        Err(e) if e.raw_os_error() == Some(Errno::ELOOP as i32) => return Ok(()),
        other => other?,
    };
    let len = file.metadata()?.len().min(MAX_FILE_LEN);
    file.rewind()?;
    io::copy(&mut io::repeat(0).take(len), &mut file)?;
    file.sync_all()
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use crate::secret::os_random;

    use super::*;

    fn runtime() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn one_supervisor_at_a_time() {
        let runtime = runtime();
        let first = LibDir::claim(runtime.path(), "g").unwrap();
        assert_eq!(fs::metadata(first.path()).unwrap().mode() & 0o777, 0o700);
        let second = LibDir::claim(runtime.path(), "g");
        assert!(matches!(second, Err(SupervisorError::AlreadyRunning { .. })), "{second:?}");
        LibDir::claim(runtime.path(), "other").unwrap();
        drop(first);
        LibDir::claim(runtime.path(), "g").unwrap();
    }

    #[test]
    fn the_key_is_overwritten_before_it_goes() {
        let runtime = runtime();
        let dir = LibDir::claim(runtime.path(), "g").unwrap();
        let key = MasterKey::generate(&mut os_random()).unwrap();
        dir.write_key(&key, None).unwrap();
        let path = dir.path().join(MASTER_KEY_FILE);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(dir.read_key().unwrap().value(), key.value());
        // A second name keeps the contents in sight after the removal.
        let witness = runtime.path().join("witness");
        fs::hard_link(&path, &witness).unwrap();
        dir.replace("state.json", b"{}").unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        dir.wipe().unwrap();
        assert_eq!(fs::read(&witness).unwrap(), [0; 32]);
        assert!(!dir.path().exists());
    }

    #[test]
    fn a_file_of_qemus_user_is_not_the_supervisors() {
        let runtime = runtime();
        let dir = LibDir::claim(runtime.path(), "g").unwrap();
        dir.replace("state.json", b"{}").unwrap();
        assert_eq!(dir.read("state.json").unwrap().unwrap(), b"{}");
        if !geteuid().is_root() {
            println!("skipped: only root can give a file to another user");
            return;
        }
        std::os::unix::fs::chown(dir.path().join("state.json"), Some(65_534), None).unwrap();
        dir.read("state.json").unwrap_err();
    }

    #[test]
    fn a_key_is_never_written_over_or_through_something() {
        let runtime = runtime();
        let dir = LibDir::claim(runtime.path(), "g").unwrap();
        let key = MasterKey::generate(&mut os_random()).unwrap();
        symlink(runtime.path().join("elsewhere"), dir.path().join(MASTER_KEY_FILE)).unwrap();
        dir.write_key(&key, None).unwrap_err();
        assert!(!runtime.path().join("elsewhere").exists());
        dir.clear().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_lib_dir_that_others_read_is_refused() {
        let runtime = runtime();
        let path = runtime.path().join("g");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let claimed = LibDir::claim(runtime.path(), "g");
        assert!(matches!(claimed, Err(SupervisorError::UnsafeDirectory { .. })), "{claimed:?}");
    }
}
