//! Raw LUKS1 images unlocked here instead of in QEMU, whose main loop stands still while it derives a key.
//!
//! The image's header is read, its volume key is derived and verified, and QEMU gets two descriptors: the image, and a
//! header of one opening for the same volume key. An image on a server QEMU opens by itself. What is unusual is left to
//! QEMU, which knows what to say about it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::sync::Arc;
use std::thread;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use tokio::sync::oneshot;
use zlink::futures_util::future::join_all;

use crate::keystore::ResolvedSecrets;
use crate::luks::{
    self, Container, LUKS1_HEADER_LEN, Luks1Header, LuksHeader, ReadAt, UnlockError, VolumeKey,
};
use crate::qemu::Capabilities;
use crate::qemu::storage::{LocalImage, RawLuks, ServerImage};
use crate::qmp::{Qmp, QmpError};
use crate::secret::{SecretValue, ValueError, os_random, wiping_stack};
use crate::xml::{Span, keywords};

use super::opened::{ImageError, look_at, reopen};
use super::server_header::Reader;

/// How many iterations a header asks for before it is unlocked here: those of 50 ms or so of QEMU's main loop. Below, the
/// image that `volume create` makes for a generated key among them, there is nothing to win.
const WORTHWHILE: u64 = 400_000;

keywords! {
    /// Who derives the keys of LUKS disks.
    #[derive(Default)]
    pub enum Unlock {
        /// vmward where it pays and where it can, QEMU for all others.
        #[default]
        Auto = "auto",
        /// QEMU.
        Qemu = "qemu",
    }
}

/// An image whose volume key is known.
pub(super) struct Unlocked {
    /// The name of its protocol node.
    pub(super) node: String,
    /// Open as QEMU is to have it, unless it is on a server.
    pub(super) image: Option<File>,
    /// How it is unlocked.
    pub(super) luks: RawLuks,
    pub(super) header: HeaderBeside,
    /// Where the XML has it.
    pub(super) span: Span,
}

/// The header of one opening, on its way to QEMU.
pub(super) struct HeaderBeside {
    /// What opens it.
    pub(super) passphrase: Arc<SecretValue>,
    /// Where it is.
    pub(super) memory: OwnedFd,
    pub(super) opening: Opening,
}

/// An image that QEMU is opening.
pub(super) struct Opening {
    /// What it is called.
    name: String,
    /// The name of its protocol node.
    node: String,
    /// The image, open for this alone, unless it is on a server.
    image: Option<File>,
    /// What its header said.
    header: Luks1Header,
    beside: Beside,
}

/// The header of one opening. Dropped, it is wiped, also in QEMU, which has the same memory.
struct Beside(File);

/// An image that is to be unlocked here.
struct Slow {
    /// What it is called.
    name: String,
    /// The name of its protocol node.
    node: String,
    luks: RawLuks,
    span: Span,
    image: Image,
    header: Luks1Header,
}

/// Where its key material is.
enum Image {
    /// In a file or on a block device, which QEMU has in this way.
    Here { file: File, read_only: bool, direct: bool },
    /// In memory: what was read from a server.
    Read(Vec<u8>),
}

impl ReadAt for Image {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::Here { file, .. } => ReadAt::read_exact_at(file, buffer, offset),
            Self::Read(bytes) => bytes[..].read_exact_at(buffer, offset),
        }
    }
}

