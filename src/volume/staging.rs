//! A new file that appears under its name when it is complete, or not at all.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::unistd::linkat;
use tempfile::TempPath;
use uuid::Uuid;

use super::VolumeError;

/// A file in the directory of its final place, readable by its owner only.
pub(super) struct Staging {
    /// The file.
    pub file: File,
    /// Its name for now, on file systems that know no files without one.
    named: Option<TempPath>,
    target: PathBuf,
}

impl Staging {
    /// A file without a name: even if vmward is killed or the power goes, nothing of it is left.
    pub(super) fn new(target: &Path) -> Result<Self, VolumeError> {
        let directory = directory(target);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .mode(0o600)
            .custom_flags(OFlag::O_TMPFILE.bits())
            .open(directory);
        match file {
            Ok(file) => Ok(Self { file, named: None, target: target.into() }),
            // NFS, FAT and others do not have it; old ones take the flag for opening a directory.
            Err(e) if matches!(e.raw_os_error(), Some(n) if [Errno::EOPNOTSUPP as i32, Errno::EISDIR as i32, Errno::EINVAL as i32].contains(&n)) => {
                Self::named(target)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(VolumeError::Missing(directory.into())),
            Err(source) => Err(VolumeError::Io { path: target.into(), what: "created", source }),
        }
    }

    /// A file with a temporary name, removed when this is dropped.
    fn named(target: &Path) -> Result<Self, VolumeError> {
        let file = tempfile::Builder::new()
            .prefix(".vmward-")
            .tempfile_in(directory(target))
            .map_err(VolumeError::io(target, "created"))?;
        let (file, named) = file.into_parts();
        Ok(Self { file, named: Some(named), target: target.into() })
    }

    /// Gives the file its name, once everything in it is on disk. What is there is replaced only if that was
    /// asked for, and in one step.
    pub(super) fn commit(self, replace: bool) -> Result<(), VolumeError> {
        let Self { file, named, target } = self;
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AlreadyExists => VolumeError::Exists(target.clone()),
            _ => VolumeError::Io { path: target.clone(), what: "created", source },
        };
        file.sync_all().map_err(failed)?;
        match named {
            Some(named) if replace => named.persist(&target).map_err(|e| failed(e.error))?,
            Some(named) => named.persist_noclobber(&target).map_err(|e| failed(e.error))?,
            None if replace => {
                let beside = directory(&target).join(format!(".vmward-{}", Uuid::new_v4()));
                link(&file, &beside).map_err(failed)?;
                if let Err(e) = fs::rename(&beside, &target) {
                    // The first error is the one to tell.
                    let _ = fs::remove_file(&beside);
                    return Err(failed(e));
                }
            }
            None => link(&file, &target).map_err(failed)?,
        }
        sync_directory(&target)
    }
}

fn link(file: &File, name: &Path) -> io::Result<()> {
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(linkat(AT_FDCWD, open.as_str(), AT_FDCWD, name, AtFlags::AT_SYMLINK_FOLLOW)?)
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes sure that a change of a directory survives a power cut.
pub(super) fn sync_directory(of: &Path) -> Result<(), VolumeError> {
    let directory = directory(of);
    File::open(directory).and_then(|d| d.sync_all()).map_err(VolumeError::io(directory, "synced"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn complete_or_not_at_all_with_and_without_a_name() {
        for stage in [Staging::new, Staging::named] {
            let dir = tempfile::tempdir().unwrap();
            let target = dir.path().join("a.img");
            let mut dropped = stage(&target).unwrap();
            dropped.file.write_all(b"half").unwrap();
            drop(dropped);
            assert!(names(dir.path()).is_empty());

            let mut first = stage(&target).unwrap();
            first.file.write_all(b"one").unwrap();
            first.commit(false).unwrap();
            assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o600);

            let mut second = stage(&target).unwrap();
            second.file.write_all(b"two").unwrap();
            assert!(matches!(second.commit(false), Err(VolumeError::Exists(_))));
            assert_eq!(fs::read(&target).unwrap(), b"one");

            let mut third = stage(&target).unwrap();
            third.file.write_all(b"three").unwrap();
            third.commit(true).unwrap();
            assert_eq!(fs::read(&target).unwrap(), b"three");
            assert_eq!(names(dir.path()), ["a.img"]);
        }
    }
}
