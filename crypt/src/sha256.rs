//! PBKDF2 with HMAC-SHA256, two blocks of its result at once.
//!
//! Nearly every LUKS1 header is of this hash, and opening one takes millions of iterations, each of which waits for the
//! one before it. A processor's SHA instructions have room for a second, independent computation in the meantime: two
//! blocks take little longer than one (libraries that do one after the other take half as long again). Processors without
//! these instructions take the ordinary way.

#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "one call of a function for processors that have it")
)]

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use sha2::block_api::compress256;
use zeroize::{Zeroize, Zeroizing};

/// How many blocks are made at once.
pub(super) const LANES: usize = 2;
/// The length of a block.
const BLOCK: usize = 32;

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn is_fast() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn pbkdf2_blocks(_: &[u8], _: &[u8], _: u32, _: u32, _: &mut [u8]) {}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{is_fast, pbkdf2_blocks};

/// The state that SHA-256 begins with (FIPS 180-4, 5.3.3).
const INITIAL: [u32; 8] =
    [0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19];

/// The parts of HMAC that are the same for every message under one key: the states after the key's two blocks
/// (RFC 2104), and the first result of each lane.
struct Start {
    inner: [u32; 8],
    outer: [u32; 8],
    first: Zeroizing<[[u32; 8]; LANES]>,
}

