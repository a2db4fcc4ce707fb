//! The volume key of a LUKS1 container: from a passphrase, into key slots, and into a header of its own.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rand::CryptoRng;
use subtle::ConstantTimeEq;
use vmward_crypt::{Cipher, Direction, Hash, merge, split};

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

    /// The volume key, and the slot that a passphrase opens.
    pub fn unlock<R: ReadAt + ?Sized>(
        &self,
        image: &R,
        passphrase: &SecretValue,
        threads: usize,
    ) -> Result<(usize, VolumeKey), UnlockError> {
        self.suite()?;
        for (n, _) in self.active_slots() {
            if let Some(key) = self.unlock_slot(n, image, passphrase, threads)? {
                return Ok((n, key));
            }
        }
        Err(UnlockError::WrongPassphrase)
    }

    /// The volume key, if a passphrase opens that slot.
    pub fn unlock_slot<R: ReadAt + ?Sized>(
        &self,
        number: usize,
        image: &R,
        passphrase: &SecretValue,
        threads: usize,
    ) -> Result<Option<VolumeKey>, UnlockError> {
        let suite = self.suite()?;
        let Some(slot) = self.slots.get(number).filter(|slot| slot.active) else { return Ok(None) };
        let area = self.material(slot);
        let mut material = buffer(area.end - area.start)?;
        image.read_exact_at(material.expose_mut(), area.start).map_err(UnlockError::Read)?;
        let slot_key = self.slot_key(suite, slot, passphrase, threads)?;
        suite.apply(&slot_key, Direction::Decrypt, &mut material)?;
        let mut key = buffer(self.key_len.into())?;
        merge(suite.hash, material.expose(), key.expose_mut());
        Ok(self.is_key(suite, &key).then_some(VolumeKey(key)))
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
        let slot_key = self.slot_key(suite, &slot, passphrase, threads)?;
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
        self.digest = self.digest_of(suite, &key.0);
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
            suite.hash.pbkdf2(b"probe", &[0; SALT_LEN], PROBE, key.expose_mut(), 1);
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
        let suite = self.suite()?;
        let slot_len = (u64::from(self.key_len) * u64::from(STRIPES)).next_multiple_of(ALIGNMENT);
        let slots = std::array::from_fn::<_, SLOTS, _>(|n| KeySlot {
            material_offset: ALIGNMENT + slot_len * n as u64,
            stripes: STRIPES,
            ..KeySlot::EMPTY
        });
        let mut header =
            Self { slots, digest_salt: salt(random), digest_iterations: MIN_ITERATIONS, ..self.clone() };
        header.digest = header.digest_of(suite, &key.0);
        // What is in front of the data matters to nobody who opens a header beside it.
        header.payload_offset = ALIGNMENT + slot_len * SLOTS as u64;
        let material = header.fill_slot(0, key, passphrase, MIN_ITERATIONS, 1, random)?;
        let material_at = header.material(&header.slots[0]).start;
        header.payload_offset = self.payload_offset;
        let mut bytes = buffer((material_at + material.len() as u64).next_multiple_of(SECTOR))?;
        bytes.expose_mut()[..LUKS1_HEADER_LEN].copy_from_slice(&header.encode());
        let at = usize::try_from(material_at).unwrap_or(usize::MAX);
        bytes.expose_mut()[at..at + material.len()].copy_from_slice(material.expose());
        Ok(bytes)
    }

    /// What a slot's material is encrypted with.
    fn slot_key(
        &self,
        suite: Suite,
        slot: &KeySlot,
        passphrase: &SecretValue,
        threads: usize,
    ) -> Result<SecretValue, UnlockError> {
        let mut key = buffer(self.key_len.into())?;
        suite.hash.pbkdf2(passphrase.expose(), &slot.salt, slot.iterations, key.expose_mut(), threads);
        Ok(key)
    }

    fn is_key(&self, suite: Suite, key: &SecretValue) -> bool {
        self.digest_of(suite, key).ct_eq(&self.digest).into()
    }

    fn digest_of(&self, suite: Suite, key: &SecretValue) -> [u8; DIGEST_LEN] {
        let mut digest = [0; DIGEST_LEN];
        suite.hash.pbkdf2(key.expose(), &self.digest_salt, self.digest_iterations, &mut digest, 1);
        digest
    }
}

impl Suite {
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

fn buffer(len: u64) -> Result<SecretValue, UnlockError> {
    SecretValue::zeroed(usize::try_from(len).unwrap_or(usize::MAX)).map_err(UnlockError::Memory)
}

fn salt(random: &mut impl CryptoRng) -> [u8; SALT_LEN] {
    let mut salt = [0; SALT_LEN];
    random.fill_bytes(&mut salt);
    salt
}
