//! A secret's value.

use std::fmt;
use std::io::{self, Read};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rand::CryptoRng;
use subtle::ConstantTimeEq;

use super::locked::LockedBuffer;
use super::os_random;

/// The longest value that is taken. libvirt's limit for a secret's value is the same order; disk
/// passphrases, tokens and keys are far shorter.
pub const MAX_VALUE_LEN: usize = 1 << 20;

/// What is wrong with a value, without a word of the value.
#[derive(Debug, thiserror::Error)]
pub enum ValueError {
    /// It could not be read.
    #[error("the value could not be read")]
    Read(#[source] io::Error),
    /// It is longer than [`MAX_VALUE_LEN`].
    #[error("the value is longer than {MAX_VALUE_LEN} bytes")]
    TooLong,
    /// There are no bytes in it.
    #[error("the value is empty")]
    Empty,
    /// The kernel gave no memory for it.
    #[error("there is no protected memory for the value")]
    Memory(#[source] nix::Error),
    /// QEMU's LUKS driver takes text only.
    #[error("the value is no passphrase: it is not UTF-8 text, or has a NUL byte in it")]
    NotText,
}

/// Bytes in locked memory that no core dump, log or copy shows; zeroized when dropped.
///
/// There is no `Clone` and no `Display`; `Debug` prints `[redacted]`; comparison takes the same time
/// whatever the bytes.
pub struct SecretValue(LockedBuffer);

impl SecretValue {
    /// A value of `len` zero bytes, to be filled in place through [`SecretValue::expose_mut`].
    pub fn zeroed(len: usize) -> Result<Self, ValueError> {
        if len > MAX_VALUE_LEN {
            return Err(ValueError::TooLong);
        }
        LockedBuffer::new(len).map(Self).map_err(ValueError::Memory)
    }

    /// A copy of bytes that are the caller's to zeroize.
    pub fn copy_of(bytes: &[u8]) -> Result<Self, ValueError> {
        let mut value = Self::zeroed(bytes.len())?;
        value.expose_mut().copy_from_slice(bytes);
        Ok(value)
    }

    /// Reads everything there is, straight into locked memory.
    pub fn read_from(mut source: impl Read) -> Result<Self, ValueError> {
        // Most values fit the first page. A longer one is read on into a buffer of the largest size.
        const FIRST: usize = 4096;
        let mut value = Self::zeroed(FIRST)?;
        let mut filled = 0;
        loop {
            if filled == value.expose().len() {
                if filled > FIRST {
                    return Err(ValueError::TooLong);
                }
                // One byte more than is allowed tells "just fits" from "too long".
                let mut longer = Self(LockedBuffer::new(MAX_VALUE_LEN + 1).map_err(ValueError::Memory)?);
                longer.expose_mut()[..filled].copy_from_slice(value.expose());
                value = longer;
            }
            match source.read(&mut value.expose_mut()[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(ValueError::Read(e)),
            }
        }
        if filled > MAX_VALUE_LEN {
            return Err(ValueError::TooLong);
        }
        value.0.truncate(filled);
        Ok(value)
    }

    /// `len` random bytes.
    pub fn random(len: usize, random: &mut impl CryptoRng) -> Result<Self, ValueError> {
        let mut value = Self::zeroed(len)?;
        random.fill_bytes(value.expose_mut());
        Ok(value)
    }

    /// 256 random bits as text: a passphrase that nobody guesses.
    pub fn random_passphrase() -> Result<Self, ValueError> {
        const RANDOM_LEN: usize = 32;
        let random = Self::random(RANDOM_LEN, &mut os_random())?;
        let mut text = Self::zeroed(RANDOM_LEN.div_ceil(3) * 4)?;
        let len =
            STANDARD.encode_slice(random.expose(), text.expose_mut()).map_err(|_| ValueError::TooLong)?;
        text.truncate(len);
        Ok(text)
    }

    /// The bytes. Whoever copies them zeroizes the copy.
    pub fn expose(&self) -> &[u8] {
        self.0.bytes()
    }

    /// The bytes, to be filled in.
    pub fn expose_mut(&mut self) -> &mut [u8] {
        self.0.bytes_mut()
    }

    /// Makes the value shorter (a decoder that needed more room than it filled).
    pub fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
    }

    /// The number of bytes.
    pub fn len(&self) -> usize {
        self.expose().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value as a LUKS passphrase, which QEMU takes only as UTF-8 without NUL.
    pub fn as_passphrase(&self) -> Result<&str, ValueError> {
        match std::str::from_utf8(self.expose()) {
            Ok("") => Err(ValueError::Empty),
            Ok(text) if !text.contains('\0') => Ok(text),
            _ => Err(ValueError::NotText),
        }
    }
}

impl PartialEq for SecretValue {
    fn eq(&self, other: &Self) -> bool {
        self.expose().ct_eq(other.expose()).into()
    }
}

impl Eq for SecretValue {}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        let value = SecretValue::copy_of(b"hunter2").unwrap();
        assert_eq!(format!("{value:?}"), "[redacted]");
    }

    #[test]
    fn reading_stops_at_the_limit() {
        let read = |n: usize| SecretValue::read_from(&*vec![b'x'; n]);
        assert_eq!(read(0).unwrap().len(), 0);
        assert_eq!(read(4096).unwrap().len(), 4096);
        assert_eq!(read(MAX_VALUE_LEN).unwrap().len(), MAX_VALUE_LEN);
        assert!(matches!(read(MAX_VALUE_LEN + 1), Err(ValueError::TooLong)));
    }

    #[test]
    fn passphrases_are_text_without_nul() {
        let check = |bytes: &[u8]| SecretValue::copy_of(bytes).unwrap().as_passphrase().is_ok();
        assert!(check("pässwort".as_bytes()));
        assert!(!check(b""));
        assert!(!check(b"a\0b"));
        assert!(!check(&[0xff, 0xfe]));
    }

    #[test]
    fn equal_means_same_bytes() {
        let value = |b: &[u8]| SecretValue::copy_of(b).unwrap();
        assert_eq!(value(b"a"), value(b"a"));
        assert_ne!(value(b"a"), value(b"b"));
        assert_ne!(value(b"a"), value(b"aa"));
    }
}