/// Unlocks those of the images for which that pays, all at once. QEMU opens the others by itself.
pub(super) async fn unlock(
    images: &[LocalImage],
    servers: &[ServerImage],
    how: Unlock,
    capabilities: &Capabilities,
    secrets: &Arc<ResolvedSecrets>,
    reader: &Reader<'_>,
) -> Result<Vec<Unlocked>, ImageError> {
    if how == Unlock::Qemu || !capabilities.has_detached_luks_headers() {
        return Ok(Vec::new());
    }
    let mut slow: Vec<Slow> = images.iter().filter_map(Slow::look).collect();
    for found in look_on_servers(servers, secrets, reader).await {
        slow.extend(found?);
    }
    if slow.is_empty() {
        return Ok(Vec::new());
    }
    let secrets = Arc::clone(secrets);
    let (sender, receiver) = oneshot::channel();
    // A thread of its own: the end of the process waits for those of tokio, and nobody can hurry a derivation.
    let derive = move || {
        // Nobody may be waiting any more.
        let _ = sender.send(derive(&slow, &secrets));
    };
    if let Err(e) = thread::Builder::new().name("unlock".to_owned()).spawn(derive) {
        tracing::warn!("QEMU unlocks the LUKS disks: there is no thread for it here: {e}");
        return Ok(Vec::new());
    }
    match receiver.await {
        Ok(unlocked) => unlocked,
        // It has panicked. QEMU does what was not done.
        Err(_) => Ok(Vec::new()),
    }
}

/// Those of the images on servers that are worth it; all are looked at at once.
async fn look_on_servers(
    images: &[ServerImage],
    secrets: &ResolvedSecrets,
    reader: &Reader<'_>,
) -> Vec<Result<Option<Slow>, ImageError>> {
    if images.is_empty() || !reader.can_compare().await {
        return Vec::new();
    }
    let looks = images.iter().map(async |image| {
        let found = reader.look(image, secrets).await?;
        Ok(found.map(|(header, read)| Slow {
            name: image.name.clone(),
            node: image.node.clone(),
            luks: image.luks.clone(),
            span: image.span,
            image: Image::Read(read),
            header,
        }))
    });
    join_all(looks).await
}

/// All at once, on all processors.
fn derive(slow: &[Slow], secrets: &ResolvedSecrets) -> Result<Vec<Unlocked>, ImageError> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let (images, containers): (Vec<_>, Vec<_>) = slow
        .iter()
        .filter_map(|slow| {
            let passphrase = secrets.get(&slow.luks.secret)?;
            Some((slow, Container { header: &slow.header, image: &slow.image, passphrase }))
        })
        .unzip();
    wiping_stack(|| {
        let keys = luks::unlock(&containers, processors);
        images.into_iter().zip(keys).filter_map(|(image, key)| image.unlocked(key).transpose()).collect()
    })
}

impl Slow {
    /// Reads the header of an image on this host. `None`: QEMU is to open it.
    fn look(local: &LocalImage) -> Option<Self> {
        let luks = local.luks.as_ref()?;
        let file = look_at(&local.path).ok()?;
        let kind = file.metadata().ok()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return None;
        }
        let header = header_of(&file).filter(is_worthwhile)?;
        Some(Self {
            name: local.path.clone(),
            node: local.node.clone(),
            luks: luks.clone(),
            span: local.span,
            image: Image::Here { file, read_only: local.read_only, direct: local.direct },
            header,
        })
    }

    /// With its key, if that was found. `None`: QEMU is to open it.
    fn unlocked(&self, key: Result<(usize, VolumeKey), UnlockError>) -> Result<Option<Unlocked>, ImageError> {
        let path = &self.name;
        match key.map_err(Failed::from).and_then(|(_, key)| self.with_header(key)) {
            Ok(unlocked) => Ok(Some(unlocked)),
            Err(Failed::Luks(UnlockError::WrongPassphrase)) => {
                Err(ImageError::WrongPassphrase { path: path.clone() })
            }
            Err(e) => {
                tracing::warn!("{path} is not unlocked outside QEMU: {e}");
                Ok(None)
            }
        }
    }

    fn with_header(&self, key: VolumeKey) -> Result<Unlocked, Failed> {
        let once = SecretValue::random_passphrase()?;
        let header = self.header.ephemeral(&key, &once, &mut os_random())?;
        drop(key);
        let beside = Beside::new(&header)?;
        let (image, own) = match &self.image {
            Image::Here { file, read_only, direct } => {
                (Some(reopen(file, *read_only, *direct)?), Some(file.try_clone()?))
            }
            Image::Read(_) => (None, None),
        };
        let header = HeaderBeside {
            passphrase: Arc::new(once),
            memory: beside.0.try_clone()?.into(),
            opening: Opening {
                name: self.name.clone(),
                node: self.node.clone(),
                image: own,
                header: self.header.clone(),
                beside,
            },
        };
        Ok(Unlocked { node: self.node.clone(), image, luks: self.luks.clone(), header, span: self.span })
    }
}

