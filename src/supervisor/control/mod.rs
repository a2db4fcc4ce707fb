//! The control socket.
pub mod api;
mod client;
pub use client::DomainProxy;

/// The control socket's name in the lib dir.
pub const CONTROL_SOCKET: &str = "control.sock";
