//! Plugging disks into a running guest, and taking them out.
//!
//! A disk is the same values as at a cold start ([`crate::qemu::DiskPlan`]), sent as `object-add`,
//! `blockdev-add` and `device_add`. What fails is undone in reverse; nothing is left of it in QEMU. One
//! change at a time: who comes second waits.

mod attach;
mod detach;
mod error;
mod media;
mod steps;
mod tidy;

pub use attach::{Attached, attach};
pub use detach::{DETACH_DEADLINE, detach, watch};
pub use error::HotplugError;
pub use media::{Medium, change_media};
pub use steps::{DiskParts, Step, Undone};
pub(super) use steps::{block_of, is_absent, undo};
pub(super) use tidy::tidy;
