//! LUKS headers, as far as they can be read without a key. Pure: bytes in, types out.
//!
//! Sources: "LUKS1 On-Disk Format Specification 1.2.3", "LUKS2 On-Disk Format Specification 1.1.3".

mod header;

pub use header::{KeySlot, LUKS1_HEADER_LEN, Luks1Header, Luks2Header, LuksError, LuksHeader, MAGIC};
