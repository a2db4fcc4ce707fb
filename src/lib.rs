//! vmward runs one QEMU guest per process, from a libvirt domain XML, with every secret its devices need.
//!
//! The modules are the rooms of the house, listed here from the ground up: each uses only those above it
//! in this file, and `cli` uses them all.

mod parallel;

pub mod xml;

pub mod secret;

pub mod luks;

pub mod domain;

pub mod keystore;

pub mod qemu;

pub mod qmp;

pub mod volume;

pub mod supervisor;

pub mod cli;

#[cfg(test)]
#[path = "../tests/script/mod.rs"]
mod script;
