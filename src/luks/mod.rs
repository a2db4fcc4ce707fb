//! LUKS: what headers say, and what opens them, without QEMU. Pure but for reading the image.
//!
//! Sources: "LUKS1 On-Disk Format Specification 1.2.3", "LUKS2 On-Disk Format Specification 1.1.3".

mod header;
mod unlock;

pub use header::{
    DIGEST_FIELDS, KeySlot, LUKS1_HEADER_LEN, Luks1Header, Luks2Header, Luks2Slot, LuksError, LuksHeader,
    MAGIC,
};
pub use unlock::{Container, MIN_ITERATIONS, ReadAt, Suite, UnlockError, VolumeKey, unlock};