/// Why an image is left to QEMU.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Luks(#[from] UnlockError),
    #[error(transparent)]
    Memory(#[from] ValueError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// QEMU has opened the images: makes sure that each is still the one that was unlocked. QEMU itself cannot notice a wrong
/// volume key. The headers beside the images are wiped, whatever comes of it.
pub(super) async fn finish(
    openings: Vec<Opening>,
    qmp: &Qmp,
    reader: &Reader<'_>,
) -> Result<Result<(), ImageError>, QmpError> {
    let (mut here, mut on_servers) = (Vec::new(), Vec::new());
    for Opening { name, node, image, header, beside } in openings {
        drop(beside);
        match image {
            Some(image) => here.push((name, header, header_of(&image))),
            None => on_servers.push((name, node, header)),
        }
    }
    if let Some((path, ..)) = here.iter().find(|(_, header, now)| !header.is_same(now.as_ref())) {
        return Ok(Err(ImageError::Changed { path: path.clone() }));
    }
    if on_servers.is_empty() {
        return Ok(Ok(()));
    }
    // By QEMU's own node: another connection may lead to another image, and servers need not take a second one.
    let nodes: Vec<_> = on_servers.iter().map(|(_, node, _)| node.as_str()).collect();
    let shown = reader.shown(qmp, &nodes).await?;
    for ((path, _, header), shown) in on_servers.into_iter().zip(shown) {
        match shown {
            Ok(bytes) if header.is_same(header_of(&bytes[..]).as_ref()) => {}
            Ok(_) => return Ok(Err(ImageError::Changed { path })),
            Err(e) => return Ok(Err(ImageError::Unread { path, source: Box::new(e) })),
        }
    }
    Ok(Ok(()))
}

impl Beside {
    fn new(header: &SecretValue) -> io::Result<Self> {
        let file = Self(memfd_create(c"luks-header", MFdFlags::MFD_CLOEXEC)?.into());
        file.0.write_all_at(header.expose(), 0)?;
        Ok(file)
    }

    fn wipe(&self) -> io::Result<()> {
        const ZEROES: &[u8] = &[0; 4096];
        let len = self.0.metadata()?.len();
        for at in (0..len).step_by(ZEROES.len()) {
            let rest = usize::try_from(len - at).unwrap_or(usize::MAX);
            self.0.write_all_at(&ZEROES[..rest.min(ZEROES.len())], at)?;
        }
        // QEMU keeps it as long as the disk: it needs no memory for that.
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&self.0, hole, 0, i64::try_from(len).unwrap_or(i64::MAX))?;
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if let Err(e) = self.wipe() {
            tracing::error!("the LUKS header of one opening could not be wiped: {e}");
        }
    }
}

/// Whether it pays, and nothing about it is unusual.
pub(super) fn is_worthwhile(header: &Luks1Header) -> bool {
    if header.opening_cost() < WORTHWHILE {
        return false;
    }
    let suite = header.suite();
    if let Err(e) = &suite {
        tracing::debug!("QEMU unlocks the LUKS container {}: {e}", header.uuid);
    }
    suite.is_ok()
}

/// The LUKS1 header at the start of an image.
pub(super) fn header_of(image: &(impl ReadAt + ?Sized)) -> Option<Luks1Header> {
    let mut bytes = [0; LUKS1_HEADER_LEN];
    image.read_exact_at(&mut bytes, 0).ok()?;
    match LuksHeader::parse(&bytes).ok()? {
        LuksHeader::V1(header) => Some(*header),
        LuksHeader::V2(_) => None,
    }
}
