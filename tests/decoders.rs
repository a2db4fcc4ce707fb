//! Decoders and what nobody would write: the inputs of `fixtures/fuzz`, and mutations of them that are the same each time.
//! `integration/fuzz.sh` looks for new ones.
#![allow(clippy::unwrap_used, reason = "this is a test")]

#[path = "../fuzz/decoders.rs"]
mod decoders;
mod mutations;

use std::panic::catch_unwind;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{env, fs};

use decoders::DECODERS;
use mutations::{Numbers, corpus, mutated};
use nix::sys::resource::{Resource, setrlimit};

/// Mutations of all inputs of a decoder together, if VMWARD_TEST_MUTATIONS does not say how many.
const MUTATIONS: usize = 10_000;

/// No input takes longer, however slow the machine. The inputs have a few KiB.
const LONGEST: Duration = Duration::from_secs(5);

/// The address space of this process: a decoder that believes a length of 4 GiB ends it.
const MEMORY: u64 = 3 << 30;

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
        let mut numbers = Numbers::new();
        for _ in 0..mutations {
            try_one(name, *decode, &mutated(&corpus, &mut numbers));
        }
        println!("{name}: {} inputs and {mutations} mutations in {:?}", corpus.len(), start.elapsed());
    }
}
