//! The header at the start of a LUKS container.

use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// What every LUKS header begins with.
pub const MAGIC: &[u8; 6] = b"LUKS\xba\xbe";
/// The length of a LUKS1 header without its key material.
pub const LUKS1_HEADER_LEN: usize = 592;
/// The length of a LUKS2 binary header up to and with its UUID, the last field that is read here.
const LUKS2_READ_LEN: usize = 208;
/// The length of all of it, behind which is its JSON.
const LUKS2_BINARY_LEN: usize = 4096;
/// Offsets in the header count in these, whatever the device.
pub(super) const SECTOR: u64 = 512;
/// How many key slots there are.
pub(super) const SLOTS: usize = 8;
/// The length of a salt.
pub(super) const SALT_LEN: usize = 32;
/// The length of the volume key's digest.
pub(super) const DIGEST_LEN: usize = 20;
/// Where in the encoded header the digest, its salt and its iterations are. It is within the first sector.
pub const DIGEST_FIELDS: Range<usize> = 112..168;
const FIRST_SLOT: usize = 208;
const SLOT_LEN: usize = 48;
const SLOT_ACTIVE: u32 = 0x00AC_71F3;
const SLOT_INACTIVE: u32 = 0x0000_DEAD;

/// Why bytes are no LUKS header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LuksError {
    /// The magic is not there.
    #[error("there is no LUKS header")]
    NotLuks,
    /// It ends too early.
    #[error("the LUKS header is cut off")]
    Truncated,
    /// A version that nobody knows.
    #[error("LUKS version {0} is not known")]
    Version(u16),
    /// A field does not hold what it should.
    #[error("the LUKS header is damaged: {0}")]
    Damaged(&'static str),
}

/// A header of either version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LuksHeader {
    /// The version that QEMU makes and opens.
    V1(Box<Luks1Header>),
    /// The version that cryptsetup makes by default, and that QEMU's own driver does not open.
    V2(Luks2Header),
}

/// A LUKS1 header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Luks1Header {
    /// `aes`, `serpent`, ...
    pub cipher: String,
    /// The mode with its IV generator: `xts-plain64`, `cbc-essiv:sha256`, ...
    pub mode: String,
    /// The hash of the key derivation and of the anti-forensic splitter.
    pub hash: String,
    /// Where the data begins, in bytes from the start of the container.
    pub payload_offset: u64,
    /// The length of the volume key in bytes.
    pub key_len: u32,
    /// The digest of the volume key, by which the right one is known.
    pub digest: [u8; DIGEST_LEN],
    /// The salt of the digest.
    pub digest_salt: [u8; SALT_LEN],
    /// The PBKDF2 iterations of the digest.
    pub digest_iterations: u32,
    /// The container's name.
    pub uuid: String,
    /// All eight.
    pub slots: [KeySlot; SLOTS],
}

/// A place for the volume key, encrypted under one passphrase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeySlot {
    /// Whether there is a key in it.
    pub active: bool,
    /// The PBKDF2 iterations of its passphrase.
    pub iterations: u32,
    /// The salt of its passphrase.
    pub salt: [u8; SALT_LEN],
    /// Where its key material begins, in bytes from the start of the container.
    pub material_offset: u64,
    /// Into how many stripes the key is split.
    pub stripes: u32,
}

/// What is read of a LUKS2 header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Luks2Header {
    /// The container's name.
    pub uuid: String,
    /// Its label, which is mostly empty.
    pub label: String,
    /// Where the data begins, in bytes from the start of the container; `None` where the header does not say it in the
    /// part that was read.
    pub data_offset: Option<u64>,
    /// Where both copies of the header are, in bytes from the start of the container.
    pub headers: Range<u64>,
    /// The slots that are in use, as far as they were read.
    pub slots: Vec<Luks2Slot>,
}

/// A key slot of LUKS2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Luks2Slot {
    /// Its number.
    pub number: usize,
    /// The salt of its passphrase.
    pub salt: Vec<u8>,
    /// Where its key material is, in bytes from the start of the container.
    pub area: Range<u64>,
}

