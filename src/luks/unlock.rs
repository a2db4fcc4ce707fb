//! The volume key of a LUKS1 container: from a passphrase, into key slots, and into a header of its own.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rand::CryptoRng;
use subtle::ConstantTimeEq;
use vmward_crypt::{Cipher, Derivation, Direction, Hash, merge, pbkdf2, split};

use crate::secret::{SecretValue, ValueError};

use super::header::{DIGEST_LEN, KeySlot, SALT_LEN, SECTOR, SLOTS};
use super::{LUKS1_HEADER_LEN, Luks1Header};

/// The stripes of every key slot (specification, 2.4). QEMU takes no other number.
const STRIPES: u32 = 4000;
/// Where key material may begin.
const ALIGNMENT: u64 = 4096;
/// The least iterations that QEMU and cryptsetup use.
pub const MIN_ITERATIONS: u32 = 1000;

/// What QEMU does of them on a processor with SHA instructions, where 4.0 to 4.4 million iterations of two blocks each and
/// of the digest were measured; each is one block of SHA-256.
const ITERATIONS_PER_SECOND: f64 = 7.5e6;

/// Why a container was not unlocked.
#[derive(Debug, thiserror::Error)]
pub enum UnlockError {
    /// No slot opens with it.
    #[error("no key slot opens with this passphrase")]
    WrongPassphrase,
    /// Something about the header is not what QEMU and cryptsetup make.
    #[error("the LUKS header is unusual: {0}")]
    Unusual(&'static str),
    /// The image could not be read.
    #[error("the key material could not be read")]
    Read(#[source] io::Error),
    /// There is no protected memory.
    #[error("the volume key cannot be kept")]
    Memory(#[source] ValueError),
}

/// What can be read at an offset: an image.
pub trait ReadAt {
    /// Fills a buffer from an offset.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }
}

impl ReadAt for [u8] {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let part = self.get(start..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// The key that a container's data is encrypted with. It was verified: its digest is the header's.
#[derive(Debug)]
pub struct VolumeKey(SecretValue);

/// The algorithms of a header, known here and fit for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suite {
    cipher: Cipher,
    hash: Hash,
}

impl Luks1Header {
    /// The header's algorithms, if nothing about it is unusual.
    pub fn suite(&self) -> Result<Suite, UnlockError> {
        use UnlockError::Unusual;
        let cipher = Cipher::from_names(&self.cipher, &self.mode).ok_or(Unusual("its cipher"))?;
        let hash = Hash::from_name(&self.hash).ok_or(Unusual("its hash"))?;
        let key_len = usize::try_from(self.key_len).unwrap_or(usize::MAX);
        if key_len > 64 || !cipher.takes_key(key_len) {
            return Err(Unusual("the length of its key"));
        }
        // With 192 bits the material is no whole number of sectors, and QEMU's own driver aborts.
        if (u64::from(self.key_len) * u64::from(STRIPES)) % SECTOR != 0 {
            return Err(Unusual("the length of its key"));
        }
        if self.digest_iterations == 0 {
            return Err(Unusual("its digest has no iterations"));
        }
        let areas: Vec<_> = self.slots.iter().map(|slot| self.material(slot)).collect();
        for (n, (slot, area)) in self.slots.iter().zip(&areas).enumerate() {
            if slot.stripes != STRIPES || (slot.active && slot.iterations == 0) {
                return Err(Unusual("a key slot's stripes or iterations"));
            }
            if area.start < LUKS1_HEADER_LEN as u64 || area.end > self.payload_offset {
                return Err(Unusual("a key slot is not between the header and the data"));
            }
            if areas[..n].iter().any(|other| area.start < other.end && other.start < area.end) {
                return Err(Unusual("two key slots overlap"));
            }
        }
        Ok(Suite { cipher, hash })
    }

    /// How many iterations it takes at the most to open it with one passphrase: those of every active slot, and each
    /// time those of the digest. An iteration makes one block of the hash.
    pub fn opening_cost(&self) -> u64 {
        self.active_slots().map(|(_, slot)| self.slot_cost(slot)).sum()
    }

    /// About how long it takes to open it with the passphrase of its first active slot, the first that is tried,
    /// in seconds; `None` where no slot is active.
    pub fn opening_seconds(&self) -> Option<f64> {
        let (_, slot) = self.active_slots().next()?;
        Some(self.slot_cost(slot) as f64 / ITERATIONS_PER_SECOND)
    }

    fn slot_cost(&self, slot: &KeySlot) -> u64 {
        // A key is as many blocks of the hash; the digest is one.
        let blocks = Hash::from_name(&self.hash)
            .map_or(1, |h| (self.key_len as usize).div_ceil(h.output_len()) as u64);
        u64::from(slot.iterations) * blocks + u64::from(self.digest_iterations)
    }

    /// The volume key, if a passphrase opens that slot.
    pub fn unlock_slot<R: ReadAt + ?Sized>(
        &self,
        number: usize,
        image: &R,
        passphrase: &SecretValue,
        threads: usize,
    ) -> Result<Option<VolumeKey>, UnlockError> {
        self.suite()?;
        let slot = self.slots.get(number).filter(|slot| slot.active);
        let container = Container { header: self, image, passphrase };
        let found = try_slots(slot.into_iter().map(|slot| (&container, slot)), threads).pop();
        found.unwrap_or(Ok(None))
    }

    /// Puts the volume key into a slot, under a passphrase: the slot becomes active in this header, and what is returned
    /// belongs into the container at the slot's material, before the header does.
    pub fn fill_slot(
        &mut self,
        number: usize,
        key: &VolumeKey,
        passphrase: &SecretValue,
        iterations: u32,
        threads: usize,
        random: &mut impl CryptoRng,
    ) -> Result<SecretValue, UnlockError> {
        let suite = self.suite()?;
        let Some(slot) = self.slots.get_mut(number) else {
            return Err(UnlockError::Unusual("it has eight key slots"));
        };
        *slot = KeySlot { active: true, iterations, salt: salt(random), ..*slot };
        let slot = *slot;
        let mut slot_key = buffer(self.key_len.into())?;
        pbkdf2([suite.slot_key(passphrase, &slot, &mut slot_key)], threads);
        let mut material = buffer(u64::from(self.key_len) * u64::from(STRIPES))?;
        random.fill_bytes(material.expose_mut());
        split(suite.hash, key.0.expose(), material.expose_mut());
        suite.apply(&slot_key, Direction::Encrypt, &mut material)?;
        Ok(material)
    }

    /// Makes the digest of the volume key as cheap as it can be. It guards no passphrase: the key is random, and no longer
    /// to be guessed than the data is to be tried.
    pub fn cheapen_digest(
        &mut self,
        key: &VolumeKey,
        random: &mut impl CryptoRng,
    ) -> Result<(), UnlockError> {
        let suite = self.suite()?;
        self.digest_salt = salt(random);
        self.digest_iterations = MIN_ITERATIONS;
        let mut digest = [0; DIGEST_LEN];
        pbkdf2([self.digest_of(suite, &key.0, &mut digest)], 1);
        self.digest = digest;
        Ok(())
    }

    /// How many iterations of a slot's derivation take that long here, on one core as in QEMU.
    pub fn iterations_within(&self, time: Duration) -> Result<u32, UnlockError> {
        const PROBE: u32 = 20_000;
        const PROBES: usize = 3;
        let suite = self.suite()?;
        let mut key = buffer(self.key_len.into())?;
        let mut fastest = Duration::MAX;
        // Other processes make a probe slower, never faster.
        for _ in 0..PROBES {
            let start = Instant::now();
            let (hash, out) = (suite.hash, key.expose_mut());
            let (password, salt) = (b"probe", &[0; SALT_LEN]);
            pbkdf2([Derivation { hash, password, salt, iterations: PROBE, out }], 1);
            fastest = fastest.min(start.elapsed());
        }
        let iterations = f64::from(PROBE) * time.as_secs_f64() / fastest.as_secs_f64().max(1e-9);
        // The conversion ends at the largest number there is.
        Ok((iterations as u32).max(MIN_ITERATIONS))
    }

    /// The start of a container of the same volume key, whose only slot opens with another passphrase, with the least
    /// iterations there are: a header for one opening, beside the data and not in front of it. The data begins where
    /// it did.
    pub fn ephemeral(
        &self,
        key: &VolumeKey,
        passphrase: &SecretValue,
        random: &mut impl CryptoRng,
    ) -> Result<SecretValue, UnlockError> {
        let slot_len = (u64::from(self.key_len) * u64::from(STRIPES)).next_multiple_of(ALIGNMENT);
        let slots = std::array::from_fn::<_, SLOTS, _>(|n| KeySlot {
            material_offset: ALIGNMENT + slot_len * n as u64,
            stripes: STRIPES,
            ..KeySlot::EMPTY
        });
        // What is in front of the data matters to nobody who opens a header beside it.
        let payload_offset = ALIGNMENT + slot_len * SLOTS as u64;
        let mut header = Self { slots, payload_offset, ..self.clone() };
        header.cheapen_digest(key, random)?;
        let material = header.fill_slot(0, key, passphrase, MIN_ITERATIONS, 1, random)?;
        let material_at = header.material(&header.slots[0]).start;
        header.payload_offset = self.payload_offset;
        let mut bytes = buffer((material_at + material.len() as u64).next_multiple_of(SECTOR))?;
        bytes.expose_mut()[..LUKS1_HEADER_LEN].copy_from_slice(&header.encode());
        let at = usize::try_from(material_at).unwrap_or(usize::MAX);
        bytes.expose_mut()[at..at + material.len()].copy_from_slice(material.expose());
        Ok(bytes)
    }

    /// The digest of a volume key, into its place.
    fn digest_of<'a>(
        &'a self,
        suite: Suite,
        key: &'a SecretValue,
        out: &'a mut [u8; DIGEST_LEN],
    ) -> Derivation<'a> {
        Derivation {
            hash: suite.hash,
            password: key.expose(),
            salt: &self.digest_salt,
            iterations: self.digest_iterations,
            out,
        }
    }
}

impl Suite {
    /// What a slot's material is encrypted with, into its place.
    fn slot_key<'a>(
        self,
        passphrase: &'a SecretValue,
        slot: &'a KeySlot,
        out: &'a mut SecretValue,
    ) -> Derivation<'a> {
        Derivation {
            hash: self.hash,
            password: passphrase.expose(),
            salt: &slot.salt,
            iterations: slot.iterations,
            out: out.expose_mut(),
        }
    }

