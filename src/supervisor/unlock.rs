//! Raw LUKS1 images unlocked here instead of in QEMU, whose main loop stands still while it derives a key.
//!
//! The image's header is read, its volume key is derived and verified, and QEMU gets two descriptors: the image, and a
//! header of one opening for the same volume key. What is unusual is left to QEMU, which knows what to say about it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::sync::Arc;
use std::thread;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use tokio::sync::oneshot;

use crate::keystore::ResolvedSecrets;
use crate::luks::{LUKS1_HEADER_LEN, Luks1Header, LuksHeader, UnlockError};
use crate::parallel::all_at_once;
use crate::qemu::Capabilities;
use crate::qemu::storage::{LocalImage, RawLuks};
use crate::secret::{SecretValue, ValueError, os_random, wiping_stack};
use crate::xml::keywords;

use super::opened::{ImageError, look_at, reopen};

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
    /// Open as QEMU is to have it.
    pub(super) image: File,
    pub(super) header: HeaderBeside,
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
    path: String,
    /// The image, open for this alone.
    image: File,
    /// What its header said.
    header: Luks1Header,
    beside: Beside,
}

/// The header of one opening. Dropped, it is wiped, also in QEMU, which has the same memory.
struct Beside(File);

/// An image that is to be unlocked here.
struct Slow {
    local: LocalImage,
    luks: RawLuks,
    image: File,
    header: Luks1Header,
}

/// Unlocks those of the images for which that pays, all at once. QEMU opens the others by itself.
pub(super) async fn unlock(
    images: &[LocalImage],
    how: Unlock,
    capabilities: &Capabilities,
    secrets: &Arc<ResolvedSecrets>,
) -> Result<Vec<Unlocked>, ImageError> {
    if how == Unlock::Qemu || !capabilities.has_detached_luks_headers() {
        return Ok(Vec::new());
    }
    let slow: Vec<Slow> = images.iter().filter_map(Slow::look).collect();
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

/// On all processors: as many images at once as there are, and several blocks of each key where there are fewer images.
fn derive(slow: &[Slow], secrets: &ResolvedSecrets) -> Result<Vec<Unlocked>, ImageError> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let threads = (processors / slow.len()).max(1);
    let unlocked = all_at_once(slow, processors, |image| {
        let secret = secrets.get(&image.luks.secret)?;
        wiping_stack(|| image.unlock(secret, threads)).transpose()
    });
    unlocked.into_iter().flatten().collect()
}

impl Slow {
    /// Reads an image's header. `None`: QEMU is to open it.
    fn look(local: &LocalImage) -> Option<Self> {
        let luks = local.luks.as_ref()?;
        let image = look_at(&local.path).ok()?;
        let kind = image.metadata().ok()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return None;
        }
        let header = header_of(&image)?;
        if header.opening_cost() < WORTHWHILE {
            return None;
        }
        if let Err(e) = header.suite() {
            tracing::debug!("QEMU unlocks {}: {e}", local.path);
            return None;
        }
        Some(Self { local: local.clone(), luks: luks.clone(), image, header })
    }

    /// Derives the key. `None`: QEMU is to open it.
    fn unlock(&self, passphrase: &SecretValue, threads: usize) -> Result<Option<Unlocked>, ImageError> {
        let path = &self.local.path;
        match self.try_unlock(passphrase, threads) {
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

    fn try_unlock(&self, passphrase: &SecretValue, threads: usize) -> Result<Unlocked, Failed> {
        let (_, key) = self.header.unlock(&self.image, passphrase, threads)?;
        let once = SecretValue::random_passphrase()?;
        let header = self.header.ephemeral(&key, &once, &mut os_random())?;
        drop(key);
        let beside = Beside::new(&header)?;
        let LocalImage { path, node, read_only, direct, .. } = &self.local;
        let header = HeaderBeside {
            passphrase: Arc::new(once),
            memory: beside.0.try_clone()?.into(),
            opening: Opening {
                path: path.clone(),
                image: self.image.try_clone()?,
                header: self.header.clone(),
                beside,
            },
        };
        Ok(Unlocked { node: node.clone(), image: reopen(&self.image, *read_only, *direct)?, header })
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

impl Opening {
    /// QEMU has opened the image: makes sure that it is still the one that was unlocked. QEMU itself cannot notice a wrong volume
    /// key. The header beside the image is wiped, whatever comes of it.
    pub(super) fn finish(self) -> Result<(), ImageError> {
        let Self { path, image, header, beside } = self;
        drop(beside);
        // Other key slots open the same data.
        let now = header_of(&image).map(|now| Luks1Header { slots: header.slots, ..now });
        if now.as_ref() == Some(&header) { Ok(()) } else { Err(ImageError::Changed { path }) }
    }
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

fn header_of(image: &File) -> Option<Luks1Header> {
    let mut bytes = [0; LUKS1_HEADER_LEN];
    image.read_exact_at(&mut bytes, 0).ok()?;
    match LuksHeader::parse(&bytes).ok()? {
        LuksHeader::V1(header) => Some(*header),
        LuksHeader::V2(_) => None,
    }
}
