//! The hashes of LUKS headers.

use zeroize::Zeroize;

/// A hash by the name that headers have for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hash {
    /// RFC 1321.
    Md5,
    /// ISO/IEC 10118-3.
    Ripemd160,
    /// FIPS 180-4.
    Sha1,
    /// FIPS 180-4.
    Sha224,
    /// FIPS 180-4.
    Sha256,
    /// FIPS 180-4.
    Sha384,
    /// FIPS 180-4.
    Sha512,
}

/// Does something with the type of a hash.
macro_rules! with_type {
    ($hash:expr, $name:ident => $work:expr) => {
        match $hash {
            $crate::Hash::Md5 => {
                type $name = md5::Md5;
                $work
            }
            $crate::Hash::Ripemd160 => {
                type $name = ripemd::Ripemd160;
                $work
            }
            $crate::Hash::Sha1 => {
                type $name = sha1::Sha1;
                $work
            }
            $crate::Hash::Sha224 => {
                type $name = sha2::Sha224;
                $work
            }
            $crate::Hash::Sha256 => {
                type $name = sha2::Sha256;
                $work
            }
            $crate::Hash::Sha384 => {
                type $name = sha2::Sha384;
                $work
            }
            $crate::Hash::Sha512 => {
                type $name = sha2::Sha512;
                $work
            }
        }
    };
}

pub(super) use with_type;

impl Hash {
    /// The hash that a header names.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "md5" => Self::Md5,
            "ripemd160" => Self::Ripemd160,
            "sha1" => Self::Sha1,
            "sha224" => Self::Sha224,
            "sha256" => Self::Sha256,
            "sha384" => Self::Sha384,
            "sha512" => Self::Sha512,
            _ => return None,
        })
    }

    /// How many bytes its result has.
    pub fn output_len(self) -> usize {
        with_type!(self, D => <D as sha2::Digest>::output_size())
    }

    /// The hash of some bytes, into the start of `out`.
    pub fn digest(self, parts: &[&[u8]], out: &mut [u8]) {
        with_type!(self, D => {
            let mut digest = <D as sha2::Digest>::new();
            parts.iter().for_each(|part| sha2::Digest::update(&mut digest, part));
            let mut result = sha2::Digest::finalize(digest);
            let len = out.len().min(result.len());
            out[..len].copy_from_slice(&result[..len]);
            Zeroize::zeroize(result.as_mut_slice());
        });
    }
}
