//! What is to be there on the host when QEMU starts: directories for its memory, a firmware's variables.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, fchown};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::qemu::Preparation;

use super::SupervisorError;
use super::network;
use super::user::User;

/// Directories, sockets and network devices that were made for one run of a guest. Dropped, they are gone, directories with all that is
/// in them.
#[derive(Debug, Default)]
pub(super) struct Prepared(Made);

/// What was made, for a supervisor that comes back.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Made {
    directories: Vec<PathBuf>,
    sockets: Vec<PathBuf>,
    /// Network devices, by the kernel's numbers.
    links: Vec<u32>,
}

impl Prepared {
    /// What an earlier supervisor made.
    pub(super) fn taken_over(made: Made) -> Self {
        Self(made)
    }

    /// What was made.
    pub(super) fn made(&self) -> Made {
        self.0.clone()
    }

    /// Adds a network device.
    pub(super) fn remove_link_later(&mut self, link: u32) {
        self.0.links.push(link);
    }

    /// Adds a socket.
    pub(super) fn remove_later(&mut self, socket: &Path) {
        self.0.sockets.push(socket.to_owned());
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        for link in &self.0.links {
            if let Err(e) = network::remove_link(*link) {
                tracing::error!("a macvtap device of the guest could not be removed: {e}");
            }
        }
        let directories = self.0.directories.iter().map(|path| (path, fs::remove_dir_all(path)));
        let sockets = self.0.sockets.iter().map(|path| (path, fs::remove_file(path)));
        for (path, removed) in directories.chain(sockets) {
            // QEMU removes its sockets when it ends in peace.
            if let Err(e) =
                removed.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
            {
                tracing::error!("{} could not be removed: {e}", path.display());
            }
        }
    }
}

/// Makes everything ready.
pub(super) fn prepare(list: &[Preparation], user: Option<&User>) -> Result<Prepared, SupervisorError> {
    let mut prepared = Prepared::default();
    for preparation in list {
        let (path, result) = match preparation {
            Preparation::Directory(path) => {
                let made = directory(path, user);
                if made.is_ok() {
                    prepared.0.directories.push(path.clone());
                }
                (path, made)
            }
            Preparation::Copy { from, to, .. } => (to, copy(from, to, user)),
            Preparation::Write { path, contents } => (path, write(path, contents, user)),
        };
        result.map_err(SupervisorError::io(path, "made ready for QEMU"))?;
    }
    Ok(prepared)
}

/// A directory that is QEMU's alone. One that a killed supervisor left is made anew.
fn directory(path: &Path, user: Option<&User>) -> io::Result<()> {
    path.parent().map_or(Ok(()), make_passable)?;
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    fs::DirBuilder::new().mode(0o700).create(path)?;
    match user {
        Some(user) => chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())),
        None => Ok(()),
    }
}

/// A file of a lib dir, which is wiped with all that is in it.
fn write(path: &Path, contents: &str, user: Option<&User>) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(contents.as_bytes())?;
    match user {
        Some(user) => fchown(&file, Some(user.uid.as_raw()), Some(user.gid.as_raw())),
        None => Ok(()),
    }
}

/// Makes a directory for things of several guests, with those above it: nobody lists them, everybody passes.
pub(super) fn make_passable(path: &Path) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    path.parent().map_or(Ok(()), make_passable)?;
    fs::create_dir(path)?;
    // Said by itself, because the umask takes from what a new directory gets.
    fs::set_permissions(path, fs::Permissions::from_mode(0o711))
}

/// Copies a file that is not there yet, whole or not at all.
fn copy(from: &Path, to: &Path, user: Option<&User>) -> io::Result<()> {
    if to.exists() {
        return Ok(());
    }
    let dir = to.parent().unwrap_or(Path::new("/"));
    make_passable(dir)?;
    let mut temporary = tempfile::Builder::new()
        .prefix(".vmward-")
        .make_in(dir, |path| fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path))?;
    io::copy(&mut fs::File::open(from)?, temporary.as_file_mut())?;
    if let Some(user) = user {
        fchown(temporary.as_file(), Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    }
    temporary.as_file().sync_all()?;
    temporary.persist_noclobber(to).map(drop).map_err(|e| e.error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_and_go_and_copies_stay() {
        let root = tempfile::tempdir().unwrap();
        let template = root.path().join("VARS.fd");
        fs::write(&template, "variables").unwrap();
        let (dir, copy) = (root.path().join("memory/guest"), root.path().join("nvram/guest_VARS.fd"));
        let list = [
            Preparation::Directory(dir.clone()),
            Preparation::Copy { from: template.clone(), to: copy.clone(), span: Default::default() },
        ];
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("left"), "over").unwrap();
        let prepared = prepare(&list, None).unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        assert_eq!(fs::read(&copy).unwrap(), b"variables");
        fs::write(&copy, "changed by the guest").unwrap();
        drop(prepared);
        assert!(!dir.exists());
        let _prepared = prepare(&list, None).unwrap();
        assert_eq!(fs::read(&copy).unwrap(), b"changed by the guest");
    }

    #[test]
    fn files_of_the_lib_dir_are_written_for_qemu_alone() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("session.base64");
        let list = [Preparation::Write { path: path.clone(), contents: "QQ==".to_owned() }];
        let _prepared = prepare(&list, None).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "QQ==");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let error = prepare(&list, None).unwrap_err();
        assert!(
            error.to_string().contains("session.base64"),
            "what is there is nobody's to overwrite: {error}"
        );
    }

    #[test]
    fn what_cannot_be_made_ready_is_named() {
        let root = tempfile::tempdir().unwrap();
        let to = root.path().join("guest_VARS.fd");
        let list =
            [Preparation::Copy { from: "/nonexistent".into(), to: to.clone(), span: Default::default() }];
        let error = prepare(&list, None).unwrap_err();
        assert!(error.to_string().contains(&to.display().to_string()), "{error}");
        assert!(!to.exists());
    }
}
