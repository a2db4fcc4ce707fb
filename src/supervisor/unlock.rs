//! Raw LUKS1 images unlocked here instead of in QEMU, whose main loop stands still while it derives a key.
//!
//! The image's header is read, its volume key is derived and verified, and QEMU gets two descriptors: the image, and a
//! header of one opening for the same volume key. An image on a server QEMU opens by itself. What is unusual is left to
//! QEMU, which knows what to say about it.

use std::fmt;
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
use crate::parallel::all_at_once;
use crate::qemu::Capabilities;
use crate::qemu::storage::{LocalImage, RawLuks, ServerImage};
use crate::qmp::{Qmp, QmpError};
use crate::secret::{SecretRef, SecretValue, ValueError, os_random, wiping_stack};
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

/// An image that is to be unlocked here.
pub(super) struct Locked {
    /// The name of its protocol node.
    pub(super) node: String,
    /// Open as QEMU is to have it, unless it is on a server.
    pub(super) image: Option<File>,
    /// How it is unlocked.
    pub(super) luks: RawLuks,
    pub(super) header: HeaderBeside,
    pub(super) derivation: Derivation,
    /// Where the XML has it.
    pub(super) span: Span,
}

/// The header of one opening, on its way to QEMU. It is empty until the key is [derived](derive).
pub(super) struct HeaderBeside {
    /// What opens it.
    pub(super) passphrase: Arc<SecretValue>,
    /// Where it is.
    pub(super) memory: OwnedFd,
}

/// What it takes to fill a header beside an image.
pub(super) struct Derivation {
    /// What the image is called.
    name: String,
    /// The name of its protocol node.
    node: String,
    image: Image,
    header: Luks1Header,
    /// What opens the image.
    secret: SecretRef,
    /// What is to open the header beside it.
    passphrase: Arc<SecretValue>,
    beside: Beside,
}

/// Keys that are being derived.
pub(super) struct Deriving(oneshot::Receiver<Result<Vec<Opening>, ImageError>>);

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

/// Where its key material is.
enum Image {
    /// In a file or on a block device.
    Here(File),
    /// In memory: what was read from a server.
    Read(Vec<u8>),
}

impl ReadAt for Image {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::Here(file) => ReadAt::read_exact_at(file, buffer, offset),
            Self::Read(bytes) => bytes[..].read_exact_at(buffer, offset),
        }
    }
}

/// Those of the images that are to be unlocked here because that pays, each with an empty header beside it. QEMU opens the
/// others by itself.
pub(super) async fn find(
    images: &[LocalImage],
    servers: &[ServerImage],
    how: Unlock,
    capabilities: &Capabilities,
    secrets: &ResolvedSecrets,
    reader: &Reader<'_>,
) -> Result<Vec<Locked>, ImageError> {
    if how == Unlock::Qemu || !capabilities.has_detached_luks_headers() {
        return Ok(Vec::new());
    }
    let mut found: Vec<Locked> = images.iter().filter_map(look).collect();
    for on_server in look_on_servers(servers, secrets, reader).await {
        found.extend(on_server?);
    }
    Ok(found)
}

/// Reads the header of an image on this host. `None`: QEMU is to open it.
fn look(local: &LocalImage) -> Option<Locked> {
    let luks = local.luks.as_ref()?;
    let file = look_at(&local.path).ok()?;
    let kind = file.metadata().ok()?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return None;
    }
    let header = header_of(&file).filter(is_worthwhile)?;
    let for_qemu = reopen(&file, local.read_only, local.direct);
    let for_qemu = for_qemu.inspect_err(|e| left_to_qemu(&local.path, e)).ok()?;
    let image = (Image::Here(file), Some(for_qemu));
    Locked::new(&local.path, &local.node, luks, local.span, image, header)
}

/// Those of the images on servers that are worth it; all are looked at at once.
async fn look_on_servers(
    images: &[ServerImage],
    secrets: &ResolvedSecrets,
    reader: &Reader<'_>,
) -> Vec<Result<Option<Locked>, ImageError>> {
    if images.is_empty() || !reader.can_compare().await {
        return Vec::new();
    }
    let looks = images.iter().map(async |image| {
        let found = reader.look(image, secrets).await?;
        Ok(found.and_then(|(header, read)| {
            Locked::new(&image.name, &image.node, &image.luks, image.span, (Image::Read(read), None), header)
        }))
    });
    join_all(looks).await
}

fn left_to_qemu(name: &str, why: &dyn fmt::Display) {
    tracing::warn!("{name} is not unlocked outside QEMU: {why}");
}

