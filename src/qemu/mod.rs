//! What QEMU is told. Pure: no I/O but the capability probe.
//!
//! A description of QEMU's state is made once, as values, and used twice: printed as options at a cold start
//! ([`CommandLine`]), sent as QMP commands on hotplug ([`DiskPlan`]).

pub mod addresses;
mod build;
mod capabilities;
mod devices;
mod helper;
mod launch;
mod machine;
mod plan;
mod properties;
pub mod refusal;
pub mod storage;
mod tls;

pub use build::build;
pub use capabilities::{Capabilities, HELPER_SOCKET, Host, ProbeError};
pub use devices::{TlsListener, is_chardev_key, vnc_address};
pub use helper::{Helper, Reservations, Service, SharedDirectory, SshFile};
pub use launch::{LaunchOptions, MASTER_KEY_FILE, MONITOR_FD, launch_arguments};
pub use machine::FIRMWARE_VARIABLES;
pub(crate) use plan::object;
pub use plan::{
    Argument, CommandLine, Descriptor, DiskPlan, JsonObject, Macvtap, Preparation, QemuObject, Resource,
    SecretObject, SecretSource, SocketChardev, SocketPath, Tap,
};
pub use tls::{Tls, TlsCredentials, VNC_SECRET};
