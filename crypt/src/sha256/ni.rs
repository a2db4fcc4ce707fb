//! Two lanes with the SHA instructions, each of which has room for the other's while it waits: two take little longer
//! than one (libraries that do one after the other take half as long again).

#![expect(unsafe_code, reason = "one call of a function for processors that have the instructions")]

use std::arch::x86_64::*;
use std::array;

use super::{K, Lane, PADDING, Words};

/// How many lanes are made at once.
pub(super) const LANES: usize = 2;

/// Whether this processor has the instructions.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("sha") && is_x86_feature_detected!("sse4.1") && is_x86_feature_detected!("ssse3")
}

/// That many iterations of one or two lanes. Only where it [`is_available`].
pub(super) fn iterate(lanes: &mut [&mut Lane], times: u32) {
    if is_available() {
        // SAFETY: the processor has the instructions.
        unsafe { iterate_all(lanes, times) }
    }
}

#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn iterate_all(lanes: &mut [&mut Lane], times: u32) {
    // One lane alone is made faster alone.
    let (pairs, rest) = lanes.as_chunks_mut::<LANES>();
    pairs.iter_mut().for_each(|pair| iterate_together(pair, times));
    rest.iter_mut().for_each(|lane| iterate_together(array::from_mut(lane), times));
}

/// A state as the instructions have it: words A, B, E, F and C, D, G, H, the first in the highest place.
type State = (__m128i, __m128i);

#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn words(words: [u32; 4]) -> __m128i {
    let [a, b, c, d] = words.map(u32::cast_signed);
    _mm_set_epi32(d, c, b, a)
}

#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn state(&[a, b, c, d, e, f, g, h]: &Words) -> State {
    (words([f, e, b, a]), words([h, g, d, c]))
}

#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn halves(&[a, b, c, d, e, f, g, h]: &Words) -> [__m128i; 2] {
    [words([a, b, c, d]), words([e, f, g, h])]
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
fn four_rounds<const ROUND: usize, const N: usize>(message: &mut [[__m128i; 4]; N], states: &mut [State; N]) {
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
fn compress<const N: usize>(from: &[State; N], block: [[__m128i; 2]; N]) -> [State; N] {
    let padding = halves(&PADDING);
    let mut message = block.map(|[a, b]| [a, b, padding[0], padding[1]]);
    let mut states = *from;
    // Without a loop, so that all of it stays in registers: half the time.
    macro_rules! all {
        ($($round:literal)*) => { $( four_rounds::<$round, N>(&mut message, &mut states); )* };
    }
    all!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    for ((abef, cdgh), from) in states.iter_mut().zip(from) {
        (*abef, *cdgh) = (_mm_add_epi32(*abef, from.0), _mm_add_epi32(*cdgh, from.1));
    }
    states
}

#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn iterate_together<const N: usize>(lanes: &mut [&mut Lane; N], times: u32) {
    let inner = lanes.each_ref().map(|lane| state(&lane.inner));
    let outer = lanes.each_ref().map(|lane| state(&lane.outer));
    let mut last = lanes.each_ref().map(|lane| halves(&lane.last));
    let mut sums = lanes.each_ref().map(|lane| halves(&lane.sum));
    for _ in 0..times {
        last = compress(&outer, compress(&inner, last).map(|s| ordered(s))).map(|s| ordered(s));
        for (sum, last) in sums.iter_mut().zip(&last) {
            *sum = [_mm_xor_si128(sum[0], last[0]), _mm_xor_si128(sum[1], last[1])];
        }
    }
    for (lane, (last, sum)) in lanes.iter_mut().zip(last.into_iter().zip(sums)) {
        (lane.last, lane.sum) = (values(last), values(sum));
    }
}

#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn values([abcd, efgh]: [__m128i; 2]) -> Words {
    let word = |part: __m128i, n: usize| match n {
        0 => _mm_extract_epi32(part, 0),
        1 => _mm_extract_epi32(part, 1),
        2 => _mm_extract_epi32(part, 2),
        _ => _mm_extract_epi32(part, 3),
    };
    array::from_fn(|n| word(if n < 4 { abcd } else { efgh }, n % 4).cast_unsigned())
}
