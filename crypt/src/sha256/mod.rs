//! PBKDF2 with HMAC-SHA256, several blocks of results at once.
//!
//! Nearly every LUKS1 header is of this hash, and opening one takes millions of iterations, each of which waits for the
//! one before it. A processor has room for other, independent computations in the meantime, be it of the same key or of
//! another: its SHA instructions for a second one, the vectors of AVX-512 for eight. Processors without either make one
//! block after the other.

#[cfg(target_arch = "x86_64")]
mod ni;
#[cfg(target_arch = "x86_64")]
mod wide;

use sha2::block_api::compress256;
use zeroize::{Zeroize, Zeroizing};

use super::Hash;
use super::block::Block;

/// The length of a result.
const LEN: usize = 32;
/// The length of what is compressed at once.
const HASH_BLOCK: usize = 64;
/// What follows a result in the block in which it is hashed: the padding, and the length in bits of that and the block of
/// the key before it (FIPS 180-4, 5.1.1).
const PADDING: Words = [1 << 31, 0, 0, 0, 0, 0, 0, ((HASH_BLOCK + LEN) * 8) as u32];

/// A state, or a result.
type Words = [u32; 8];

/// The state that SHA-256 begins with (FIPS 180-4, 5.3.3).
const INITIAL: Words =
    [0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19];

/// The round constants of SHA-256 (FIPS 180-4, 4.2.2).
#[cfg(target_arch = "x86_64")]
const K: [u32; 64] = [
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
];

/// A block of a result on its way.
struct Lane {
    /// The states after the two blocks of the key (RFC 2104), which are the same for every message under one key.
    inner: Words,
    outer: Words,
    /// The result of the last iteration.
    last: Words,
    /// The sum of all results so far.
    sum: Words,
    /// How many iterations are left.
    left: u32,
}

impl Lane {
    fn new(block: &Block<'_>) -> Self {
        let mut key = Zeroizing::new([0; HASH_BLOCK]);
        if block.password.len() > HASH_BLOCK {
            Hash::Sha256.digest(&[block.password], &mut key[..LEN]);
        } else {
            key[..block.password.len()].copy_from_slice(block.password);
        }
        let [inner, outer] = [0x36, 0x5c].map(|pad| Zeroizing::new(key.map(|byte| byte ^ pad)));
        let mut first = Zeroizing::new([0; LEN]);
        Hash::Sha256.digest(&[&inner[..], block.salt, &block.index.to_be_bytes()], &mut first[..]);
        let message = first.clone();
        Hash::Sha256.digest(&[&outer[..], &message[..]], &mut first[..]);
        let mut last = [0; 8];
        for (word, bytes) in last.iter_mut().zip(first.as_chunks().0) {
            *word = u32::from_be_bytes(*bytes);
        }
        let [inner, outer] = [inner, outer].map(|pad| {
            let mut state = INITIAL;
            compress256(&mut state, &[*pad]);
            state
        });
        Self { inner, outer, last, sum: last, left: block.iterations.saturating_sub(1) }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        [&mut self.inner, &mut self.outer, &mut self.last, &mut self.sum]
            .into_iter()
            .for_each(Zeroize::zeroize);
    }
}

/// The bytes of some words, as many as there is room for.
fn write(words: &Words, out: &mut [u8]) {
    for (bytes, word) in out.chunks_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_be_bytes()[..bytes.len()]);
    }
}

/// A way to make iterations.
#[derive(Clone, Copy)]
struct Kernel {
    /// From how many lanes on it is the fastest.
    from: usize,
    /// How many it takes at once.
    lanes: usize,
    /// Makes that many iterations in each of up to so many lanes.
    iterate: fn(&mut [&mut Lane], u32),
}

/// Those that this processor has, the fastest last.
fn kernels() -> Vec<Kernel> {
    #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut, reason = "there are no others"))]
    let mut kernels = vec![Kernel { from: 1, lanes: 1, iterate: one_by_one }];
    #[cfg(target_arch = "x86_64")]
    {
        if ni::is_available() {
            kernels.push(Kernel { from: 1, lanes: ni::LANES, iterate: ni::iterate });
        }
        if wide::is_available() {
            // Eight at once take as long as five by twos, and two without SHA instructions longer than that.
            let from = if ni::is_available() { 5 } else { 2 };
            kernels.push(Kernel { from, lanes: wide::LANES, iterate: wide::iterate });
        }
    }
    kernels
}

/// With no instructions but those that `sha2` knows.
fn one_by_one(lanes: &mut [&mut Lane], times: u32) {
    let mut message = Zeroizing::new([0; HASH_BLOCK]);
    write(&PADDING, &mut message[LEN..]);
    for lane in lanes {
        for _ in 0..times {
            for from in [lane.inner, lane.outer] {
                write(&lane.last, &mut message[..LEN]);
                lane.last = from;
                compress256(&mut lane.last, &[*message]);
            }
            lane.sum.iter_mut().zip(lane.last).for_each(|(sum, last)| *sum ^= last);
        }
    }
}

/// Makes some blocks; those of most iterations come first.
pub(super) fn make(blocks: Vec<Block<'_>>) {
    make_with(&kernels(), blocks);
}

fn make_with(kernels: &[Kernel], blocks: Vec<Block<'_>>) {
    // They stay where they are, so that each is wiped when it is dropped.
    let mut lanes: Vec<_> = blocks.iter().map(Lane::new).collect();
    let mut unfinished: Vec<_> = lanes.iter_mut().filter(|lane| lane.left > 0).collect();
    // One that is finished leaves, and the next one takes its place.
    while let Some(kernel) = kernels.iter().rfind(|kernel| kernel.from <= unfinished.len()) {
        let count = kernel.lanes.min(unfinished.len());
        let group = &mut unfinished[..count];
        let times = group.iter().map(|lane| lane.left).min().unwrap_or(0);
        (kernel.iterate)(group, times);
        group.iter_mut().for_each(|lane| lane.left -= times);
        unfinished.retain(|lane| lane.left > 0);
    }
    for (block, lane) in blocks.into_iter().zip(&lanes) {
        write(&lane.sum, block.out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With whatever instructions: those of older processors, and of others than this one.
    #[test]
    fn every_way_comes_to_the_same() {
        let all = kernels();
        for count in 1..=20 {
            let passwords: Vec<_> = (0..count).map(|n| vec![n as u8; 5 * n]).collect();
            let with = |kernels: Option<&[Kernel]>| {
                let mut outs = vec![[0; LEN]; count];
                let blocks = passwords.iter().zip(&mut outs).enumerate().map(|(n, (password, out))| {
                    let iterations = [50, 50, 1, 20, 50, 300][n % 6];
                    Block { hash: Hash::Sha256, password, salt: b"some salt", iterations, index: 1, out }
                });
                match kernels {
                    Some(kernels) => make_with(kernels, blocks.collect()),
                    None => blocks.for_each(|block| block.make::<sha2::Sha256>()),
                }
                outs
            };
            let expected = with(None);
            for kernel in &all {
                let alone = Kernel { from: 1, ..*kernel };
                assert_eq!(with(Some(&[alone])), expected, "{count}, {} at once", kernel.lanes);
            }
            for ways in 1..=all.len() {
                assert_eq!(with(Some(&all[..ways])), expected, "{count} in up to {ways} ways");
            }
        }
    }
}
