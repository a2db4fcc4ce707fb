//! Images of files and block devices, opened here for QEMU: with this process's rights, so that QEMU's user needs none on
//! them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;
use qapi::qmp::query_fdsets;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::keystore::ResolvedSecrets;
use crate::qemu::Capabilities;
use crate::qemu::storage::{Images, LocalImage, RawLuks, ServerImage};
use crate::qmp::{COMMAND_DEADLINE, FdSetPaths, Qmp, QmpError, Sent};
use crate::volume;
use crate::xml::Span;

use super::checkpoint::Checkpoint;
use super::server_header::{ReadError, Reader};
use super::unlock::{Derivation, HeaderBeside, Locked, NotDerived, Unlock, find};

/// Why QEMU does not get an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The passphrase opens none of the image's key slots.
    #[error("{path} cannot be unlocked: no key slot opens with the value of its secret")]
    WrongPassphrase {
        /// The image.
        path: String,
    },
    /// The image is fine as far as its header tells, and still there is no key.
    #[error("{path} could not be unlocked")]
    NotUnlocked {
        /// The image.
        path: String,
        /// Why.
        #[source]
        source: NotDerived,
    },
    /// The thread that derives keys has not done it.
    #[error("the keys of the LUKS images could not be derived")]
    Underived,
    /// The image has become another one since its header was read.
    #[error("{path} is not the image any more that it was when its LUKS header was read")]
    Changed {
        /// The image.
        path: String,
    },
    /// The header of an image on a server was not read.
    #[error("the LUKS header of {path} could not be read")]
    Unread {
        /// The image.
        path: String,
        /// Why.
        #[source]
        source: Box<ReadError>,
    },
    /// It could not be opened.
    #[error("the image {path} could not be opened for {}{}", purpose(*read_only), uncached(*direct))]
    NotOpened {
        /// The image.
        path: String,
        /// Whether it was for reading only.
        read_only: bool,
        /// Whether it was to be past the host's cache.
        direct: bool,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// There is another file at its path.
    #[error("{path} is another file than the one that QEMU has open")]
    Replaced {
        /// The path.
        path: String,
    },
}

fn purpose(read_only: bool) -> &'static str {
    if read_only { "reading" } else { "reading and writing" }
}

fn uncached(direct: bool) -> &'static str {
    if direct { " with O_DIRECT, which the cache mode of its disk asks for" } else { "" }
}

/// A set of descriptors of one node, of which QEMU keeps one as long as the node is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdSet {
    /// Its number.
    pub number: u32,
    /// The node.
    pub node: String,
    /// The image that is in it; `None`: the header of one opening, beside the image of a luks node.
    pub image: Option<OpenImage>,
}

/// An image that QEMU has open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenImage {
    /// Where it was found.
    pub path: String,
    /// Whether QEMU can only read it.
    pub read_only: bool,
    direct: bool,
    device: u64,
    inode: u64,
}

/// An image on its way to QEMU.
pub(super) struct Opened {
    /// `None`: it is on a server, and QEMU opens it.
    local: Option<Local>,
    header: Option<(RawLuks, HeaderBeside)>,
    span: Span,
}

/// An image of this host.
struct Local {
    image: LocalImage,
    /// Open as QEMU is to have it. To be let go of once QEMU has it: locks on the image last as long as any copy.
    file: File,
    open: OpenImage,
}

/// Opens images, and finds those that are to be unlocked here. Those that QEMU has to open by itself are left out.
/// Before QEMU opens the others, the keys of some are to be derived.
pub(super) async fn open_images(
    images: &[LocalImage],
    servers: &[ServerImage],
    how: Unlock,
    capabilities: &Capabilities,
    secrets: &ResolvedSecrets,
    reader: &Reader<'_>,
) -> Result<(Vec<Opened>, Vec<Derivation>), ImageError> {
    let mut locked = find(images, servers, how, capabilities, secrets, reader).await?;
    let (mut opened, mut derivations) = (Vec::new(), Vec::new());
    for image in images {
        let Some(place) = locked.iter().position(|locked| locked.node == image.node) else {
            opened.extend(open_locked(image)?);
            continue;
        };
        if let Locked { image: Some(file), luks, header, derivation, span, .. } = locked.swap_remove(place) {
            derivations.push(derivation);
            opened.push(Opened { local: Some(Local::new(image, file)?), header: Some((luks, header)), span });
        }
    }
    for Locked { luks, header, derivation, span, .. } in locked {
        derivations.push(derivation);
        opened.push(Opened { local: None, header: Some((luks, header)), span });
    }
    Ok((opened, derivations))
}

