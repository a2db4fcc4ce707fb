//! A block of what PBKDF2 with HMAC makes (RFC 8018, 5.2), in the plain way.

use hmac::{Hmac, KeyInit, Mac};
use zeroize::{Zeroize, Zeroizing};

use super::Hash;

/// The longest result of a hash.
const LONGEST: usize = 64;

/// A block of a result.
pub(super) struct Block<'a> {
    pub(super) hash: Hash,
    pub(super) password: &'a [u8],
    pub(super) salt: &'a [u8],
    pub(super) iterations: u32,
    /// Its number, from 1.
    pub(super) index: u32,
    pub(super) out: &'a mut [u8],
}

impl Block<'_> {
    pub(super) fn make<D: hmac::EagerHash>(self) {
        let Ok(keyed) = <Hmac<D> as KeyInit>::new_from_slice(self.password) else { return };
        let mut sum = Zeroizing::new([0; LONGEST]);
        let first = keyed.clone().chain_update(self.salt).chain_update(self.index.to_be_bytes());
        let mut last = first.finalize().into_bytes();
        let len = last.len();
        sum[..len].copy_from_slice(&last);
        for _ in 1..self.iterations {
            last = keyed.clone().chain_update(&last).finalize().into_bytes();
            sum.iter_mut().zip(&last).for_each(|(s, l)| *s ^= l);
        }
        self.out.copy_from_slice(&sum[..self.out.len()]);
        Zeroize::zeroize(last.as_mut_slice());
    }
}
