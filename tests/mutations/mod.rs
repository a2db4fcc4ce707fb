//! Inputs that nobody would write, made of kept ones that somebody would, and the same each time.
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::fs;
use std::path::Path;

/// What mutations put in: where numbers begin to be wrong, and pieces of syntax.
const PIECES: &[&[u8]] = &[
    &[0],
    &[0xff],
    &[0x7f, 0xff, 0xff, 0xff],
    &[0x80, 0, 0, 0],
    &[0xff, 0xff, 0xff, 0xff],
    &[0, 0, 0, 8],
    b"<",
    b">",
    b"/>",
    b"'",
    b"&#x10ffff;",
    b"&amp;",
    b"]]>",
    b"<!--",
    b"-1",
    b"18446744073709551616",
    b"9223372036854775807",
    b"%00",
    b"%ff",
    b"?",
    b":",
    "\u{202e}ä\u{1f600}".as_bytes(),
];

/// A generator of numbers whose only merit is that they are the same each time (xorshift64*).
pub struct Numbers(u64);

impl Numbers {
    pub fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit.max(1)
    }
}

/// One input, changed in one to four places.
pub fn mutated(corpus: &[Vec<u8>], numbers: &mut Numbers) -> Vec<u8> {
    let mut data = corpus[numbers.below(corpus.len())].clone();
    for _ in 0..=numbers.below(4) {
        let at = numbers.below(data.len());
        let end = (at + 1 + numbers.below(64)).min(data.len());
        match numbers.below(7) {
            0 if at < data.len() => data[at] ^= 1 << numbers.below(8),
            1 if at < data.len() => data[at] = numbers.below(256) as u8,
            2 => drop(data.drain(at..end)),
            3 => data.truncate(at),
            4 => {
                let piece = data[at..end].to_vec();
                let there = numbers.below(data.len());
                drop(data.splice(there..there, piece));
            }
            5 => {
                let other = &corpus[numbers.below(corpus.len())];
                let from = numbers.below(other.len());
                let piece = &other[from..(from + 1 + numbers.below(200)).min(other.len())];
                drop(data.splice(at..end, piece.iter().copied()));
            }
            _ => {
                let piece = PIECES[numbers.below(PIECES.len())];
                let end = if numbers.below(2) == 0 { at } else { (at + piece.len()).min(data.len()) };
                drop(data.splice(at..end, piece.iter().copied()));
            }
        }
    }
    data
}

/// The kept inputs of that name.
pub fn corpus(name: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/fuzz").join(name);
    let mut paths: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", dir.display());
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}