impl LuksHeader {
    /// Reads the header at the start of `bytes`; what follows it is not looked at.
    pub fn parse(bytes: &[u8]) -> Result<Self, LuksError> {
        if !bytes.starts_with(MAGIC) {
            return Err(LuksError::NotLuks);
        }
        match u16::from_be_bytes(array(bytes, MAGIC.len())?) {
            1 => Luks1Header::parse(bytes).map(|h| Self::V1(Box::new(h))),
            2 => Luks2Header::parse(bytes).map(Self::V2),
            version => Err(LuksError::Version(version)),
        }
    }
}

impl Luks1Header {
    fn parse(bytes: &[u8]) -> Result<Self, LuksError> {
        if bytes.len() < LUKS1_HEADER_LEN {
            return Err(LuksError::Truncated);
        }
        let mut slots = [KeySlot::EMPTY; SLOTS];
        for (n, slot) in slots.iter_mut().enumerate() {
            *slot = KeySlot::parse(bytes, FIRST_SLOT + n * SLOT_LEN)?;
        }
        let header = Self {
            cipher: text(bytes, 8, 32)?,
            mode: text(bytes, 40, 32)?,
            hash: text(bytes, 72, 32)?,
            payload_offset: u64::from(number(bytes, 104)?) * SECTOR,
            key_len: number(bytes, 108)?,
            digest: array(bytes, 112)?,
            digest_salt: array(bytes, 132)?,
            digest_iterations: number(bytes, 164)?,
            uuid: text(bytes, 168, 40)?,
            slots,
        };
        if header.cipher.is_empty() || header.mode.is_empty() || header.hash.is_empty() {
            return Err(LuksError::Damaged("it names no cipher, mode or hash"));
        }
        if header.key_len == 0 {
            return Err(LuksError::Damaged("the volume key has no length"));
        }
        Ok(header)
    }

    /// The header as it stands in a container, without key material.
    pub fn encode(&self) -> [u8; LUKS1_HEADER_LEN] {
        let mut bytes = [0; LUKS1_HEADER_LEN];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        let sectors = |offset: u64| u32::try_from(offset / SECTOR).unwrap_or(u32::MAX).to_be_bytes();
        put(0, MAGIC);
        put(MAGIC.len(), &1u16.to_be_bytes());
        put(8, self.cipher.as_bytes());
        put(40, self.mode.as_bytes());
        put(72, self.hash.as_bytes());
        put(104, &sectors(self.payload_offset));
        put(108, &self.key_len.to_be_bytes());
        put(112, &self.digest);
        put(132, &self.digest_salt);
        put(164, &self.digest_iterations.to_be_bytes());
        put(168, self.uuid.as_bytes());
        for (n, slot) in self.slots.iter().enumerate() {
            let at = FIRST_SLOT + n * SLOT_LEN;
            put(at, &if slot.active { SLOT_ACTIVE } else { SLOT_INACTIVE }.to_be_bytes());
            put(at + 4, &slot.iterations.to_be_bytes());
            put(at + 8, &slot.salt);
            put(at + 40, &sectors(slot.material_offset));
            put(at + 44, &slot.stripes.to_be_bytes());
        }
        bytes
    }

    /// Whether another header is one of the same container: the same volume key opens the same data. Key slots come and
    /// go.
    pub fn is_same(&self, other: Option<&Self>) -> bool {
        other.is_some_and(|other| Self { slots: self.slots, ..other.clone() } == *self)
    }

    /// The active slots with their numbers.
    pub fn active_slots(&self) -> impl Iterator<Item = (usize, &KeySlot)> {
        self.slots.iter().enumerate().filter(|(_, s)| s.active)
    }

    /// Where in the encoded header what belongs to one slot is: whether it is active is in the first four bytes.
    pub fn slot_entry(number: usize) -> Range<usize> {
        let at = FIRST_SLOT + number * SLOT_LEN;
        at..at + SLOT_LEN
    }

