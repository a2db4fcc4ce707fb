//! One running domain: launch, lib dir, monitor events, hotplug, shutdown and wipe, recovery, control socket.

pub mod control;
mod error;
mod lib_dir;
mod process;
mod running;
mod state;
mod user;

pub use error::SupervisorError;
pub use lib_dir::{CONTROL_SOCKET, LibDir, MONITOR_SOCKET};
pub use process::{Ending, ProcessId};
pub use running::{Change, Configuration, Order, Running};
pub use user::{DEFAULT_USER, User};
