//! Eight lanes in the vectors of AVX-512, of which those of 256 bits are used: each has one word of every lane. Their
//! rotations and functions of three values are what older vectors lack.

#![expect(unsafe_code, reason = "one call of a function for processors that have the instructions")]

use std::arch::x86_64::*;
use std::array;

use super::{K, Lane, PADDING, Words};

/// How many lanes are made at once.
pub(super) const LANES: usize = 8;

/// Eight words of every lane.
type Vectors = [__m256i; 8];

/// The functions of three values, by their truth tables: their sum, a choice by the first, the majority.
const SUM: i32 = 0x96;
const CHOICE: i32 = 0xca;
const MAJORITY: i32 = 0xe8;

/// Whether this processor has the instructions.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx2")
}

/// That many iterations of up to eight lanes. Only where it [`is_available`].
pub(super) fn iterate(lanes: &mut [&mut Lane], times: u32) {
    if is_available() {
        // SAFETY: the processor has the instructions.
        unsafe { iterate_all(lanes, times) }
    }
}

#[target_feature(enable = "avx512f,avx512vl,avx2")]
fn iterate_all(lanes: &mut [&mut Lane], times: u32) {
    let inner = gather(lanes, |lane| &lane.inner);
    let outer = gather(lanes, |lane| &lane.outer);
    let mut last = gather(lanes, |lane| &lane.last);
    let mut sums = gather(lanes, |lane| &lane.sum);
    for _ in 0..times {
        // One call, so that it becomes part of this loop.
        for from in [&inner, &outer] {
            compress(from, &mut last);
        }
        for (sum, last) in sums.iter_mut().zip(&last) {
            *sum = _mm256_xor_si256(*sum, *last);
        }
    }
    scatter(&last, lanes, |lane| &mut lane.last);
    scatter(&sums, lanes, |lane| &mut lane.sum);
}

#[target_feature(enable = "avx512f,avx512vl,avx2")]
fn gather(lanes: &[&mut Lane], words: impl Fn(&Lane) -> &Words) -> Vectors {
    array::from_fn(|n| {
        let [a, b, c, d, e, f, g, h]: Words =
            array::from_fn(|lane| lanes.get(lane).map_or(0, |lane| words(lane)[n]));
        let [a, b, c, d, e, f, g, h] = [a, b, c, d, e, f, g, h].map(u32::cast_signed);
        _mm256_setr_epi32(a, b, c, d, e, f, g, h)
    })
}

#[target_feature(enable = "avx512f,avx512vl,avx2")]
fn scatter(vectors: &Vectors, lanes: &mut [&mut Lane], words: impl Fn(&mut Lane) -> &mut Words) {
    for (n, vector) in vectors.iter().enumerate() {
        let values = [
            _mm256_extract_epi32::<0>(*vector),
            _mm256_extract_epi32::<1>(*vector),
            _mm256_extract_epi32::<2>(*vector),
            _mm256_extract_epi32::<3>(*vector),
            _mm256_extract_epi32::<4>(*vector),
            _mm256_extract_epi32::<5>(*vector),
            _mm256_extract_epi32::<6>(*vector),
            _mm256_extract_epi32::<7>(*vector),
        ];
        for (lane, value) in lanes.iter_mut().zip(values) {
            words(lane)[n] = value.cast_unsigned();
        }
    }
}

/// The compression of one block in each lane, in place: eight words each, and the padding that follows them.
#[target_feature(enable = "avx512f,avx512vl,avx2")]
#[inline]
fn compress(from: &Vectors, words: &mut Vectors) {
    // Word by word: whole arrays are copied in vectors of 512 bits, which cost the others a port, and a fifth more time.
    let [a, b, c, d, e, f, g, h] = *words;
    let [i, j, k, l, m, n, o, p] = PADDING.map(|word| _mm256_set1_epi32(word.cast_signed()));
    let mut message = [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p];
    let [a, b, c, d, e, f, g, h] = *from;
    let mut state = [a, b, c, d, e, f, g, h];
    // Without a loop, so that all of it stays in registers.
    macro_rules! all {
        ($($round:literal)*) => { $( round::<$round>(&mut message, &mut state); )* };
    }
    all!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31);
    all!(32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63);
    for ((word, state), from) in words.iter_mut().zip(state).zip(from) {
        *word = _mm256_add_epi32(state, *from);
    }
}

/// One round of each lane (FIPS 180-4, 6.2.2).
#[target_feature(enable = "avx512f,avx512vl,avx2")]
#[inline]
fn round<const ROUND: usize>(message: &mut [__m256i; 16], state: &mut Vectors) {
    let now = ROUND % 16;
    if ROUND >= 16 {
        let (early, late) = (message[(ROUND + 1) % 16], message[(ROUND + 14) % 16]);
        let early = _mm256_ternarylogic_epi32::<SUM>(
            _mm256_ror_epi32::<7>(early),
            _mm256_ror_epi32::<18>(early),
            _mm256_srli_epi32::<3>(early),
        );
        let late = _mm256_ternarylogic_epi32::<SUM>(
            _mm256_ror_epi32::<17>(late),
            _mm256_ror_epi32::<19>(late),
            _mm256_srli_epi32::<10>(late),
        );
        let sum = _mm256_add_epi32(message[now], early);
        message[now] = _mm256_add_epi32(sum, _mm256_add_epi32(message[(ROUND + 9) % 16], late));
    }
    let [a, b, c, d, e, f, g, h] = *state;
    let added = _mm256_add_epi32(message[now], _mm256_set1_epi32(K[ROUND].cast_signed()));
    let of_e = _mm256_ternarylogic_epi32::<SUM>(
        _mm256_ror_epi32::<6>(e),
        _mm256_ror_epi32::<11>(e),
        _mm256_ror_epi32::<25>(e),
    );
    let choice = _mm256_ternarylogic_epi32::<CHOICE>(e, f, g);
    let first = _mm256_add_epi32(_mm256_add_epi32(_mm256_add_epi32(h, added), choice), of_e);
    let of_a = _mm256_ternarylogic_epi32::<SUM>(
        _mm256_ror_epi32::<2>(a),
        _mm256_ror_epi32::<13>(a),
        _mm256_ror_epi32::<22>(a),
    );
    let majority = _mm256_ternarylogic_epi32::<MAJORITY>(a, b, c);
    let second = _mm256_add_epi32(of_a, majority);
    *state = [_mm256_add_epi32(first, second), a, b, c, _mm256_add_epi32(d, first), e, f, g];
}
