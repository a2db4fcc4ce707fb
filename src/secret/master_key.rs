//! The key that a supervisor shares with its QEMU, and what is encrypted under it.

use aes::cipher::block_padding::Pkcs7;
use aes::cipher::{BlockModeEncrypt, KeyIvInit};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rand::CryptoRng;
use rand::rand_core::UnwrapErr;
use rand::rngs::SysRng;
use zeroize::Zeroizing;

use super::{SecretValue, ValueError, wiping_stack};

/// The length QEMU demands of a key for AES-256-CBC.
pub const MASTER_KEY_LEN: usize = 32;
/// One AES block.
pub const IV_LEN: usize = 16;
/// The id of the secret object that holds the master key in QEMU, as libvirt names it.
pub const MASTER_KEY_ID: &str = "masterKey0";

/// The operating system's random numbers. Without them nothing here can go on safely, so their failure,
/// which Linux does not know after boot, ends the process.
pub fn os_random() -> impl CryptoRng {
    UnwrapErr(SysRng)
}

/// 32 random bytes, made at the start of a domain and wiped at its end.
#[derive(Debug)]
pub struct MasterKey(SecretValue);

/// A value as QEMU's `secret` object takes it with `keyid` and `format=base64`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedSecret {
    /// AES-256-CBC of the value with PKCS#7 padding, in base64.
    pub data: String,
    /// The initialisation vector, in base64.
    pub iv: String,
}

impl MasterKey {
    /// A new key.
    pub fn generate(random: &mut impl CryptoRng) -> Result<Self, ValueError> {
        SecretValue::random(MASTER_KEY_LEN, random).map(Self)
    }

    /// A key that was kept, if it has the length of one.
    pub fn from_value(value: SecretValue) -> Option<Self> {
        (value.len() == MASTER_KEY_LEN).then_some(Self(value))
    }

    /// The raw key, to be handed to QEMU.
    pub fn value(&self) -> &SecretValue {
        &self.0
    }

    /// Encrypts a value for QEMU under a fresh IV.
    pub fn seal(&self, value: &SecretValue, random: &mut impl CryptoRng) -> SealedSecret {
        let mut iv = [0; IV_LEN];
        random.fill_bytes(&mut iv);
        // Padding always adds something: a full block where the value ends on one.
        let mut buffer = Zeroizing::new(vec![0; (value.len() / IV_LEN + 1) * IV_LEN]);
        buffer[..value.len()].copy_from_slice(value.expose());
        // The cipher's round keys, which begin with the key itself, are wiped where they end, but not where they were
        // moved from.
        wiping_stack(|| {
            let cipher = cbc::Encryptor::<aes::Aes256>::new_from_slices(self.0.expose(), &iv)
                .unwrap_or_else(|_| unreachable!("key and IV have the cipher's lengths"));
            cipher
                .encrypt_padded::<Pkcs7>(&mut buffer, value.len())
                .map(drop)
                .unwrap_or_else(|_| unreachable!("the buffer has room for the padding"));
        });
        SealedSecret { data: STANDARD.encode(&*buffer), iv: STANDARD.encode(iv) }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use rand::rand_core::{TryCryptoRng, TryRng};

    use super::*;

    /// 00 01 02 ..., from the start again at each call.
    struct Counting;

    impl TryRng for Counting {
        type Error = Infallible;
        fn try_next_u32(&mut self) -> Result<u32, Infallible> {
            Ok(0x0302_0100)
        }
        fn try_next_u64(&mut self) -> Result<u64, Infallible> {
            Ok(0x0706_0504_0302_0100)
        }
        fn try_fill_bytes(&mut self, buffer: &mut [u8]) -> Result<(), Infallible> {
            (0u8..).zip(buffer).for_each(|(n, b)| *b = n);
            Ok(())
        }
    }
    impl TryCryptoRng for Counting {}

    #[test]
    fn the_known_vector() {
        let key = MasterKey::generate(&mut Counting).unwrap();
        let value = SecretValue::copy_of(b"AQCVn5hO6HzFAhAAq0NCv8jtJcIcE+HOBlMQ1A").unwrap();
        let sealed = key.seal(&value, &mut Counting);
        assert_eq!(sealed.iv, "AAECAwQFBgcICQoLDA0ODw==");
        assert_eq!(sealed.data, "9eao5F8qtkGt+seB1HYivWIxbtwUu6MQtg1zpj/oDtUsPr1q8wBYM91uEHCn6j/1");
    }

    #[test]
    fn every_length_is_padded_to_the_next_block() {
        let key = MasterKey::generate(&mut Counting).unwrap();
        for len in [0, 1, 15, 16, 17, 32] {
            let sealed = key.seal(&SecretValue::zeroed(len).unwrap(), &mut Counting);
            assert_eq!(STANDARD.decode(sealed.data).unwrap().len(), (len / 16 + 1) * 16);
        }
    }

    #[test]
    fn no_iv_twice() {
        let key = MasterKey::generate(&mut os_random()).unwrap();
        let value = SecretValue::copy_of(b"x").unwrap();
        assert_ne!(key.seal(&value, &mut os_random()).iv, key.seal(&value, &mut os_random()).iv);
    }
}
