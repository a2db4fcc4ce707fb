//! Files that appear whole or not at all, and that nobody else could have written.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use tempfile::{Builder, NamedTempFile};

use crate::keystore::KeystoreError;

/// How the names of unfinished files begin. Nothing reads those; the next writer removes them.
pub(super) const TEMPORARY: &str = ".tmp-";

/// The longest file that is read: a value of the largest size, encrypted, and room for age's header.
pub(super) const MAX_FILE_LEN: u64 = crate::secret::MAX_VALUE_LEN as u64 + (64 << 10);

/// A file in the making, 0600, gone when dropped.
pub(super) fn temporary(dir: &Path) -> io::Result<NamedTempFile> {
    Builder::new().prefix(TEMPORARY).permissions(Permissions::from_mode(0o600)).tempfile_in(dir)
}

/// What becomes of a file that is there already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Existing {
    /// It is replaced.
    Replace,
    /// It stays, and nothing is written.
    Keep,
}

/// Puts a file in place in one step. Before it, and after a power loss in the middle of it, the old one is there.
pub(super) fn replace(path: &Path, content: &[u8]) -> Result<(), KeystoreError> {
    place(path, content, 0o600, Existing::Replace).map(|_| ())
}

/// The same with a mode, and a choice; whether the file is the new one.
pub(super) fn place(
    path: &Path,
    content: &[u8],
    mode: u32,
    existing: Existing,
) -> Result<bool, KeystoreError> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let error = KeystoreError::io(path, "written");
    let write = || {
        let mut file = temporary(dir)?;
        file.write_all(content)?;
        // Whatever the umask of who is at work: others are to read it.
        file.as_file().set_permissions(Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        match existing {
            Existing::Replace => file.persist(path).map(drop).map_err(|e| e.error)?,
            Existing::Keep => match file.persist_noclobber(path) {
                Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
                done => done.map(drop).map_err(|e| e.error)?,
            },
        }
        // Where this user may write the directory and not read it, the names last a little later.
        match File::open(dir) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(true),
            dir => dir?.sync_all().map(|()| true),
        }
    };
    write().map_err(error)
}

/// Writes a file that can be made again: in place, and not synced.
pub(super) fn write_cache(path: &Path, content: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(content.as_bytes())
}

/// Makes the names in a directory last.
pub(super) fn sync_dir(dir: &Path) -> Result<(), KeystoreError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(KeystoreError::io(dir, "synced"))
}

/// Removes a file; one that is not there is as good.
pub(super) fn remove(path: &Path) -> Result<(), KeystoreError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(KeystoreError::io(path, "removed")(e)),
        _ => Ok(()),
    }
}

/// The content of a file that only its owner can have written, or `None` if it is not there.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, KeystoreError> {
    let Some(file) = open(path)? else { return Ok(None) };
    check_owner(path, &file)?;
    content(path, file).map(Some)
}

/// The content of a file in a directory that several users add files to, and whose it is. Another name of it would be
/// one that its owner did not give it.
pub(super) fn read_anyones(path: &Path) -> Result<Option<(Vec<u8>, u32)>, KeystoreError> {
    let Some(file) = open(path)? else { return Ok(None) };
    let metadata = file.metadata().map_err(KeystoreError::io(path, "read"))?;
    check_mode(path, metadata.mode())?;
    if metadata.nlink() != 1 {
        let why = format!("it has {} names", metadata.nlink());
        return Err(KeystoreError::Foreign { path: path.to_owned(), why });
    }
    Ok(Some((content(path, file)?, metadata.uid())))
}

/// A regular file. Without waiting for the other end of what is none.
fn open(path: &Path) -> Result<Option<File>, KeystoreError> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let no_file = || KeystoreError::Damaged { path: path.to_owned(), why: "it is no file".to_owned() };
    let file = match OpenOptions::new().read(true).custom_flags(flags.bits()).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        // A symbolic link, or a socket.
        Err(e) if [Some(Errno::ELOOP as i32), Some(Errno::ENXIO as i32)].contains(&e.raw_os_error()) => {
            return Err(no_file());
        }
        Err(e) => return Err(KeystoreError::io(path, "read")(e)),
    };
    let is_file = file.metadata().map_err(KeystoreError::io(path, "read"))?.is_file();
    if is_file { Ok(Some(file)) } else { Err(no_file()) }
}

fn content(path: &Path, file: File) -> Result<Vec<u8>, KeystoreError> {
    let mut content = Vec::new();
    file.take(MAX_FILE_LEN + 1).read_to_end(&mut content).map_err(KeystoreError::io(path, "read"))?;
    if content.len() as u64 > MAX_FILE_LEN {
        return Err(KeystoreError::Damaged { path: path.to_owned(), why: "it is too long".to_owned() });
    }
    Ok(content)
}

/// The same for a text.
pub(in crate::keystore) fn read_text(path: &Path) -> Result<Option<String>, KeystoreError> {
    read(path)?.map(|content| text(path, content)).transpose()
}

/// A file's content as text.
pub(super) fn text(path: &Path, content: Vec<u8>) -> Result<String, KeystoreError> {
    String::from_utf8(content)
        .map_err(|_| KeystoreError::Damaged { path: path.to_owned(), why: "it is not text".to_owned() })
}

/// Refuses what somebody else than this user and root could have written: who can put a file of his own here
/// chooses the passphrase of a disk.
pub(in crate::keystore) fn check_owner(path: &Path, file: &File) -> Result<(), KeystoreError> {
    let metadata = file.metadata().map_err(KeystoreError::io(path, "read"))?;
    let (uid, me) = (metadata.uid(), geteuid().as_raw());
    if uid != 0 && uid != me {
        let why = format!("it belongs to the user {uid}, not to root or to the user {me}");
        return Err(KeystoreError::Unsafe { path: path.to_owned(), why });
    }
    check_mode(path, metadata.mode())
}

/// Refuses what others than its owner can write.
fn check_mode(path: &Path, mode: u32) -> Result<(), KeystoreError> {
    if mode & 0o022 != 0 {
        let why = format!("others may write it (its mode is {:04o})", mode & 0o7777);
        return Err(KeystoreError::Unsafe { path: path.to_owned(), why });
    }
    Ok(())
}