    fn apply(
        self,
        key: &SecretValue,
        direction: Direction,
        data: &mut SecretValue,
    ) -> Result<(), UnlockError> {
        self.cipher
            .apply(key.expose(), direction, data.expose_mut())
            .map_err(|_| UnlockError::Unusual("the length of its key"))
    }
}

/// A container that is to be unlocked.
pub struct Container<'a, R: ?Sized> {
    /// What its header says.
    pub header: &'a Luks1Header,
    /// Where its key material is.
    pub image: &'a R,
    /// What is to open it.
    pub passphrase: &'a SecretValue,
}

/// The volume key of each container, and the slot that its passphrase opens. The keys are derived together, on up to
/// `threads` threads: first of all, each container's first active slot, then the next ones of those that are not open yet.
pub fn unlock<R: ReadAt + ?Sized>(
    containers: &[Container<'_, R>],
    threads: usize,
) -> Vec<Result<(usize, VolumeKey), UnlockError>> {
    let mut results: Vec<_> = containers.iter().map(|c| c.header.suite().err().map(Err)).collect();
    let mut slots: Vec<_> = containers.iter().map(|c| c.header.active_slots()).collect();
    loop {
        let undecided = (0..results.len()).filter(|n| results[*n].is_none());
        let next: Vec<_> = undecided.filter_map(|n| Some((n, slots[n].next()?))).collect();
        if next.is_empty() {
            break;
        }
        let found = try_slots(next.iter().map(|&(n, (_, slot))| (&containers[n], slot)), threads);
        for ((n, (slot, _)), found) in next.into_iter().zip(found) {
            results[n] = found.map(|key| Some((slot, key?))).transpose();
        }
    }
    results.into_iter().map(|result| result.unwrap_or(Err(UnlockError::WrongPassphrase))).collect()
}

/// Tries one slot of each container: the volume key, where the passphrase opens it.
fn try_slots<'a, R: ReadAt + ?Sized + 'a>(
    slots: impl Iterator<Item = (&'a Container<'a, R>, &'a KeySlot)>,
    threads: usize,
) -> Vec<Result<Option<VolumeKey>, UnlockError>> {
    let mut attempts: Vec<_> = slots.map(|(container, slot)| Attempt::new(container, slot)).collect();
    pbkdf2(attempts.iter_mut().flatten().map(Attempt::slot_key), threads);
    let mut attempts: Vec<_> = attempts.into_iter().map(|attempt| attempt?.merged()).collect();
    pbkdf2(attempts.iter_mut().flatten().map(Attempt::digest), threads);
    attempts.into_iter().map(|attempt| Ok(attempt?.volume_key())).collect()
}

/// A passphrase that is tried on a slot.
struct Attempt<'a, R: ?Sized> {
    container: &'a Container<'a, R>,
    suite: Suite,
    slot: &'a KeySlot,
    slot_key: SecretValue,
    /// What the slot's material comes to with that.
    key: SecretValue,
    /// The digest of that.
    digest: [u8; DIGEST_LEN],
}

impl<'a, R: ReadAt + ?Sized> Attempt<'a, R> {
    fn new(container: &'a Container<'a, R>, slot: &'a KeySlot) -> Result<Self, UnlockError> {
        let suite = container.header.suite()?;
        let key_len = container.header.key_len.into();
        let (slot_key, key) = (buffer(key_len)?, buffer(key_len)?);
        Ok(Self { container, suite, slot, slot_key, key, digest: [0; DIGEST_LEN] })
    }

    fn slot_key(&mut self) -> Derivation<'_> {
        self.suite.slot_key(self.container.passphrase, self.slot, &mut self.slot_key)
    }

    /// With what the slot's material comes to, which is long, and therefore read for one after the other.
    fn merged(mut self) -> Result<Self, UnlockError> {
        let area = self.container.header.material(self.slot);
        let mut material = buffer(area.end - area.start)?;
        self.container.image.read_exact_at(material.expose_mut(), area.start).map_err(UnlockError::Read)?;
        self.suite.apply(&self.slot_key, Direction::Decrypt, &mut material)?;
        merge(self.suite.hash, material.expose(), self.key.expose_mut());
        Ok(self)
    }

    fn digest(&mut self) -> Derivation<'_> {
        self.container.header.digest_of(self.suite, &self.key, &mut self.digest)
    }

    fn volume_key(self) -> Option<VolumeKey> {
        bool::from(self.digest.ct_eq(&self.container.header.digest)).then_some(VolumeKey(self.key))
    }
}

fn buffer(len: u64) -> Result<SecretValue, UnlockError> {
    SecretValue::zeroed(usize::try_from(len).unwrap_or(usize::MAX)).map_err(UnlockError::Memory)
}

fn salt(random: &mut impl CryptoRng) -> [u8; SALT_LEN] {
    let mut salt = [0; SALT_LEN];
    random.fill_bytes(&mut salt);
    salt
}
