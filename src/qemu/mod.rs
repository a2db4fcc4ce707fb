//! What QEMU is told. Pure: no I/O but the capability probe.
//!
//! A description of QEMU's state is made once, as values, and used twice: printed as options at a cold start
//! ([`CommandLine`]), sent as QMP commands on hotplug ([`DiskPlan`]).

mod plan;

pub use plan::{
    Argument, CommandLine, Descriptor, DiskPlan, JsonObject, QemuObject, Resource, SecretObject,
    SecretSource, Tap,
};