impl Locked {
    /// `image`: where its key material is, and as QEMU is to have it.
    fn new(
        name: &str,
        node: &str,
        luks: &RawLuks,
        span: Span,
        (image, for_qemu): (Image, Option<File>),
        header: Luks1Header,
    ) -> Option<Self> {
        let beside = || {
            let passphrase = Arc::new(SecretValue::random_passphrase()?);
            let beside = Beside::new()?;
            let memory = beside.0.try_clone()?.into();
            Ok::<_, NotDerived>((passphrase, beside, memory))
        };
        let (passphrase, beside, memory) = beside().inspect_err(|e| left_to_qemu(name, e)).ok()?;
        let derivation = Derivation {
            name: name.to_owned(),
            node: node.to_owned(),
            image,
            header,
            secret: luks.secret.clone(),
            passphrase: Arc::clone(&passphrase),
            beside,
        };
        let header = HeaderBeside { passphrase, memory };
        Some(Self { node: node.to_owned(), image: for_qemu, luks: luks.clone(), header, derivation, span })
    }
}

/// Derives the keys of images, all at once, and fills the headers beside them.
pub(super) fn derive(derivations: Vec<Derivation>, secrets: &Arc<ResolvedSecrets>) -> Deriving {
    let (sender, receiver) = oneshot::channel();
    if derivations.is_empty() {
        drop(sender.send(Ok(Vec::new())));
        return Deriving(receiver);
    }
    let secrets = Arc::clone(secrets);
    // A thread of its own: the end of the process waits for those of tokio, and nobody can hurry a derivation. Nobody may be
    // waiting for it any more.
    let derive = move || drop(sender.send(fill_all(derivations, &secrets)));
    if let Err(e) = thread::Builder::new().name("unlock".to_owned()).spawn(derive) {
        // The sender is gone with the closure.
        tracing::error!("there is no thread to derive LUKS keys: {e}");
    }
    Deriving(receiver)
}

impl Deriving {
    /// Waits until the headers beside the images are what QEMU is to find.
    pub(super) async fn done(self) -> Result<Vec<Opening>, ImageError> {
        // It has not begun, or it has panicked.
        self.0.await.unwrap_or(Err(ImageError::Underived))
    }
}

fn fill_all(derivations: Vec<Derivation>, secrets: &ResolvedSecrets) -> Result<Vec<Opening>, ImageError> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let containers = derivations.iter().map(|d| d.container(secrets).map_err(|e| d.failed(e)));
    let containers = containers.collect::<Result<Vec<_>, _>>()?;
    let keys = wiping_stack(|| luks::unlock(&containers, processors));
    let keys = derivations.iter().zip(keys);
    let keys = keys.map(|(d, key)| key.map(|(_, key)| (d, key)).map_err(|e| d.failed(e.into())));
    let keys = keys.collect::<Result<Vec<_>, _>>()?;
    let filled =
        all_at_once(&keys, processors, |(d, key)| wiping_stack(|| d.fill(key)).map_err(|e| d.failed(e)));
    filled.into_iter().collect::<Result<(), _>>()?;
    drop(keys);
    Ok(derivations.into_iter().map(Derivation::opening).collect())
}

impl Derivation {
    fn container<'a>(&'a self, secrets: &'a ResolvedSecrets) -> Result<Container<'a, Image>, NotDerived> {
        let passphrase = secrets.get(&self.secret).ok_or(NotDerived::NoSecret)?;
        Ok(Container { header: &self.header, image: &self.image, passphrase })
    }

    fn fill(&self, key: &VolumeKey) -> Result<(), NotDerived> {
        let header = self.header.ephemeral(key, &self.passphrase, &mut os_random())?;
        Ok(self.beside.fill(&header)?)
    }

    fn failed(&self, why: NotDerived) -> ImageError {
        let path = self.name.clone();
        match why {
            NotDerived::Luks(UnlockError::WrongPassphrase) => ImageError::WrongPassphrase { path },
            source => ImageError::NotUnlocked { path, source },
        }
    }

    fn opening(self) -> Opening {
        let Self { name, node, image, header, beside, .. } = self;
        let image = match image {
            Image::Here(file) => Some(file),
            Image::Read(_) => None,
        };
        Opening { name, node, image, header, beside }
    }
}

/// Why a key was not derived.
#[derive(Debug, thiserror::Error)]
pub enum NotDerived {
    /// The container does not give it.
    #[error(transparent)]
    Luks(#[from] UnlockError),
    /// There is no protected memory.
    #[error(transparent)]
    Memory(#[from] ValueError),
    /// There is no memory for a header.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// There is nothing to derive it from.
    #[error("there is no value of its secret")]
    NoSecret,
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
    fn new() -> io::Result<Self> {
        Ok(Self(memfd_create(c"luks-header", MFdFlags::MFD_CLOEXEC)?.into()))
    }

    fn fill(&self, header: &SecretValue) -> io::Result<()> {
        self.0.write_all_at(header.expose(), 0)
    }

    fn wipe(&self) -> io::Result<()> {
        const ZEROES: &[u8] = &[0; 4096];
        let len = self.0.metadata()?.len();
        if len == 0 {
            return Ok(());
        }
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
