//! What the images on this host really are, before QEMU is trusted with them.

use std::io::{self, ErrorKind, Read};
use std::path::Path;

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat};

use crate::domain::disk::{Disk, EncryptionFormat, Engine};
use crate::qemu::storage::image::{self, SNIFF_LEN};
use crate::volume;
use crate::xml::Diagnostics;

use super::opened::look_at;

/// Reads the first bytes of the local images of these disks, and says which are not there, cannot be read or written,
/// or are encrypted where the XML says that they are not, or the reverse. Returns why the first of them cannot
/// be used, if one cannot.
pub fn check_images<'a>(
    disks: impl IntoIterator<Item = &'a Disk>,
    diagnostics: &mut Diagnostics,
) -> Option<ErrorKind> {
    let mut unusable = None;
    for (image, path) in disks.into_iter().flat_map(image::readable) {
        match first_bytes(path) {
            Ok(bytes) => {
                if let Some(mismatch) = image::mismatch(image, image::sniff(&bytes)) {
                    diagnostics
                        .error(mismatch.span, format!("{path}: {}", mismatch.message))
                        .hint(mismatch.hint);
                }
                if !image.readonly
                    && let Err(e) = faccessat(AT_FDCWD, path, AccessFlags::W_OK, AtFlags::AT_EACCESS)
                {
                    let e = io::Error::from(e);
                    let message = match e.kind() {
                        ErrorKind::PermissionDenied => format!("the image {path} is not yours to write"),
                        _ => format!("the image {path} cannot be written: {e}"),
                    };
                    diagnostics.error(image.span, message).hint("<readonly/> makes a disk that is only read");
                    unusable.get_or_insert(e.kind());
                }
            }
            Err(e) => {
                let message = match e.kind() {
                    ErrorKind::NotFound => format!("there is no image {path}"),
                    ErrorKind::PermissionDenied => format!("the image {path} is not yours to read"),
                    _ => format!("the image {path} cannot be read: {e}"),
                };
                diagnostics.error(image.span, message);
                unusable.get_or_insert(e.kind());
            }
        }
    }
    unusable
}

/// Says which local images take long to open, and about how long: their LUKS headers ask for so many iterations. Images
/// that cannot be read are left to [`check_images`].
pub fn warn_of_slow_images<'a>(disks: impl IntoIterator<Item = &'a Disk>, diagnostics: &mut Diagnostics) {
    /// Less is not worth a word.
    const SLOW_SECONDS: f64 = 0.5;
    for (image, path) in disks.into_iter().flat_map(image::readable) {
        let Some(encryption) = &image.encryption else { continue };
        let probed = volume::Image::probe(Path::new(path)).ok();
        let Some(seconds) = probed.and_then(|p| p.opening_seconds()).filter(|s| *s >= SLOW_SECONDS) else {
            continue;
        };
        diagnostics
            .warning(
                encryption.span,
                format!("{path} takes about {seconds:.1} s to open, at each start and when it is plugged in"),
            )
            .hint(
                "that protects a passphrase that can be guessed; with a random key it is in vain: make the volume \
                 with `vmward volume create --generate`",
            );
    }
}

/// Says which images librbd may need much memory to open. Whether it does is in a header that is in the cluster.
pub fn warn_of_large_images<'a>(disks: impl IntoIterator<Item = &'a Disk>, diagnostics: &mut Diagnostics) {
    let encryptions = disks.into_iter().flat_map(Disk::chain).filter_map(|image| image.encryption.as_ref());
    for encryption in encryptions.filter(|e| e.engine == Engine::Librbd) {
        let version = match encryption.format {
            EncryptionFormat::Luks => continue,
            EncryptionFormat::Luks2 => "LUKS2",
            EncryptionFormat::LuksAny => "LUKS2, if that is what the image has,",
        };
        // Measured: QEMU's memory went from 72 to 694 MiB, and it took 2 s for each layer.
        diagnostics
            .warning(
                encryption.span,
                format!(
                    "librbd opens {version} inside QEMU: with argon2, its usual key derivation, that takes some seconds \
                     and 700 MiB of memory for a moment, at each start and when it is plugged in"
                ),
            )
            .hint(
                "a limit on the guest's memory (MemoryMax= of its unit) has to leave room for it; LUKS1 needs none: \
                 `vmward volume create --format luks` or `--format raw`",
            );
    }
}

/// The start of a file or block device; less than [`SNIFF_LEN`] if it is shorter.
pub(super) fn first_bytes(path: &str) -> io::Result<Vec<u8>> {
    let file = look_at(path)?;
    if file.metadata()?.is_dir() {
        return Err(ErrorKind::IsADirectory.into());
    }
    let mut bytes = Vec::new();
    file.take(SNIFF_LEN as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}
