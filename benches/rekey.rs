//! What `volume rekey --machine-key` is for: how long QEMU, and with it a running guest, stands still while a volume is
//! opened, before and after, and how long the command takes. `cargo bench --bench rekey`; `VMWARD_TEST_EMULATOR` names
//! another QEMU than the one in PATH.
#![allow(clippy::unwrap_used, reason = "this is a bench")]

#[path = "host/bare.rs"]
mod bare;
mod host;

use std::path::Path;
use std::time::{Duration, Instant};

use bare::{Bare, value_in};
use host::Host;

/// Turns of each; the middle one counts.
const TURNS: usize = 9;

async fn measure(qemu: &Bare, host: &Host, path: &str, format: &str) -> Duration {
    let value = value_in(host.home(), host.output(&["secret", "get-value", path]).as_bytes());
    let mut turns = Vec::new();
    for _ in 0..TURNS {
        turns.push(qemu.open(&value, path, format).await);
    }
    turns.sort();
    turns[TURNS / 2]
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let host = Host::new();
    let home: &Path = host.home();
    let qemu = Bare::start(home).await;
    println!("QEMU {}: blockdev-add, median of {TURNS}", qemu.monitor.version().major);
    println!("{:<8}{:>16}{:>16}{:>16}{:>16}", "", "QEMU's default", "rekeyed", "machine key", "rekey itself");
    for format in ["raw", "qcow2"] {
        let path = host.path(format);
        host.output(&[
            "volume",
            "create",
            &path,
            "--size",
            "16M",
            "--format",
            format,
            "--generate",
            "--kdf",
            "slow",
        ]);
        let slow = measure(&qemu, &host, &path, format).await;
        host.output(&["volume", "rekey", &path]);
        let rekeyed = measure(&qemu, &host, &path, format).await;
        let start = Instant::now();
        host.output(&["volume", "rekey", &path, "--machine-key"]);
        let itself = start.elapsed();
        let quick = measure(&qemu, &host, &path, format).await;
        println!("{format:<8}{slow:>16.1?}{rekeyed:>16.1?}{quick:>16.1?}{itself:>16.1?}");
    }
}