impl Start {
    fn new(password: &[u8], salt: &[u8], index: u32) -> Option<Self> {
        const HASH_BLOCK: usize = 64;
        let mut key = Zeroizing::new([0; HASH_BLOCK]);
        if password.len() > HASH_BLOCK {
            super::Hash::Sha256.digest(&[password], &mut key[..BLOCK]);
        } else {
            key[..password.len()].copy_from_slice(password);
        }
        let state = |pad: u8| {
            let mut padded = key.map(|b| b ^ pad);
            let mut state = INITIAL;
            compress256(&mut state, &[padded]);
            padded.zeroize();
            state
        };
        let mut first = Zeroizing::new([[0; 8]; LANES]);
        for (lane, words) in first.iter_mut().enumerate() {
            let index = index.wrapping_add(u32::try_from(lane).ok()?);
            let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(password).ok()?;
            let mac = mac.chain_update(salt).chain_update(index.to_be_bytes()).finalize().into_bytes();
            for (word, bytes) in words.iter_mut().zip(mac.chunks_exact(4)) {
                *word = u32::from_be_bytes(bytes.try_into().ok()?);
            }
        }
        Some(Self { inner: state(0x36), outer: state(0x5c), first })
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use zeroize::Zeroize;

    use super::{BLOCK, LANES, Start};

    /// Whether this processor has the instructions.
    pub(crate) fn is_fast() -> bool {
        is_x86_feature_detected!("sha")
            && is_x86_feature_detected!("sse4.1")
            && is_x86_feature_detected!("ssse3")
    }

    /// Blocks `index` and, where `out` is longer than one, the following ones of PBKDF2's result. Only where it
    /// [`is_fast`].
    pub(crate) fn pbkdf2_blocks(password: &[u8], salt: &[u8], iterations: u32, index: u32, out: &mut [u8]) {
        let Some(start) = Start::new(password, salt, index) else { return };
        // SAFETY: the processor has the instructions: `is_fast` was asked, and is asked again.
        if is_fast() {
            unsafe { fill(&start, iterations, out) }
        }
    }

    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    fn fill(start: &Start, iterations: u32, out: &mut [u8]) {
        // One block alone is made faster alone.
        let mut sums = [[0; 8]; LANES];
        if out.len() > BLOCK {
            sums = iterate(start, *start.first, iterations);
        } else {
            [sums[0]] = iterate(start, [start.first[0]], iterations);
        }
        for (block, sum) in out.chunks_mut(BLOCK).zip(&sums) {
            for (bytes, word) in block.chunks_mut(4).zip(sum) {
                bytes.copy_from_slice(&word.to_be_bytes()[..bytes.len()]);
            }
        }
        sums.zeroize();
    }

    /// The round constants of SHA-256 (FIPS 180-4, 4.2.2).
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
    /// The length in bits of what HMAC hashes: a block of the key, and one result.
    const LEN: u32 = (64 + 32) * 8;

    /// A state as the instructions have it: words A, B, E, F and C, D, G, H, the first in the highest place.
    type State = (__m128i, __m128i);

    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    fn words(words: [u32; 4]) -> __m128i {
        let [a, b, c, d] = words.map(u32::cast_signed);
        _mm_set_epi32(d, c, b, a)
    }

    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    fn state([a, b, c, d, e, f, g, h]: [u32; 8]) -> State {
        (words([f, e, b, a]), words([h, g, d, c]))
    }

    /// The words of a state in their order.
    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    fn ordered((abef, cdgh): State) -> [__m128i; 2] {
        let feba = _mm_shuffle_epi32(abef, 0x1b);
        let dchg = _mm_shuffle_epi32(cdgh, 0xb1);
        [_mm_blend_epi16(feba, dchg, 0xf0), _mm_alignr_epi8(dchg, feba, 8)]
    }

    /// Rounds `4 * ROUND` and the next three of each lane.
    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    #[inline]
    fn four_rounds<const ROUND: usize, const N: usize>(
        message: &mut [[__m128i; 4]; N],
        states: &mut [State; N],
    ) {
        let k = words(K.as_chunks().0[ROUND]);
        for (m, (abef, cdgh)) in message.iter_mut().zip(states) {
            let now = ROUND % 4;
            if ROUND >= 4 {
                let (before, last) = (m[(ROUND + 2) % 4], m[(ROUND + 3) % 4]);
                let sum = _mm_add_epi32(
                    _mm_sha256msg1_epu32(m[now], m[(ROUND + 1) % 4]),
                    _mm_alignr_epi8(last, before, 4),
                );
                m[now] = _mm_sha256msg2_epu32(sum, last);
            }
            let wk = _mm_add_epi32(m[now], k);
            *cdgh = _mm_sha256rnds2_epu32(*cdgh, *abef, wk);
            *abef = _mm_sha256rnds2_epu32(*abef, *cdgh, _mm_shuffle_epi32(wk, 0x0e));
        }
    }

    /// The compression of one block in each lane: eight words each, and the padding that follows them.
    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    #[inline]
    fn compress<const N: usize>(from: State, block: [[__m128i; 2]; N]) -> [State; N] {
        let padding = [words([1 << 31, 0, 0, 0]), words([0, 0, 0, LEN])];
        let mut message = block.map(|[a, b]| [a, b, padding[0], padding[1]]);
        let mut states = [from; N];
        // Without a loop, so that all of it stays in registers: half the time.
        macro_rules! all {
            ($($round:literal)*) => { $( four_rounds::<$round, N>(&mut message, &mut states); )* };
        }
        all!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        states.map(|(abef, cdgh)| (_mm_add_epi32(abef, from.0), _mm_add_epi32(cdgh, from.1)))
    }

    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    fn iterate<const N: usize>(start: &Start, first: [[u32; 8]; N], iterations: u32) -> [[u32; 8]; N] {
        let (inner, outer) = (state(start.inner), state(start.outer));
        let mut last = first.map(|[a, b, c, d, e, f, g, h]| [words([a, b, c, d]), words([e, f, g, h])]);
        let mut sums = last;
        for _ in 1..iterations {
            last = compress(outer, compress(inner, last).map(|s| ordered(s))).map(|s| ordered(s));
            for (sum, last) in sums.iter_mut().zip(&last) {
                *sum = [_mm_xor_si128(sum[0], last[0]), _mm_xor_si128(sum[1], last[1])];
            }
        }
        sums.map(|[abcd, efgh]| {
            let word = |part: __m128i, n: usize| match n {
                0 => _mm_extract_epi32(part, 0),
                1 => _mm_extract_epi32(part, 1),
                2 => _mm_extract_epi32(part, 2),
                _ => _mm_extract_epi32(part, 3),
            };
            std::array::from_fn(|n| word(if n < 4 { abcd } else { efgh }, n % 4).cast_unsigned())
        })
    }
}
