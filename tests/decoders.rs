//! Decoders and what nobody would write: the inputs of `fixtures/fuzz`, and mutations of them that are the same each time.
//! `integration/fuzz.sh` looks for new ones.
#![allow(clippy::unwrap_used, reason = "this is a test")]

#[path = "../fuzz/decoders.rs"]
mod decoders;

use std::panic::catch_unwind;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{env, fs};

use decoders::DECODERS;
use nix::sys::resource::{Resource, setrlimit};

/// Mutations of all inputs of a decoder together, if VMWARD_TEST_MUTATIONS does not say how many.
const MUTATIONS: usize = 10_000;

/// No input takes longer, however slow the machine. The inputs have a few KiB.
const LONGEST: Duration = Duration::from_secs(5);

/// The address space of this process: a decoder that believes a length of 4 GiB ends it.
const MEMORY: u64 = 3 << 30;

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
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit.max(1)
    }
}

/// One input, changed in one to four places.
fn mutated(corpus: &[Vec<u8>], numbers: &mut Numbers) -> Vec<u8> {
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

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/fuzz").join(name);
    let mut paths: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", dir.display());
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn try_one(name: &str, decode: fn(&[u8]), data: &[u8]) {
    let start = Instant::now();
    let ended = catch_unwind(|| decode(data));
    if ended.is_err() || start.elapsed() > LONGEST {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.input"));
        fs::write(&path, data).unwrap();
        panic!(
            "{name} took {:?}, panicked: {}; the input is in {}",
            start.elapsed(),
            ended.is_err(),
            path.display()
        );
    }
}

#[test]
fn no_input_makes_a_decoder_panic_or_take_all_memory() {
    let mutations = env::var("VMWARD_TEST_MUTATIONS").map_or(MUTATIONS, |n| n.parse().unwrap());
    setrlimit(Resource::RLIMIT_AS, MEMORY, MEMORY).unwrap();
    for (name, decode) in DECODERS {
        let corpus = corpus(name);
        let start = Instant::now();
        for data in &corpus {
            try_one(name, *decode, data);
        }
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
        for _ in 0..mutations {
            try_one(name, *decode, &mutated(&corpus, &mut numbers));
        }
        println!("{name}: {} inputs and {mutations} mutations in {:?}", corpus.len(), start.elapsed());
    }
}
