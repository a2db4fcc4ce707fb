//! The hashes of LUKS headers, and what is made of them: key derivation (PBKDF2, RFC 8018) and the diffusion of the
//! anti-forensic splitter.

use std::thread;

use hmac::{Hmac, KeyInit, Mac};
use md5::Md5;
use ripemd::Ripemd160;
use sha1::Sha1;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use zeroize::{Zeroize, Zeroizing};

use super::{sha256, wiping_stack};

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

/// The longest of their results.
const LONGEST: usize = 64;

/// Does something with the type of a hash.
macro_rules! with_type {
    ($hash:expr, $name:ident => $work:expr) => {
        match $hash {
            Hash::Md5 => {
                type $name = Md5;
                $work
            }
            Hash::Ripemd160 => {
                type $name = Ripemd160;
                $work
            }
            Hash::Sha1 => {
                type $name = Sha1;
                $work
            }
            Hash::Sha224 => {
                type $name = Sha224;
                $work
            }
            Hash::Sha256 => {
                type $name = Sha256;
                $work
            }
            Hash::Sha384 => {
                type $name = Sha384;
                $work
            }
            Hash::Sha512 => {
                type $name = Sha512;
                $work
            }
        }
    };
}

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
        with_type!(self, D => <D as Digest>::output_size())
    }

    /// The hash of some bytes, into the start of `out`.
    pub fn digest(self, parts: &[&[u8]], out: &mut [u8]) {
        with_type!(self, D => {
            let mut digest = D::new();
            parts.iter().for_each(|part| digest.update(part));
            let mut result = digest.finalize();
            let len = out.len().min(result.len());
            out[..len].copy_from_slice(&result[..len]);
            Zeroize::zeroize(result.as_mut_slice());
        });
    }

    /// PBKDF2 with HMAC of this hash. The blocks of the result do not depend on each other, so up to `threads` of them
    /// are made at the same time: who guesses passphrases does so anyhow.
    pub fn pbkdf2(self, password: &[u8], salt: &[u8], iterations: u32, out: &mut [u8], threads: usize) {
        // More than one block at a time on one processor, where it can.
        let lanes = if self == Self::Sha256 && sha256::is_fast() { sha256::LANES } else { 1 };
        let block_len = self.output_len();
        let blocks = out.len().div_ceil(block_len);
        // As many blocks to each thread as there are for it, and no thread with none. Two blocks on two threads are there
        // in 0.6 times the time of two at once on one, which is the less work where the threads have others.
        let per_thread = blocks.div_ceil(threads.max(1)).max(1);
        let per_thread = if per_thread > 1 { per_thread.next_multiple_of(lanes) } else { 1 };
        let work = |first: usize, part: &mut [u8]| {
            for (n, group) in part.chunks_mut(block_len * lanes).enumerate() {
                let index = u32::try_from(first + n * lanes).unwrap_or(u32::MAX - 1) + 1;
                if lanes > 1 {
                    sha256::pbkdf2_blocks(password, salt, iterations, index, group);
                } else {
                    with_type!(self, D => block::<D>(password, salt, iterations, index, group));
                }
            }
        };
        thread::scope(|scope| {
            let mut parts = out.chunks_mut(block_len * per_thread).enumerate();
            let own = parts.next();
            for (n, part) in parts {
                // The C library keeps the stacks of threads that have ended, for others.
                scope.spawn(move || wiping_stack(|| work(n * per_thread, part)));
            }
            if let Some((_, part)) = own {
                work(0, part);
            }
        });
    }
}

/// One block of PBKDF2's result.
fn block<D>(password: &[u8], salt: &[u8], iterations: u32, index: u32, out: &mut [u8])
where
    D: hmac::EagerHash,
{
    let Ok(keyed) = <Hmac<D> as KeyInit>::new_from_slice(password) else { return };
    let mut sum = Zeroizing::new([0; LONGEST]);
    let mut last = keyed.clone().chain_update(salt).chain_update(index.to_be_bytes()).finalize().into_bytes();
    let len = last.len();
    sum[..len].copy_from_slice(&last);
    for _ in 1..iterations {
        last = keyed.clone().chain_update(&last).finalize().into_bytes();
        sum.iter_mut().zip(&last).for_each(|(s, l)| *s ^= l);
    }
    out.copy_from_slice(&sum[..out.len()]);
    Zeroize::zeroize(last.as_mut_slice());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// RFC 6070 for SHA-1; for SHA-256 the same inputs, with the results of Python's hashlib.
    #[test]
    fn results_are_those_of_others() {
        let derive = |hash: Hash, iterations, len| {
            let mut out = vec![0; len];
            hash.pbkdf2(b"password", b"salt", iterations, &mut out, 1);
            hex(&out)
        };
        assert_eq!(derive(Hash::Sha1, 1, 20), "0c60c80f961f0e71f3a9b524af6012062fe037a6");
        assert_eq!(derive(Hash::Sha1, 4096, 20), "4b007901b765489abead49d926f721d065a429c1");
        assert_eq!(
            derive(Hash::Sha256, 4096, 32),
            "c5e478d59288c841aa530db6845c4c8d962893a001ce4e11a4963873aa98134a"
        );
    }

    #[test]
    fn blocks_made_together_are_those_made_one_by_one() {
        let long = [b'p'; 100];
        for password in [&b""[..], b"password", &long[..64], &long] {
            for (iterations, len) in [(1, 32), (2, 64), (1000, 64), (7, 96), (3, 20), (5, 100)] {
                let mut expected = vec![0; len];
                for (n, part) in expected.chunks_mut(32).enumerate() {
                    block::<Sha256>(password, b"some salt", iterations, n as u32 + 1, part);
                }
                for threads in [1, 2, 5] {
                    let mut found = vec![0; len];
                    Hash::Sha256.pbkdf2(password, b"some salt", iterations, &mut found, threads);
                    assert_eq!(hex(&found), hex(&expected), "{iterations} {len} {threads}");
                }
            }
        }
    }

    #[test]
    fn any_number_of_threads_comes_to_the_same() {
        for hash in [Hash::Md5, Hash::Ripemd160, Hash::Sha1, Hash::Sha224, Hash::Sha384, Hash::Sha512] {
            let mut one = [0; 64];
            hash.pbkdf2(b"password", b"salt", 10, &mut one, 1);
            for threads in [0, 2, 3, 100] {
                let mut many = [0; 64];
                hash.pbkdf2(b"password", b"salt", 10, &mut many, threads);
                assert_eq!(one, many, "{hash:?}");
            }
        }
    }
}