/// Opens an image that QEMU is to unlock by itself. `None`: QEMU has to open it, too.
pub(super) fn open_locked(image: &LocalImage) -> Result<Option<Opened>, ImageError> {
    let Some(file) = open(image)? else { return Ok(None) };
    Ok(Some(Opened { local: Some(Local::new(image, file)?), header: None, span: image.span }))
}

impl Local {
    fn new(image: &LocalImage, file: File) -> Result<Self, ImageError> {
        let LocalImage { path, read_only, direct, .. } = image;
        let open = OpenImage::of(&file, path, *read_only, *direct)
            .map_err(|source| not_opened(path, *read_only, *direct, source))?;
        Ok(Self { image: image.clone(), file, open })
    }
}

/// Opens an image as QEMU is to have it. `None`: its header names another file, which QEMU looks for from the image's path.
fn open(image: &LocalImage) -> Result<Option<File>, ImageError> {
    let failed = |source| not_opened(&image.path, image.read_only, image.direct, source);
    let file = look_at(&image.path).map_err(failed)?;
    if image.backing_in_header || image.data_in_header {
        let header = volume::Image::read(&file, Path::new(&image.path));
        let names_another = header.as_ref().is_ok_and(|header| {
            image.backing_in_header && header.backing.is_some() || image.data_in_header && header.data_file
        });
        if names_another {
            return Ok(None);
        }
    }
    reopen(&file, image.read_only, image.direct).map(Some).map_err(failed)
}

fn not_opened(path: &str, read_only: bool, direct: bool, source: io::Error) -> ImageError {
    // What the system says of a file system that has no such thing.
    let direct = direct && source.kind() == io::ErrorKind::InvalidInput;
    ImageError::NotOpened { path: path.to_owned(), read_only, direct, source }
}

/// Opens what is at a path to look at it.
pub(super) fn look_at(path: &str) -> io::Result<File> {
    // A pipe in its place must hold up nobody.
    OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)
}

/// The very image that was looked at as QEMU is to have it, whatever is at its path by now.
pub(super) fn reopen(image: &File, read_only: bool, direct: bool) -> io::Result<File> {
    let direct = if direct { OFlag::O_DIRECT } else { OFlag::empty() };
    OpenOptions::new()
        .read(true)
        .write(!read_only)
        // A drive without a medium does not open otherwise. QEMU sets it as it needs it.
        .custom_flags((direct | OFlag::O_NONBLOCK).bits())
        .open(format!("/proc/self/fd/{}", image.as_raw_fd()))
}

/// Has images opened through sets whose numbers `number` gives. What QEMU is to get: descriptors, each for a set of its own.
pub(super) fn hand_over<T: Images>(
    opened: Vec<Opened>,
    told: &mut T,
    mut number: impl FnMut(&mut T, &str, Span) -> u32,
) -> Vec<(FdSet, OwnedFd)> {
    let mut descriptors = Vec::new();
    for Opened { local, header, span } in opened {
        if let Some(Local { image, file, open }) = local {
            let set = number(told, &image.node, span);
            told.open_in_set(&image, set);
            descriptors.push((FdSet { number: set, node: image.node, image: Some(open) }, file.into()));
        }
        if let Some((luks, header)) = header {
            let set = number(told, &luks.format, span);
            told.open_with_header(&luks, set, &header.passphrase);
            descriptors.push((FdSet { number: set, node: luks.format, image: None }, header.memory));
        }
    }
    descriptors
}

/// The numbers that no set has in a QEMU that runs.
pub(super) async fn free_fd_sets(qmp: &Qmp) -> Result<impl Iterator<Item = u32>, QmpError> {
    let sets = qmp.execute(query_fdsets {}).await?;
    let highest = sets.iter().filter_map(|set| u32::try_from(set.fdset_id).ok()).max();
    Ok(highest.map_or(0, |n| n.saturating_add(1))..)
}

