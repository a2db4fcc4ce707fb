//! The cipher of a LUKS volume.

use crate::xml::{Keyword, keywords};

keywords! {
    /// The block cipher.
    pub enum CipherName {
        /// AES.
        Aes = "aes",
        /// Serpent.
        Serpent = "serpent",
        /// Twofish.
        Twofish = "twofish",
    }
}

keywords! {
    /// How blocks are chained.
    pub enum CipherMode {
        /// XTS; the volume key has twice the cipher's length.
        Xts = "xts",
        /// CBC.
        Cbc = "cbc",
    }
}

keywords! {
    /// A hash function.
    pub enum HashName {
        /// SHA-1.
        Sha1 = "sha1",
        /// SHA-256.
        Sha256 = "sha256",
        /// SHA-512.
        Sha512 = "sha512",
        /// RIPEMD-160.
        Ripemd160 = "ripemd160",
    }
}

keywords! {
    /// How each sector gets its initialisation vector.
    pub enum IvGenerator {
        /// The sector's number, 32 bits.
        Plain = "plain",
        /// The sector's number, 64 bits.
        Plain64 = "plain64",
        /// The sector's number, encrypted under a hash of the key.
        Essiv = "essiv",
    }
}

/// What differs from QEMU's choice (aes-256, xts, plain64, sha256).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cipher {
    /// The cipher with its key's length in bits.
    pub algorithm: Option<(CipherName, u16)>,
    /// The mode.
    pub mode: Option<CipherMode>,
    /// The hash of the key derivation.
    pub hash: Option<HashName>,
    /// The generator of initialisation vectors.
    pub iv: Option<IvGenerator>,
    /// Its hash, where it needs one.
    pub iv_hash: Option<HashName>,
}

impl Cipher {
    /// The lengths of keys in bits.
    pub const KEY_BITS: [u16; 3] = [128, 192, 256];

    /// Reads `NAME-BITS-MODE[-IV[:HASH]]`, as in `aes-256-xts` or `serpent-256-cbc-essiv:sha256`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = text.splitn(4, '-');
        let algorithm =
            (word::<CipherName>(parts.next(), "a cipher")?, bits(parts.next().unwrap_or_default())?);
        let mode = word::<CipherMode>(parts.next(), "a mode")?;
        let (iv, iv_hash) = match parts.next() {
            None => (None, None),
            Some(iv) => match iv.split_once(':') {
                None => (Some(word(Some(iv), "an IV generator")?), None),
                Some((iv, hash)) => {
                    (Some(word(Some(iv), "an IV generator")?), Some(word(Some(hash), "a hash")?))
                }
            },
        };
        let cipher = Self { algorithm: Some(algorithm), mode: Some(mode), hash: None, iv, iv_hash };
        cipher.check().map(|()| cipher)
    }

    /// Whether the parts go together.
    pub(super) fn check(&self) -> Result<(), String> {
        match (self.iv, self.iv_hash) {
            (Some(IvGenerator::Essiv), None) => {
                Err("the IV generator essiv needs a hash, as in essiv:sha256".into())
            }
            _ => Ok(()),
        }
    }

    /// As options of `qemu-img create`, each with the prefix of its format.
    pub(super) fn options(&self, prefix: &str) -> Vec<String> {
        let mut options = Vec::new();
        let mut add = |name: &str, value: Option<String>| {
            options.extend(value.map(|v| format!("{prefix}{name}={v}")));
        };
        add("cipher-alg", self.algorithm.map(|(name, bits)| format!("{}-{bits}", name.as_str())));
        add("cipher-mode", self.mode.map(|m| m.as_str().to_owned()));
        add("hash-alg", self.hash.map(|h| h.as_str().to_owned()));
        add("ivgen-alg", self.iv.map(|i| i.as_str().to_owned()));
        add("ivgen-hash-alg", self.iv_hash.map(|h| h.as_str().to_owned()));
        options
    }
}

fn bits(text: &str) -> Result<u16, String> {
    text.parse()
        .ok()
        .filter(|bits| Cipher::KEY_BITS.contains(bits))
        .ok_or_else(|| format!("'{text}' is not the length of a key; it is 128, 192 or 256"))
}

fn word<K: Keyword>(text: Option<&str>, what: &str) -> Result<K, String> {
    let text = text.unwrap_or_default();
    K::from_word(text).ok_or_else(|| format!("'{text}' is not {what}; vmward knows {}", K::expected()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_as_in_qemu_and_cryptsetup() {
        let options = |text| Cipher::parse(text).unwrap().options("encrypt.").join(",");
        assert_eq!(options("aes-256-xts"), "encrypt.cipher-alg=aes-256,encrypt.cipher-mode=xts");
        assert_eq!(
            options("serpent-192-cbc-essiv:sha256"),
            "encrypt.cipher-alg=serpent-192,encrypt.cipher-mode=cbc,\
             encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256"
        );
        for wrong in ["", "aes", "aes-256", "aes-512-xts", "des-128-cbc", "aes-256-ecb", "aes-256-cbc-essiv"]
        {
            assert!(Cipher::parse(wrong).is_err(), "{wrong}");
        }
        assert!(Cipher::default().options("").is_empty());
    }
}
