//! The header of a qcow2 image. Pure. Source: QEMU, docs/interop/qcow2.

/// What every qcow2 header begins with.
pub(super) const MAGIC: &[u8; 4] = b"QFI\xfb";
/// The length of a header of version 2; version 3 says its own.
const V2_HEADER_LEN: usize = 72;
const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_LUKS_HEADER: u32 = 0x0537_be77;
/// The bit of the incompatible features that says the data is in another file.
const FEATURE_DATA_FILE: u64 = 1 << 2;

/// Why bytes are no qcow2 header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Qcow2Error {
    /// It ends too early.
    #[error("the qcow2 header is cut off")]
    Truncated,
    /// Version 1 is the legacy `qcow` format.
    #[error("qcow2 version {0} is not known")]
    Version(u32),
    /// A field does not hold what it should.
    #[error("the qcow2 header is damaged: {0}")]
    Damaged(&'static str),
}

/// How a qcow2 image is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Qcow2Encryption {
    /// Not at all.
    None,
    /// The old AES, which the system emulators refuse.
    Aes,
    /// LUKS, with the place of its header and key slots.
    Luks {
        /// Where it begins in the file.
        offset: u64,
        /// How long it is, key material included.
        len: u64,
    },
}

/// What vmward needs to know of a qcow2 image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Qcow2Header {
    /// What the guest sees, in bytes.
    pub virtual_size: u64,
    /// How it is encrypted.
    pub encryption: Qcow2Encryption,
    /// The backing image as it is written there.
    pub backing: Option<String>,
    /// The backing image's format.
    pub backing_format: Option<String>,
    /// Whether the guest's data is in a file of its own.
    pub data_file: bool,
}

impl Qcow2Header {
    /// Reads the header at the start of `bytes`, which begin with the magic and hold the first cluster or the
    /// start of it.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Qcow2Error> {
        let version = number(bytes, 4)?;
        let (features, header_len) = match version {
            2 => (0, V2_HEADER_LEN),
            3 => (long(bytes, 72)?, usize::try_from(number(bytes, 100)?).unwrap_or(usize::MAX)),
            other => return Err(Qcow2Error::Version(other)),
        };
        if header_len < V2_HEADER_LEN || header_len > bytes.len() {
            return Err(Qcow2Error::Truncated);
        }
        let extensions = Extensions::parse(bytes, header_len)?;
        let encryption = match (number(bytes, 32)?, extensions.luks) {
            (0, _) => Qcow2Encryption::None,
            (1, _) => Qcow2Encryption::Aes,
            (2, Some((offset, len))) => Qcow2Encryption::Luks { offset, len },
            (2, None) => return Err(Qcow2Error::Damaged("it is encrypted but has no LUKS header")),
            _ => return Err(Qcow2Error::Damaged("its encryption is not known")),
        };
        let backing = match long(bytes, 8)? {
            0 => None,
            offset => Some(backing_name(bytes, offset)?),
        };
        Ok(Self {
            virtual_size: long(bytes, 24)?,
            encryption,
            backing,
            backing_format: extensions.backing_format,
            data_file: features & FEATURE_DATA_FILE != 0,
        })
    }
}

#[derive(Default)]
struct Extensions {
    luks: Option<(u64, u64)>,
    backing_format: Option<String>,
}

impl Extensions {
    fn parse(bytes: &[u8], mut at: usize) -> Result<Self, Qcow2Error> {
        let mut found = Self::default();
        loop {
            let kind = number(bytes, at)?;
            if kind == EXTENSION_END {
                return Ok(found);
            }
            let len = usize::try_from(number(bytes, at + 4)?).unwrap_or(usize::MAX);
            let end = (at + 8).checked_add(len).ok_or(Qcow2Error::Truncated)?;
            let data = bytes.get(at + 8..end).ok_or(Qcow2Error::Truncated)?;
            match kind {
                EXTENSION_LUKS_HEADER => found.luks = Some((long(data, 0)?, long(data, 8)?)),
                EXTENSION_BACKING_FORMAT => found.backing_format = Some(text(data)?),
                _ => {}
            }
            at = end.next_multiple_of(8);
        }
    }
}

