//! The algorithms of LUKS1 headers ("LUKS1 On-Disk Format Specification 1.2.3"), as QEMU and cryptsetup use them: bytes
//! in, bytes out. Unlocking a disk is millions of iterations of them; that is why they are a package of their own, which is
//! compiled for speed in every build.

mod block;
mod cipher;
mod hash;
mod pbkdf2;
mod sha256;
mod split;
mod stack;

pub use cipher::{Cipher, Direction, KeyLength};
pub use hash::Hash;
pub use pbkdf2::{Derivation, pbkdf2};
pub use split::{merge, split};
pub use stack::wiping_stack;