impl OpenImage {
    fn of(file: &File, path: &str, read_only: bool, direct: bool) -> io::Result<Self> {
        let there = file.metadata()?;
        Ok(Self { path: path.to_owned(), read_only, direct, device: there.dev(), inode: there.ino() })
    }

    /// Whether a file is the one that QEMU has open.
    pub(super) fn is(&self, file: &File) -> io::Result<bool> {
        let there = file.metadata()?;
        Ok((there.dev(), there.ino()) == (self.device, self.inode))
    }

    /// Opens it once more, in one way or the other.
    fn again(&self, read_only: bool) -> Result<File, ImageError> {
        let failed = |source| not_opened(&self.path, read_only, self.direct, source);
        let file = look_at(&self.path).map_err(failed)?;
        if !self.is(&file).map_err(failed)? {
            return Err(ImageError::Replaced { path: self.path.clone() });
        }
        reopen(&file, read_only, self.direct).map_err(failed)
    }
}

impl FdSet {
    /// Where its image was found.
    pub fn path(&self) -> Option<&str> {
        self.image.as_ref().map(|image| image.path.as_str())
    }

    /// Whether QEMU can only read its image.
    pub fn is_read_only(&self) -> bool {
        self.image.as_ref().is_some_and(|image| image.read_only)
    }

    /// From now on QEMU writes to its image.
    pub(super) fn note_written(&mut self) {
        self.image.iter_mut().for_each(|image| image.read_only = false);
    }

    /// Has QEMU's words name the image instead.
    pub(super) fn name_in(&self, paths: &FdSetPaths) {
        if let Some(image) = &self.image {
            paths.note(self.number, &image.path);
        }
    }

    /// Sends QEMU what is in it.
    pub(super) async fn send<'a>(&self, qmp: &'a Qmp, descriptor: OwnedFd) -> Result<Sent<'a>, QmpError> {
        self.name_in(qmp.fd_sets());
        qmp.send_fd(self.number, &self.node, descriptor).await
    }

    /// Gives QEMU what is in it. The descriptor's number in QEMU.
    pub(super) async fn add(&self, qmp: &Qmp, descriptor: OwnedFd) -> Result<i64, QmpError> {
        self.name_in(qmp.fd_sets());
        let added = qmp.add_fd(self.number, &self.node, descriptor).await?;
        Checkpoint::DescriptorAdded.passed();
        Ok(added)
    }

    async fn remove(&self, qmp: &Qmp, descriptor: i64) -> Result<(), QmpError> {
        let arguments = json!({ "fdset-id": self.number, "fd": descriptor });
        qmp.execute_json("remove-fd", Some(&arguments), COMMAND_DEADLINE).await.map(drop)
    }
}

/// An image that QEMU only reads, while it may write to it. There are two descriptors in its set, and never one of those that
/// had a turn before: what that still has locked would be in QEMU's own way.
pub(super) struct Writable<'a> {
    qmp: &'a Qmp,
    set: FdSet,
    for_writing: i64,
    for_reading: i64,
}

impl<'a> Writable<'a> {
    /// Lets QEMU write to it. [`end`](Self::end) follows.
    pub(super) async fn begin<E: From<ImageError> + From<QmpError>>(
        qmp: &'a Qmp,
        set: &FdSet,
        image: &OpenImage,
    ) -> Result<Self, E> {
        let (writing, reading) = (image.again(false)?, image.again(true)?);
        let sets = qmp.execute(query_fdsets {}).await?;
        let before = sets.into_iter().filter(|s| s.fdset_id == i64::from(set.number)).flat_map(|s| s.fds);
        let for_writing = set.add(qmp, writing.into()).await?;
        let for_reading = set.add(qmp, reading.into()).await?;
        for old in before {
            set.remove(qmp, old.fd).await?;
        }
        Ok(Self { qmp, set: set.clone(), for_writing, for_reading })
    }

    /// The number of its set.
    pub(super) fn number(&self) -> u32 {
        self.set.number
    }

    /// From now on QEMU only writes, or only reads, whatever it did meanwhile.
    pub(super) async fn end(self, writes: bool) {
        let done = if writes { self.for_reading } else { self.for_writing };
        if let Err(e) = self.set.remove(self.qmp, done).await
            && !e.is_disconnect()
        {
            tracing::warn!("a descriptor of {} stays in QEMU until the guest ends: {e}", self.set.node);
        }
    }
}
