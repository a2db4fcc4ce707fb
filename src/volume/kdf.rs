//! How much work it takes to get from a passphrase to a key slot's key.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::keywords;
use crate::luks::{Luks1Header, MIN_ITERATIONS, UnlockError};
use crate::secret::SecretValue;

keywords! {
    /// The cost of a new volume's key derivation.
    #[derive(Default)]
    pub enum Kdf {
        /// Cheap for keys that vmward generated, QEMU's default for everything else.
        #[default]
        Auto = "auto",
        /// Cheap: a few milliseconds. For random keys only.
        Fast = "fast",
        /// QEMU's default: about two seconds at each opening.
        Slow = "slow",
    }
}

/// What a cheap derivation takes, in milliseconds of the machine that makes the image.
pub(super) const FAST_ITER_TIME_MS: u32 = 10;

/// QEMU's default (`QCRYPTO_BLOCK_LUKS_DEFAULT_ITER_TIME_MS` of its crypto/block-luks.c).
const SLOW: Duration = Duration::from_millis(2000);

impl Kdf {
    /// The `iter-time` for a passphrase; `None` leaves QEMU's default.
    pub fn iter_time(self, passphrase: &SecretValue) -> Option<u32> {
        self.is_fast(passphrase).then_some(FAST_ITER_TIME_MS)
    }

    /// The iterations of a key slot for a passphrase: the fewest there are, or as many as QEMU's default would be here.
    pub fn iterations(self, passphrase: &SecretValue, header: &Luks1Header) -> Result<u32, UnlockError> {
        match self.is_fast(passphrase) {
            true => Ok(MIN_ITERATIONS),
            false => header.iterations_within(SLOW),
        }
    }

    /// Whether it is cheap for a passphrase.
    pub(super) fn is_fast(self, passphrase: &SecretValue) -> bool {
        match self {
            Self::Auto => is_generated(passphrase),
            Self::Fast => true,
            Self::Slow => false,
        }
    }
}

/// Whether a value has the form of those that vmward generates: 32 random bytes in base64. That it was made
/// from random bytes cannot be proven from the value; what people make up by hand does not pass: text in base64
/// decodes to text, and repeated patterns have few different bytes. When in doubt the answer is no, which costs
/// time and nothing else.
fn is_generated(value: &SecretValue) -> bool {
    const LEN: usize = 32;
    /// 32 random bytes have about 30 different ones, and fewer than 20 once in 10^13 keys.
    const DISTINCT: usize = 20;
    let Ok(mut decoded) = SecretValue::zeroed(LEN + 1) else { return false };
    match STANDARD.decode_slice(value.expose(), decoded.expose_mut()) {
        Ok(LEN) => {}
        _ => return false,
    }
    let bytes = &decoded.expose()[..LEN];
    let mut seen = [false; 256];
    bytes.iter().for_each(|b| seen[usize::from(*b)] = true);
    // Random bytes are all ASCII once in 2^32 keys.
    seen.iter().filter(|s| **s).count() >= DISTINCT && !bytes.is_ascii()
}

#[cfg(test)]
mod tests {
    use crate::secret::os_random;

    use super::*;

    fn generated(text: &str) -> bool {
        is_generated(&SecretValue::copy_of(text.as_bytes()).unwrap())
    }

    #[test]
    fn only_random_keys_of_our_form_are_cheap() {
        for _ in 0..100 {
            let random = SecretValue::random(32, &mut os_random()).unwrap();
            assert!(generated(&STANDARD.encode(random.expose())));
        }
        assert!(!generated("correct horse battery staple"));
        assert!(!generated(&STANDARD.encode("a passphrase of 32 letters, typed")));
        assert!(!generated(&STANDARD.encode("exactly 32 letters, as somebody!")));
        assert!(!generated(&STANDARD.encode([0xaa; 32])));
        assert!(!generated(&STANDARD.encode([7; 33])));
        assert!(!generated(&"a".repeat(44)));
        assert!(!generated(""));
    }
}