fn backing_name(bytes: &[u8], offset: u64) -> Result<String, Qcow2Error> {
    let start = usize::try_from(offset).map_err(|_| Qcow2Error::Truncated)?;
    let len = usize::try_from(number(bytes, 16)?).map_err(|_| Qcow2Error::Truncated)?;
    let end = start.checked_add(len).ok_or(Qcow2Error::Truncated)?;
    text(bytes.get(start..end).ok_or(Qcow2Error::Truncated)?)
}

fn text(bytes: &[u8]) -> Result<String, Qcow2Error> {
    let text = std::str::from_utf8(bytes).map_err(|_| Qcow2Error::Damaged("a name is no text"))?;
    if text.chars().any(char::is_control) {
        return Err(Qcow2Error::Damaged("a name has control characters in it"));
    }
    Ok(text.to_owned())
}

fn number(bytes: &[u8], at: usize) -> Result<u32, Qcow2Error> {
    let part = bytes.get(at..).and_then(|b| b.first_chunk()).ok_or(Qcow2Error::Truncated)?;
    Ok(u32::from_be_bytes(*part))
}

fn long(bytes: &[u8], at: usize) -> Result<u64, Qcow2Error> {
    let part = bytes.get(at..).and_then(|b| b.first_chunk()).ok_or(Qcow2Error::Truncated)?;
    Ok(u64::from_be_bytes(*part))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(crypt: u32, extensions: &[(u32, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 104];
        bytes[..4].copy_from_slice(MAGIC);
        bytes[7] = 3;
        bytes[24..32].copy_from_slice(&(10u64 << 20).to_be_bytes());
        bytes[32..36].copy_from_slice(&crypt.to_be_bytes());
        bytes[103] = 104;
        for (kind, data) in extensions {
            bytes.extend(kind.to_be_bytes());
            bytes.extend((data.len() as u32).to_be_bytes());
            bytes.extend(*data);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        bytes.extend([0; 8]);
        let at = bytes.len() as u64;
        bytes[8..16].copy_from_slice(&at.to_be_bytes());
        bytes[19] = 8;
        bytes.extend(b"base.img");
        bytes
    }

    #[test]
    fn the_luks_header_is_found() {
        let pointer = [0x40000u64.to_be_bytes(), 0x1f9000u64.to_be_bytes()].concat();
        let bytes = sample(2, &[(EXTENSION_BACKING_FORMAT, b"raw"), (EXTENSION_LUKS_HEADER, &pointer)]);
        let header = Qcow2Header::parse(&bytes).unwrap();
        assert_eq!(header.encryption, Qcow2Encryption::Luks { offset: 0x40000, len: 0x1f9000 });
        assert_eq!(header.virtual_size, 10 << 20);
        assert_eq!(header.backing.as_deref(), Some("base.img"));
        assert_eq!(header.backing_format.as_deref(), Some("raw"));
        assert!(!header.data_file);
    }

    #[test]
    fn encrypted_without_a_luks_header_is_damage() {
        assert!(matches!(Qcow2Header::parse(&sample(2, &[])), Err(Qcow2Error::Damaged(_))));
        assert!(matches!(Qcow2Header::parse(&sample(3, &[])), Err(Qcow2Error::Damaged(_))));
        assert_eq!(Qcow2Header::parse(&sample(1, &[])).unwrap().encryption, Qcow2Encryption::Aes);
    }

    proptest! {
        #[test]
        fn no_damage_makes_it_panic(
            changes in proptest::collection::vec((0..160usize, any::<u8>()), 0..20),
            len in 0..160usize,
        ) {
            let mut bytes = sample(2, &[(EXTENSION_LUKS_HEADER, &[0; 16])]);
            for (at, byte) in changes {
                if let Some(b) = bytes.get_mut(at) {
                    *b = byte;
                }
            }
            let _ = Qcow2Header::parse(&bytes[..len.min(bytes.len())]);
        }
    }
}
