//! Raw LUKS1 images unlocked here instead of in QEMU, whose main loop stands still while it derives a key.
//!
//! The image's header is read, its volume key is derived and verified, and QEMU gets two descriptors: the image, and a
//! header of one opening for the same volume key. What is unusual is left to QEMU, which knows what to say about it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::sync::Arc;
use std::thread;

use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use tokio::sync::oneshot;

use crate::keystore::ResolvedSecrets;
use crate::luks::{LUKS1_HEADER_LEN, Luks1Header, LuksHeader, UnlockError};
use crate::parallel::all_at_once;
use crate::qemu::Capabilities;
use crate::qemu::storage::RawLuks;
use crate::secret::{SecretValue, ValueError, os_random, wiping_stack};
use crate::xml::keywords;

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

/// Why images were not unlocked.
#[derive(Debug, thiserror::Error)]
pub enum LockedImage {
    /// The passphrase opens none of the image's key slots.
    #[error("{path} cannot be unlocked: no key slot opens with the value of its secret")]
    WrongPassphrase {
        /// The image.
        path: String,
    },
    /// The image has become another one since its header was read.
    #[error("{path} is not the image any more that it was when its LUKS header was read")]
    Changed {
        /// The image.
        path: String,
    },
}

/// An image whose volume key is known, on its way to QEMU.
pub(super) struct Unlocked {
    /// The image.
    pub(super) luks: RawLuks,
    /// What opens the header beside it.
    pub(super) passphrase: Arc<SecretValue>,
    /// Open as QEMU is to have it. To be let go of once QEMU has it: locks on the image last as long as any copy.
    pub(super) image: OwnedFd,
    /// The header beside it.
    pub(super) header: OwnedFd,
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
    luks: RawLuks,
    image: File,
    header: Luks1Header,
}

/// Unlocks those of the images for which that pays, all at once. QEMU opens the others by itself.
pub(super) async fn unlock(
    images: &[RawLuks],
    how: Unlock,
    capabilities: &Capabilities,
    secrets: &Arc<ResolvedSecrets>,
) -> Result<Vec<Unlocked>, LockedImage> {
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
fn derive(slow: &[Slow], secrets: &ResolvedSecrets) -> Result<Vec<Unlocked>, LockedImage> {
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
    fn look(luks: &RawLuks) -> Option<Self> {
        let image = OpenOptions::new()
            .read(true)
            // A pipe in its place must hold up nobody.
            .custom_flags((OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits())
            .open(&luks.path)
            .ok()?;
        let kind = image.metadata().ok()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return None;
        }
        let header = header_of(&image)?;
        if header.opening_cost() < WORTHWHILE {
            return None;
        }
        if let Err(e) = header.suite() {
            tracing::debug!("QEMU unlocks {}: {e}", luks.path);
            return None;
        }
        Some(Self { luks: luks.clone(), image, header })
    }

    /// Derives the key. `None`: QEMU is to open it.
    fn unlock(&self, passphrase: &SecretValue, threads: usize) -> Result<Option<Unlocked>, LockedImage> {
        let path = &self.luks.path;
        match self.try_unlock(passphrase, threads) {
            Ok(unlocked) => Ok(Some(unlocked)),
            Err(Failed::Luks(UnlockError::WrongPassphrase)) => {
                Err(LockedImage::WrongPassphrase { path: path.clone() })
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
        Ok(Unlocked {
            luks: self.luks.clone(),
            passphrase: Arc::new(once),
            image: self.reopen()?,
            header: beside.0.try_clone()?.into(),
            opening: Opening {
                path: self.luks.path.clone(),
                image: self.image.try_clone()?,
                header: self.header.clone(),
                beside,
            },
        })
    }

    /// The very image whose header was read, whatever is at its path by now.
    fn reopen(&self) -> io::Result<OwnedFd> {
        let direct = if self.luks.direct { OFlag::O_DIRECT } else { OFlag::empty() };
        let file = OpenOptions::new()
            .read(true)
            .write(!self.luks.read_only)
            .custom_flags((direct | OFlag::O_CLOEXEC).bits())
            .open(format!("/proc/self/fd/{}", self.image.as_raw_fd()))?;
        Ok(file.into())
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
    pub(super) fn finish(self) -> Result<(), LockedImage> {
        let Self { path, image, header, beside } = self;
        drop(beside);
        // Other key slots open the same data.
        let now = header_of(&image).map(|now| Luks1Header { slots: header.slots, ..now });
        if now.as_ref() == Some(&header) { Ok(()) } else { Err(LockedImage::Changed { path }) }
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
