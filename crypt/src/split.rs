//! The anti-forensic splitter of LUKS1 (specification, chapter 2): a key becomes so much material that some of it is
//! sure to be gone once it is overwritten, and without all of it there is no key.

use zeroize::Zeroizing;

use super::Hash;

/// The key of some material.
pub fn merge(hash: Hash, material: &[u8], key: &mut [u8]) {
    key.fill(0);
    let mut stripes = material.chunks_exact(key.len()).peekable();
    while let Some(stripe) = stripes.next() {
        key.iter_mut().zip(stripe).for_each(|(k, s)| *k ^= s);
        if stripes.peek().is_some() {
            diffuse(hash, key);
        }
    }
}

/// Turns material that is random into that of a key, by its last stripe.
pub fn split(hash: Hash, key: &[u8], material: &mut [u8]) {
    let last = material.len().saturating_sub(key.len());
    let mut sum = Zeroizing::new(vec![0; key.len()]);
    for stripe in material[..last].chunks_exact(key.len()) {
        sum.iter_mut().zip(stripe).for_each(|(k, s)| *k ^= s);
        diffuse(hash, &mut sum);
    }
    for ((to, sum), key) in material[last..].iter_mut().zip(&*sum).zip(key) {
        *to = sum ^ key;
    }
}

/// Each part of a key becomes the hash of its number and itself.
fn diffuse(hash: Hash, key: &mut [u8]) {
    for (n, part) in key.chunks_mut(hash.output_len()).enumerate() {
        let number = u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes();
        let before = Zeroizing::new(part.to_vec());
        hash.digest(&[&number, &before], part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_split_merges_to_the_key_for_every_hash_and_length() {
        for hash in [Hash::Sha1, Hash::Sha256, Hash::Sha512, Hash::Ripemd160, Hash::Md5] {
            for len in [16, 32, 64] {
                let key: Vec<u8> = (0..len).collect();
                let mut material: Vec<u8> = (0..usize::from(len) * 10).map(|n| (n * 7 % 251) as u8).collect();
                split(hash, &key, &mut material);
                let mut found = vec![0; key.len()];
                merge(hash, &material, &mut found);
                assert_eq!(found, key);
                material[3] ^= 1;
                merge(hash, &material, &mut found);
                assert_ne!(found, key);
            }
        }
    }
}
