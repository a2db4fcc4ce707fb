//! What an image is, told from its own headers. No key is needed, and no file that an image names is opened.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc::O_NONBLOCK;

use crate::luks::{self, Luks1Header, Luks2Header, LuksHeader};

use super::VolumeError;
use super::qcow2::{self, Qcow2Encryption, Qcow2Header};

/// All of a qcow2 header that QEMU writes is in this; a larger one is refused as cut off.
pub(super) const PROBE_LEN: usize = 64 * 1024;

/// The formats that vmward tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// The guest's bytes, maybe inside LUKS.
    Raw,
    /// QEMU's own.
    Qcow2,
}

impl ImageFormat {
    /// As QEMU calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// How an image is encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageEncryption {
    /// LUKS version 1, QEMU's own.
    Luks1(Box<Luks1Header>),
    /// LUKS version 2.
    Luks2(Luks2Header),
    /// The old AES of qcow2.
    QcowAes,
}

/// What an image stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackingImage {
    /// As the image names it.
    pub name: String,
    /// Its format, if the image says so.
    pub format: Option<String>,
}

/// An image, as its headers describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The outer format.
    pub format: ImageFormat,
    /// What the guest sees, in bytes; for a LUKS2 header that does not say where its data is, what the container has.
    pub virtual_size: u64,
    /// The file's length in bytes.
    pub file_size: u64,
    /// What it takes on disk, in bytes, if that is known.
    pub allocated: Option<u64>,
    /// How it is encrypted, if it is.
    pub encryption: Option<ImageEncryption>,
    /// Where in the file the LUKS header begins and how far it goes with its key slots, if there is one.
    pub key_area: Option<(u64, u64)>,
    /// What it stands on.
    pub backing: Option<BackingImage>,
    /// Whether the guest's data is in another file than the headers.
    pub data_file: bool,
}

impl Image {
    /// Opens a file or block device for reading, and looks at it.
    pub fn probe(path: &Path) -> Result<Self, VolumeError> {
        Self::read(&open(path, false)?, path)
    }

    /// Looks at an open image; `path` is for messages.
    pub fn read(file: &File, path: &Path) -> Result<Self, VolumeError> {
        let io = |e| VolumeError::Io { path: path.into(), what: "read", source: e };
        let allocated = file.metadata().map_err(io)?.blocks() * 512;
        let file_size = length(file).map_err(io)?;
        Ok(Self { allocated: Some(allocated), ..Self::read_start(file, file_size, path)? })
    }

    /// Looks at the start of an image, which has `file_size` bytes, in a file.
    pub(super) fn read_start(file: &File, file_size: u64, path: &Path) -> Result<Self, VolumeError> {
        let io = |e| VolumeError::Io { path: path.into(), what: "read", source: e };
        let start = read_at(file, 0, PROBE_LEN).map_err(io)?;
        let mut image = Self {
            format: ImageFormat::Raw,
            virtual_size: file_size,
            file_size,
            allocated: None,
            encryption: None,
            key_area: None,
            backing: None,
            data_file: false,
        };
        let luks = |bytes: &[u8]| {
            LuksHeader::parse(bytes).map_err(|source| VolumeError::Luks { path: path.into(), source })
        };
        if start.starts_with(luks::MAGIC) {
            image.inside_luks(luks(&start)?);
        } else if start.starts_with(qcow2::MAGIC) {
            let header = Qcow2Header::parse(&start)
                .map_err(|source| VolumeError::Qcow2 { path: path.into(), source })?;
            image.format = ImageFormat::Qcow2;
            image.virtual_size = header.virtual_size;
            image.data_file = header.data_file;
            let format = header.backing_format;
            image.backing = header.backing.map(|name| BackingImage { name, format });
            match header.encryption {
                Qcow2Encryption::None => {}
                Qcow2Encryption::Aes => image.encryption = Some(ImageEncryption::QcowAes),
                Qcow2Encryption::Luks { offset, len } => {
                    image.key_area = Some((offset, len));
                    let bytes = read_at(file, offset, luks::LUKS1_HEADER_LEN).map_err(io)?;
                    image.encryption = Some(match luks(&bytes)? {
                        LuksHeader::V1(header) => ImageEncryption::Luks1(header),
                        LuksHeader::V2(header) => ImageEncryption::Luks2(header),
                    });
                }
            }
        }
        Ok(image)
    }

    fn inside_luks(&mut self, header: LuksHeader) {
        match header {
            LuksHeader::V1(header) => {
                self.virtual_size = self.file_size.saturating_sub(header.payload_offset);
                self.key_area = Some((0, header.payload_offset));
                self.encryption = Some(ImageEncryption::Luks1(header));
            }
            LuksHeader::V2(header) => {
                // Both copies of the header and the key slots are in front of the data, whose usual place
                // this is. Without the headers' salts no slot further on can be opened either.
                const USUAL_DATA_OFFSET: u64 = 16 << 20;
                let data = header.data_offset.unwrap_or(USUAL_DATA_OFFSET);
                // A detached header says that the data begins at 0.
                self.key_area = Some((0, data.max(USUAL_DATA_OFFSET).min(self.file_size)));
                self.virtual_size = self.file_size.saturating_sub(header.data_offset.unwrap_or_default());
                self.encryption = Some(ImageEncryption::Luks2(header));
            }
        }
    }

    /// About how long QEMU's main loop stands still each time it opens the image, in seconds, with the
    /// passphrase of the first active slot, which is the first that QEMU tries.
    pub fn opening_seconds(&self) -> Option<f64> {
        let Some(ImageEncryption::Luks1(header)) = &self.encryption else { return None };
        header.opening_seconds()
    }
}

/// Opens a file or block device, and nothing else.
pub(super) fn open(path: &Path, writable: bool) -> Result<File, VolumeError> {
    let file = OpenOptions::new()
        .read(true)
        .write(writable)
        // A pipe that nobody writes must not hold this up.
        .custom_flags(O_NONBLOCK)
        .open(path)
        .map_err(VolumeError::io(path, "opened"))?;
    let kind = file.metadata().map_err(VolumeError::io(path, "read"))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(VolumeError::NotAFile { path: path.into(), what: kind_name(kind) });
    }
    Ok(file)
}

/// A file type that is not a regular file's, for messages.
pub(super) fn kind_name(kind: std::fs::FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_block_device() {
        "a block device"
    } else {
        "something else"
    }
}

/// The path without symbolic links or relative parts, as usages of secrets name volumes. A file that does not
/// exist yet has the place of its directory.
pub fn canonical(path: &Path) -> PathBuf {
    let in_directory = || {
        let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Some(directory.canonicalize().ok()?.join(path.file_name()?))
    };
    path.canonicalize().ok().or_else(in_directory).unwrap_or_else(|| path.to_owned())
}

/// A block device's metadata says 0; seeking to its end says its size.
fn length(file: &File) -> io::Result<u64> {
    use std::io::{Seek, SeekFrom};
    let mut file = file;
    file.seek(SeekFrom::End(0))
}

/// What there is from `offset`, up to `len` bytes.
fn read_at(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut filled = 0;
    while filled < len {
        match file.read_at(&mut bytes[filled..], offset.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // Past what a file can be: there is nothing there.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => break,
            Err(e) => return Err(e),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}
