//! Files that appear whole or not at all, and that nobody else could have written.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

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

/// Puts a file in place in one step. Before it, and after a power loss in the middle of it, the old one is there.
pub(super) fn replace(path: &Path, content: &[u8]) -> Result<(), KeystoreError> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let error = KeystoreError::io(path, "written");
    let write = || {
        let mut file = temporary(dir)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        File::open(dir)?.sync_all()
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
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(path);
    let file = match file {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(KeystoreError::io(path, "read")(e)),
    };
    check_owner(path, &file)?;
    let mut content = Vec::new();
    file.take(MAX_FILE_LEN + 1).read_to_end(&mut content).map_err(KeystoreError::io(path, "read"))?;
    if content.len() as u64 > MAX_FILE_LEN {
        return Err(KeystoreError::Damaged { path: path.to_owned(), why: "it is too long".to_owned() });
    }
    Ok(Some(content))
}

/// The same for a text.
pub(in crate::keystore) fn read_text(path: &Path) -> Result<Option<String>, KeystoreError> {
    let Some(content) = read(path)? else { return Ok(None) };
    String::from_utf8(content)
        .map(Some)
        .map_err(|_| KeystoreError::Damaged { path: path.to_owned(), why: "it is not text".to_owned() })
}

/// Refuses what somebody else than this user and root could have written: who can put a file of his own here
/// chooses the passphrase of a disk.
pub(in crate::keystore) fn check_owner(path: &Path, file: &File) -> Result<(), KeystoreError> {
    let metadata = file.metadata().map_err(KeystoreError::io(path, "read"))?;
    let unsafe_because = |why| Err(KeystoreError::Unsafe { path: path.to_owned(), why });
    let (uid, me) = (metadata.uid(), geteuid().as_raw());
    if uid != 0 && uid != me {
        return unsafe_because(format!("it belongs to the user {uid}, not to root or to the user {me}"));
    }
    if metadata.mode() & 0o022 != 0 {
        return unsafe_because(format!("others may write it (its mode is {:04o})", metadata.mode() & 0o7777));
    }
    Ok(())
}