    /// The bytes of the container in which a slot's key material is; in a damaged header they can be anywhere.
    pub fn material(&self, slot: &KeySlot) -> Range<u64> {
        let len = u64::from(self.key_len) * u64::from(slot.stripes);
        slot.material_offset..slot.material_offset.saturating_add(len)
    }
}

impl KeySlot {
    /// A slot that is nowhere.
    pub(super) const EMPTY: Self =
        Self { active: false, iterations: 0, salt: [0; SALT_LEN], material_offset: 0, stripes: 0 };

    fn parse(bytes: &[u8], at: usize) -> Result<Self, LuksError> {
        let active = match number(bytes, at)? {
            SLOT_ACTIVE => true,
            SLOT_INACTIVE => false,
            _ => return Err(LuksError::Damaged("a key slot is neither active nor inactive")),
        };
        Ok(Self {
            active,
            iterations: number(bytes, at + 4)?,
            salt: array(bytes, at + 8)?,
            material_offset: u64::from(number(bytes, at + 40)?) * SECTOR,
            stripes: number(bytes, at + 44)?,
        })
    }
}

impl Luks2Header {
    fn parse(bytes: &[u8]) -> Result<Self, LuksError> {
        if bytes.len() < LUKS2_READ_LEN {
            return Err(LuksError::Truncated);
        }
        let header_len = u64::from_be_bytes(array(bytes, 8)?);
        let json = Self::json(bytes, header_len).unwrap_or_default();
        Ok(Self {
            label: text(bytes, 24, 48)?,
            uuid: text(bytes, 168, 40)?,
            data_offset: Self::data_offset(&json),
            headers: 0..header_len.saturating_mul(2),
            slots: Self::slots(&json).unwrap_or_default(),
        })
    }

    /// Whether all of it was read, and is as cryptsetup writes it: every slot is apart from the headers and the data.
    pub fn is_whole(&self) -> bool {
        let data = self.data_offset.unwrap_or_default();
        let apart = |slot: &Luks2Slot| self.headers.end <= slot.area.start && slot.area.end <= data;
        !self.slots.is_empty() && self.slots.iter().all(apart)
    }

    /// The JSON behind the binary header (LUKS2 On-Disk Format Specification, 3).
    fn json(bytes: &[u8], header_len: u64) -> Option<Value> {
        let header_len = usize::try_from(header_len).ok()?;
        let json = bytes.get(LUKS2_BINARY_LEN..header_len)?.split(|b| *b == 0).next()?;
        serde_json::from_slice(json).ok()
    }

    fn data_offset(json: &Value) -> Option<u64> {
        let segments = json["segments"].as_object()?.values();
        segments.filter_map(|segment| segment["offset"].as_str()?.parse().ok()).min()
    }

