//! The ciphers of LUKS headers, for key material: what it protects is short, and is on the disk once.

use aes::cipher::consts::U16;
use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, KeyInit};
use aes::{Aes128, Aes192, Aes256};
use serpent::Serpent;
use twofish::Twofish;
use xts_mode::{Xts128, get_tweak_default};

use super::Hash;

/// What is encrypted in one piece.
const SECTOR: usize = 512;
/// The length of a block of each of these ciphers.
const BLOCK: usize = 16;

/// How a header has its key material, and the disk, encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cipher {
    algorithm: Algorithm,
    mode: Mode,
    iv: Iv,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Aes,
    Serpent,
    Twofish,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Ecb,
    Cbc,
    Xts,
}

/// How a sector's initialisation vector is made from its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Iv {
    None,
    /// Its low 32 bits.
    Plain,
    Plain64,
    /// Encrypted under the hash of the key.
    Essiv(Hash),
}

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From plain to cipher.
    Encrypt,
    /// And back.
    Decrypt,
}

/// The key's length does not go with the cipher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyLength;

/// Does something with the type of a cipher whose key has some length.
macro_rules! with_type {
    ($algorithm:expr, $len:expr, $name:ident => $work:expr) => {
        match ($algorithm, $len) {
            (Algorithm::Aes, 16) => {
                type $name = Aes128;
                $work
            }
            (Algorithm::Aes, 24) => {
                type $name = Aes192;
                $work
            }
            (Algorithm::Aes, 32) => {
                type $name = Aes256;
                $work
            }
            (Algorithm::Serpent, 16 | 24 | 32) => {
                type $name = Serpent;
                $work
            }
            (Algorithm::Twofish, 16 | 24 | 32) => {
                type $name = Twofish;
                $work
            }
            _ => return Err(KeyLength),
        }
    };
}

impl Cipher {
    /// The cipher of a header's two fields (`aes` and `xts-plain64`), if it is one that is known here.
    pub fn from_names(name: &str, mode: &str) -> Option<Self> {
        let algorithm = match name {
            "aes" => Algorithm::Aes,
            "serpent" => Algorithm::Serpent,
            "twofish" => Algorithm::Twofish,
            _ => return None,
        };
        let (mode, iv) = match mode.split_once('-') {
            None if mode == "ecb" => (Mode::Ecb, Iv::None),
            None => return None,
            Some((mode, iv)) => {
                let mode = match mode {
                    "cbc" => Mode::Cbc,
                    "xts" => Mode::Xts,
                    _ => return None,
                };
                let iv = match iv.split_once(':') {
                    Some(("essiv", hash)) => Iv::Essiv(Hash::from_name(hash)?),
                    None if iv == "plain" => Iv::Plain,
                    None if iv == "plain64" => Iv::Plain64,
                    _ => return None,
                };
                (mode, iv)
            }
        };
        // ESSIV's own cipher takes the hash as its key.
        let known = match iv {
            Iv::Essiv(hash) => matches!(hash.output_len(), 16 | 24 | 32) && mode == Mode::Cbc,
            _ => true,
        };
        known.then_some(Self { algorithm, mode, iv })
    }

    /// Whether a key of that length goes with it.
    pub fn takes_key(self, len: usize) -> bool {
        self.apply(&vec![0; len], Direction::Encrypt, &mut []).is_ok()
    }

    /// Encrypts or decrypts whole sectors in place, the first of which is number 0.
    pub fn apply(self, key: &[u8], direction: Direction, data: &mut [u8]) -> Result<(), KeyLength> {
        match self.mode {
            Mode::Xts => {
                let (first, second) = key.split_at(key.len() / 2);
                if first.len() != second.len() {
                    return Err(KeyLength);
                }
                with_type!(self.algorithm, first.len(), C => xts::<C>(first, second, self.iv, direction, data))
            }
            Mode::Cbc | Mode::Ecb => {
                with_type!(self.algorithm, key.len(), C => self.chained::<C>(key, direction, data))
            }
        }
    }

    fn chained<C>(self, key: &[u8], direction: Direction, data: &mut [u8]) -> Result<(), KeyLength>
    where
        C: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16> + KeyInit,
    {
        let cipher = C::new_from_slice(key).map_err(|_| KeyLength)?;
        for (number, sector) in data.chunks_mut(SECTOR).enumerate() {
            let mut chain = self.iv(key, number as u64)?;
            for block in sector.as_chunks_mut::<BLOCK>().0 {
                if self.mode == Mode::Ecb {
                    chain = [0; BLOCK];
                }
                let mut now = Array::from(*block);
                match direction {
                    Direction::Encrypt => {
                        now.iter_mut().zip(chain).for_each(|(b, c)| *b ^= c);
                        cipher.encrypt_block(&mut now);
                        chain = now.0;
                    }
                    Direction::Decrypt => {
                        cipher.decrypt_block(&mut now);
                        now.iter_mut().zip(chain).for_each(|(b, c)| *b ^= c);
                        chain = *block;
                    }
                }
                *block = now.0;
            }
        }
        Ok(())
    }

    fn iv(self, key: &[u8], sector: u64) -> Result<[u8; BLOCK], KeyLength> {
        let mut iv = [0; BLOCK];
        match self.iv {
            Iv::None => {}
            Iv::Plain => iv[..4].copy_from_slice(&(sector as u32).to_le_bytes()),
            Iv::Plain64 | Iv::Essiv(_) => iv[..8].copy_from_slice(&sector.to_le_bytes()),
        }
        if let Iv::Essiv(hash) = self.iv {
            let mut salt = zeroize::Zeroizing::new(vec![0; hash.output_len()]);
            hash.digest(&[key], &mut salt);
            let mut block = Array::from(iv);
            with_type!(self.algorithm, salt.len(), C => {
                C::new_from_slice(&salt).map_err(|_| KeyLength)?.encrypt_block(&mut block);
            });
            iv = block.0;
        }
        Ok(iv)
    }
}

fn xts<C>(first: &[u8], second: &[u8], iv: Iv, direction: Direction, data: &mut [u8]) -> Result<(), KeyLength>
where
    C: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16> + KeyInit,
{
    let key = |key| C::new_from_slice(key).map_err(|_| KeyLength);
    let cipher = Xts128::<C>::new(key(first)?, key(second)?);
    let tweak = |sector: u128| match iv {
        Iv::Plain => get_tweak_default(u128::from(sector as u32)),
        _ => get_tweak_default(sector),
    };
    match direction {
        Direction::Encrypt => cipher.encrypt_area(data, SECTOR, 0, tweak),
        Direction::Decrypt => cipher.decrypt_area(data, SECTOR, 0, tweak),
    }
    Ok(())
}
