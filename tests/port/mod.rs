//! Ports of this host for servers of the tests.

use std::net::TcpListener;
use std::process;
use std::sync::atomic::{AtomicU16, Ordering};

/// A port that is free, and stays so until a server has it: who asks the kernel for any, as every client does, gets one from
/// 32768 on (`ip_local_port_range`).
pub fn free_port() -> u16 {
    static TRIED: AtomicU16 = AtomicU16::new(0);
    // Test binaries that run at the same time begin elsewhere.
    let first = 10_000 + u16::try_from(process::id() % 1_000).unwrap_or_default() * 20;
    loop {
        let port = first + TRIED.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
