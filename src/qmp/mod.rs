//! Talking to a running QEMU over its monitor (QMP, docs/interop/qmp-spec.rst of QEMU).
//!
//! Commands and replies are the types of the `qapi` crate where it knows them. Frames are read tolerantly
//! all the same: an event, field or enum value that this schema does not know yet breaks nothing.

mod client;
mod command;
mod error;
mod event;
mod fd_sets;
mod frame;
mod job;

pub use client::{COMMAND_DEADLINE, Qmp, SLOW_COMMAND_DEADLINE};
pub use command::Sent;
pub use error::QmpError;
pub use event::{Event, Events};
pub use fd_sets::FdSetPaths;
pub use frame::{QemuVersion, read_frames};
pub use job::BAD_CLOCK;
