//! What a volume in a cluster is called, and what it is to be.

use std::fmt;
use std::path::PathBuf;

use uuid::Uuid;

use crate::keywords;
use crate::secret::SecretValue;

use super::super::{Cipher, CipherMode, CipherName, IvGenerator, Kdf, VolumeError};

/// librbd's LUKS2 has sectors of this many bytes.
pub(super) const LUKS2_SECTOR: u64 = 4096;

/// `rbd:POOL/IMAGE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RbdName {
    pub(super) pool: String,
    pub(super) image: String,
}

impl RbdName {
    /// What names begin with.
    pub const PREFIX: &str = "rbd:";

    /// Reads a name. Ceph and QEMU give a meaning to some characters, which are refused.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parts = text.strip_prefix(Self::PREFIX).and_then(|name| name.split_once('/'));
        let plain = |part: &str| {
            !part.is_empty()
                && !part.starts_with('-')
                && !part.contains(|c: char| "/@:=\\".contains(c) || c.is_control())
        };
        match parts {
            Some((pool, image)) if plain(pool) && plain(image) => {
                Ok(Self { pool: pool.to_owned(), image: image.to_owned() })
            }
            _ => Err(format!(
                "'{text}' is not rbd:POOL/IMAGE, two names without / @ : = and \\ (a namespace or a snapshot is not for volumes)"
            )),
        }
    }

    /// As rbd is told.
    pub(super) fn spec(&self) -> String {
        format!("{}/{}", self.pool, self.image)
    }

    /// What the image is called until it is complete.
    pub(super) fn unfinished(&self) -> Self {
        Self { pool: self.pool.clone(), image: format!("{}.vmward-{}", self.image, Uuid::new_v4()) }
    }

    /// As messages and the usages of secrets name it.
    pub fn path(&self) -> PathBuf {
        self.to_string().into()
    }
}

impl fmt::Display for RbdName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}/{}", Self::PREFIX, self.pool, self.image)
    }
}

keywords! {
    /// How volumes in a cluster are encrypted.
    #[derive(Default)]
    pub enum RbdFormat {
        /// LUKS1 by librbd.
        Luks = "luks",
        /// LUKS2 by librbd.
        #[default]
        Luks2 = "luks2",
        /// LUKS1 by QEMU, as around a raw file.
        Raw = "raw",
    }
}

/// A cluster, and who logs in.
#[derive(Debug, Default)]
pub struct Cluster {
    /// Its configuration; `None`: Ceph's own places.
    pub conf: Option<PathBuf>,
    /// The user, without `client.`; `None`: `admin`.
    pub user: Option<String>,
    /// Its key, as bytes; `None`: the keyring of this host.
    pub key: Option<SecretValue>,
}

/// A volume to be made in a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRbd {
    /// Its name.
    pub name: RbdName,
    /// How it is encrypted.
    pub format: RbdFormat,
    /// What the guest sees, in bytes.
    pub size: u64,
    /// How it is encrypted in detail.
    pub cipher: Cipher,
    /// What the key derivation costs.
    pub kdf: Kdf,
}

impl NewRbd {
    /// Says what cannot be made.
    pub fn check(&self) -> Result<(), VolumeError> {
        let wrong = |why: &str| Err(VolumeError::Request(why.to_owned()));
        self.cipher.check().map_err(VolumeError::Request)?;
        if self.format == RbdFormat::Raw {
            return Ok(());
        }
        // qapi/block-core: RbdEncryptionCreateOptionsLUKSBase has nothing but cipher-alg, and librbd takes no other.
        let Cipher { algorithm, mode, hash, iv, iv_hash } = self.cipher;
        let has_it = matches!(algorithm, None | Some((CipherName::Aes, 128 | 256)))
            && matches!(mode, None | Some(CipherMode::Xts))
            && matches!(iv, None | Some(IvGenerator::Plain64))
            && hash.is_none()
            && iv_hash.is_none();
        if !has_it {
            return wrong(
                "librbd has the ciphers aes-256-xts and aes-128-xts, and its own hash; --format raw has all",
            );
        }
        if self.kdf == Kdf::Fast {
            return wrong("what the key derivation costs is librbd's choice; --format raw has --kdf fast");
        }
        // librbd writes the header into an image of the guest's size, which grows by the header afterwards.
        let (header, smallest) = match self.format {
            RbdFormat::Luks2 => (16 << 20, "a luks2 volume of librbd is larger than 16 MiB"),
            _ => (4 << 20, "a luks volume of librbd is larger than 4 MiB"),
        };
        if self.size <= header {
            return wrong(smallest);
        }
        if self.format == RbdFormat::Luks2 && !self.size.is_multiple_of(LUKS2_SECTOR) {
            return wrong("the size of a luks2 volume is a multiple of 4096 bytes");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_a_pool_and_an_image() {
        let name = RbdName::parse("rbd:guests/web1.root").unwrap();
        assert_eq!(
            (name.spec(), name.to_string()),
            ("guests/web1.root".into(), "rbd:guests/web1.root".into())
        );
        for wrong in [
            "guests/web1",
            "rbd:guests",
            "rbd:/a",
            "rbd:a/",
            "rbd:a/b/c",
            "rbd:a/b@s",
            "rbd:a/b:id=x",
            "rbd:a/-b",
            "rbd:-a/b",
        ] {
            assert!(RbdName::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_librbd_would_not_do_is_refused() {
        let new = |format, size, cipher: &str, kdf| NewRbd {
            name: RbdName::parse("rbd:a/b").unwrap(),
            format,
            size,
            cipher: if cipher.is_empty() { Cipher::default() } else { Cipher::parse(cipher).unwrap() },
            kdf,
        };
        for (format, size, cipher, kdf, good) in [
            (RbdFormat::Luks, (4 << 20) + 512, "aes-128-xts-plain64", Kdf::Auto, true),
            (RbdFormat::Luks, 4 << 20, "", Kdf::Auto, false),
            (RbdFormat::Luks2, (16 << 20) + 4096, "", Kdf::Slow, true),
            (RbdFormat::Luks2, (16 << 20) + 512, "", Kdf::Auto, false),
            (RbdFormat::Luks2, 16 << 20, "", Kdf::Auto, false),
            (RbdFormat::Luks, 1 << 30, "", Kdf::Fast, false),
            (RbdFormat::Luks, 1 << 30, "serpent-256-xts", Kdf::Auto, false),
            (RbdFormat::Luks2, 1 << 30, "aes-256-cbc", Kdf::Auto, false),
            (RbdFormat::Raw, 512, "serpent-256-cbc-essiv:sha256", Kdf::Fast, true),
        ] {
            assert_eq!(new(format, size, cipher, kdf).check().is_ok(), good, "{format:?} {size} {cipher}");
        }
    }
}
