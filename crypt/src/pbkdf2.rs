//! Key derivation: PBKDF2 (RFC 8018), for many keys together.

use std::cmp::Reverse;
use std::thread;

use super::block::Block;
use super::hash::with_type;
use super::{Hash, sha256, wiping_stack};

/// A derivation by PBKDF2 with HMAC (RFC 8018, 5.2).
pub struct Derivation<'a> {
    /// The hash of the HMAC.
    pub hash: Hash,
    /// What it is derived from.
    pub password: &'a [u8],
    /// What makes it different from others of the same password.
    pub salt: &'a [u8],
    /// How many times each block goes through the HMAC.
    pub iterations: u32,
    /// Where the result goes, of any length.
    pub out: &'a mut [u8],
}

/// Makes all of the derivations, on up to `threads` threads. The blocks of a result depend on each other no more than those
/// of different results do, so all are made at the same time: who guesses passphrases does so anyhow.
pub fn pbkdf2<'a>(derivations: impl IntoIterator<Item = Derivation<'a>>, threads: usize) {
    let mut blocks: Vec<_> = derivations.into_iter().flat_map(Derivation::blocks).collect();
    // Those that are best made together beside each other, and the longest first.
    blocks.sort_by_key(|block| (block.hash != Hash::Sha256, Reverse(block.iterations)));
    // As many to each thread as there are for it, and no thread with none. Two blocks on two threads are there in 0.6 times
    // the time of two at once on one, which is the less work where the threads have others.
    let mut shares: Vec<_> = (0..threads.clamp(1, blocks.len().max(1))).map(|_| Vec::new()).collect();
    let count = shares.len();
    for (n, block) in blocks.into_iter().enumerate() {
        shares[n % count].push(block);
    }
    thread::scope(|scope| {
        let own = shares.pop();
        for share in shares {
            // The C library keeps the stacks of threads that have ended, for others.
            scope.spawn(move || wiping_stack(|| make(share)));
        }
        own.map(make);
    });
}

impl<'a> Derivation<'a> {
    fn blocks(self) -> impl Iterator<Item = Block<'a>> {
        let Self { hash, password, salt, iterations, out } = self;
        let parts = out.chunks_mut(hash.output_len());
        (1..).zip(parts).map(move |(index, out)| Block { hash, password, salt, iterations, index, out })
    }
}

fn make(blocks: Vec<Block<'_>>) {
    let (sha256, others): (Vec<_>, _) = blocks.into_iter().partition(|block| block.hash == Hash::Sha256);
    sha256::make(sha256);
    for block in others {
        with_type!(block.hash, D => block.make::<D>());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn derive(hash: Hash, iterations: u32, len: usize, threads: usize) -> String {
        let mut out = vec![0; len];
        let (password, salt) = (b"password", b"salt");
        pbkdf2([Derivation { hash, password, salt, iterations, out: &mut out }], threads);
        hex(&out)
    }

    /// RFC 6070 for SHA-1; for SHA-256 the same inputs, with the results of Python's hashlib.
    #[test]
    fn results_are_those_of_others() {
        assert_eq!(derive(Hash::Sha1, 1, 20, 1), "0c60c80f961f0e71f3a9b524af6012062fe037a6");
        assert_eq!(derive(Hash::Sha1, 4096, 20, 1), "4b007901b765489abead49d926f721d065a429c1");
        assert_eq!(
            derive(Hash::Sha256, 4096, 32, 1),
            "c5e478d59288c841aa530db6845c4c8d962893a001ce4e11a4963873aa98134a"
        );
    }

    #[test]
    fn any_number_of_threads_comes_to_the_same() {
        for hash in [Hash::Md5, Hash::Ripemd160, Hash::Sha1, Hash::Sha224, Hash::Sha384, Hash::Sha512] {
            let one = derive(hash, 10, 64, 1);
            for threads in [0, 2, 3, 100] {
                assert_eq!(derive(hash, 10, 64, threads), one, "{hash:?}");
            }
        }
    }

    /// Passwords on both sides of a block's length, results that are no whole number of blocks, and iterations that end
    /// before and after those of others.
    #[test]
    fn derivations_made_together_are_those_made_one_by_one() {
        const PASSWORDS: [usize; 6] = [8, 0, 64, 65, 1, 200];
        const ITERATIONS: [u32; 7] = [100, 1, 2, 1000, 7, 0, 333];
        const LENGTHS: [usize; 6] = [64, 32, 20, 100, 33, 0];
        const HASHES: [Hash; 5] = [Hash::Sha256, Hash::Sha256, Hash::Sha256, Hash::Sha512, Hash::Sha1];
        for count in 1..=20 {
            let inputs: Vec<_> = (0..count)
                .map(|n| {
                    let password = vec![b'a' + n as u8; PASSWORDS[n % PASSWORDS.len()]];
                    let hash = HASHES[(n + count) % HASHES.len()];
                    (
                        hash,
                        password,
                        [n as u8; 32],
                        ITERATIONS[n % ITERATIONS.len()],
                        LENGTHS[n % LENGTHS.len()],
                    )
                })
                .collect();
            let all =
                |outs: &mut [Vec<u8>], threads: Option<usize>| {
                    let derivations =
                        inputs.iter().zip(outs).map(|((hash, password, salt, iterations, _), out)| {
                            Derivation { hash: *hash, password, salt, iterations: *iterations, out }
                        });
                    match threads {
                        Some(threads) => pbkdf2(derivations, threads),
                        None => derivations.flat_map(Derivation::blocks).for_each(|block| {
                            with_type!(block.hash, D => block.make::<D>());
                        }),
                    }
                };
            let empty: Vec<_> = inputs.iter().map(|(.., len)| vec![0; *len]).collect();
            let mut expected = empty.clone();
            all(&mut expected, None);
            for threads in [1, 2, 5] {
                let mut found = empty.clone();
                all(&mut found, Some(threads));
                assert_eq!(found, expected, "{count} on {threads}");
            }
        }
    }
}
