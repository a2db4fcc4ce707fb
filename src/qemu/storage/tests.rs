//! Plans of disks.