    /// All of them, or nothing.
    fn slots(json: &Value) -> Option<Vec<Luks2Slot>> {
        let slots = json["keyslots"].as_object()?.iter();
        let slot = |(number, slot): (&String, &Value)| {
            let place = |field: &str| slot["area"][field].as_str()?.parse::<u64>().ok();
            let start = place("offset")?;
            let salt = STANDARD.decode(slot["kdf"]["salt"].as_str()?).ok()?;
            let area = start..start.checked_add(place("size")?)?;
            Some(Luks2Slot { number: number.parse().ok()?, salt, area })
        };
        slots.map(slot).collect()
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], LuksError> {
    bytes.get(at..at + N).and_then(|part| part.try_into().ok()).ok_or(LuksError::Truncated)
}

fn number(bytes: &[u8], at: usize) -> Result<u32, LuksError> {
    array(bytes, at).map(u32::from_be_bytes)
}

/// Text up to the first NUL. It is printed, so it has to be plain.
fn text(bytes: &[u8], at: usize, len: usize) -> Result<String, LuksError> {
    let field = bytes.get(at..at + len).ok_or(LuksError::Truncated)?;
    let field = field.split(|b| *b == 0).next().unwrap_or_default();
    if !field.iter().all(|b| b.is_ascii_graphic() || *b == b' ') {
        return Err(LuksError::Damaged("a text field holds no text"));
    }
    Ok(String::from_utf8_lossy(field).into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The header that QEMU 7.2 wrote for a 10 MiB raw image, its digest and salts zeroed.
    fn sample() -> Vec<u8> {
        let mut header = vec![0; LUKS1_HEADER_LEN];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, MAGIC);
        put(6, &1u16.to_be_bytes());
        put(8, b"aes");
        put(40, b"xts-plain64");
        put(72, b"sha256");
        put(104, &4040u32.to_be_bytes());
        put(108, &64u32.to_be_bytes());
        put(164, &10833u32.to_be_bytes());
        put(168, b"6fe7e47d-487c-4505-9ea5-2f5207c8537f");
        for n in 0..SLOTS {
            let at = FIRST_SLOT + n * SLOT_LEN;
            put(at, &if n == 0 { SLOT_ACTIVE } else { SLOT_INACTIVE }.to_be_bytes());
            put(at + 4, &if n == 0 { 42946u32 } else { 0 }.to_be_bytes());
            put(at + 40, &(8 + 504 * n as u32).to_be_bytes());
            put(at + 44, &4000u32.to_be_bytes());
        }
        header
    }

    #[test]
    fn every_field_is_read() {
        let LuksHeader::V1(header) = LuksHeader::parse(&sample()).unwrap() else { panic!() };
        assert_eq!((&*header.cipher, &*header.mode, &*header.hash), ("aes", "xts-plain64", "sha256"));
        assert_eq!((header.payload_offset, header.key_len), (2_068_480, 64));
        assert_eq!(header.digest_iterations, 10833);
        assert_eq!(header.uuid, "6fe7e47d-487c-4505-9ea5-2f5207c8537f");
        let active: Vec<_> = header.active_slots().collect();
        assert_eq!(active.len(), 1);
        assert_eq!((active[0].0, active[0].1.iterations), (0, 42946));
        assert_eq!(header.material(&header.slots[0]), 4096..4096 + 64 * 4000);
        assert_eq!(header.material(&header.slots[7]).start, 1_810_432);
    }

    #[test]
    fn what_is_read_is_written_as_it_was() {
        let mut bytes = sample();
        for (n, byte) in bytes.iter_mut().enumerate() {
            if (112..164).contains(&n) || (FIRST_SLOT + 8..FIRST_SLOT + 40).contains(&n) {
                *byte = n as u8;
            }
        }
        let LuksHeader::V1(header) = LuksHeader::parse(&bytes).unwrap() else { panic!() };
        assert_eq!(header.encode(), bytes[..]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let broken = |at: usize, byte: u8| {
            let mut bytes = sample();
            bytes[at] = byte;
            LuksHeader::parse(&bytes).unwrap_err()
        };
        assert_eq!(broken(0, b'X'), LuksError::NotLuks);
        assert_eq!(broken(7, 3), LuksError::Version(3));
        assert!(matches!(broken(FIRST_SLOT, 1), LuksError::Damaged(_)));
        assert!(matches!(broken(8, 0x1b), LuksError::Damaged(_)));
        assert!(matches!(broken(111, 0), LuksError::Damaged(_)));
        assert_eq!(LuksHeader::parse(&sample()[..591]), Err(LuksError::Truncated));
        assert_eq!(LuksHeader::parse(MAGIC), Err(LuksError::Truncated));
        assert_eq!(LuksHeader::parse(b""), Err(LuksError::NotLuks));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
            let _ = LuksHeader::parse(&bytes);
        }

        #[test]
        fn no_damage_makes_it_panic(
            at in proptest::collection::vec((0..LUKS1_HEADER_LEN, any::<u8>()), 0..20),
            len in 0..=LUKS1_HEADER_LEN,
            version in 1u8..=2,
        ) {
            let mut bytes = sample();
            bytes[7] = version;
            for (at, byte) in at {
                bytes[at] = byte;
            }
            if let Ok(LuksHeader::V1(header)) = LuksHeader::parse(&bytes[..len]) {
                for slot in &header.slots {
                    prop_assert!(header.material(slot).end >= slot.material_offset);
                }
            }
        }
    }
}
