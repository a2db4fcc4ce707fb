//! Destroying a volume: its keys first, then its file.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use rand::Rng;

use crate::secret::os_random;

use super::staging::sync_directory;
use super::{Image, ImageEncryption, ImageLock, VolumeError};

/// What was destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destroyed {
    /// How many bytes of headers and key slots were overwritten.
    pub overwritten: u64,
}

/// Overwrites the LUKS header with all its key slots, after which nobody can decrypt the volume, then removes the
/// file. Refused while the volume is in use, and for what is not an encrypted volume.
pub fn destroy(path: &Path) -> Result<Destroyed, VolumeError> {
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path).map_err(
            |e| match e.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ELOOP) => VolumeError::NotAFile { path: path.into(), what: "a symbolic link" },
                Some(Errno::EISDIR) => VolumeError::NotAFile { path: path.into(), what: "a directory" },
                _ => VolumeError::io(path, "opened")(e),
            },
        )?;
    let kind = file.metadata().map_err(VolumeError::io(path, "read"))?.file_type();
    if !kind.is_file() {
        return Err(VolumeError::NotAFile { path: path.into(), what: super::image::kind_name(kind) });
    }
    // Held until the file is gone.
    let _lock = ImageLock::take(&file, path)?;
    let image = Image::read(&file, path)?;
    let (Some(ImageEncryption::Luks1(_) | ImageEncryption::Luks2(_)), Some((start, len))) =
        (&image.encryption, image.key_area)
    else {
        return Err(VolumeError::NotEncrypted(path.into()));
    };
    let end = start.saturating_add(len).min(image.file_size);
    overwrite(&file, start, end).map_err(VolumeError::io(path, "overwritten"))?;
    fs::remove_file(path).map_err(VolumeError::io(path, "removed"))?;
    sync_directory(path)?;
    Ok(Destroyed { overwritten: end.saturating_sub(start) })
}

/// Random bytes: unlike zeros, no file system or device makes a hole of them and keeps the old blocks.
pub(super) fn overwrite(file: &fs::File, mut at: u64, end: u64) -> io::Result<()> {
    let mut random = os_random();
    let mut block = vec![0; 64 * 1024];
    while at < end {
        let len = usize::try_from(end - at).unwrap_or(usize::MAX).min(block.len());
        random.fill_bytes(&mut block[..len]);
        file.write_all_at(&block[..len], at)?;
        at += len as u64;
    }
    file.sync_all()
}
