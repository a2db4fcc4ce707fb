//! Hotplug.
mod steps;
pub use steps::{DiskParts, Step, Undone};
