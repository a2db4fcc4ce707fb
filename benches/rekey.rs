//! What `volume rekey --machine-key` is for: how long QEMU, and with it a running guest, stands still while a volume is
//! opened, before and after. `cargo bench --bench rekey`; `VMWARD_TEST_EMULATOR` names another QEMU than the one in PATH.
#![allow(clippy::unwrap_used, reason = "this is a bench")]

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use vmward::qmp::Qmp;

/// Turns of each; the middle one counts.
const TURNS: usize = 9;
/// Nothing here takes that long.
const DEADLINE: Duration = Duration::from_secs(120);

fn vmward(home: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(env!("CARGO_BIN_EXE_vmward"))
        .args(arguments)
        .env("VMWARD_CONFIG", home.join("vmward.toml"))
        .env("VMWARD_RUNTIME_DIR", home.join("run"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A QEMU without a machine.
struct Qemu {
    process: Child,
    monitor: Qmp,
}

impl Qemu {
    async fn start(home: &Path) -> Self {
        let socket = home.join("qmp.sock");
        let program = env::var("VMWARD_TEST_EMULATOR").unwrap_or_else(|_| "qemu-system-x86_64".to_owned());
        let process = Command::new(program)
            .args(["-M", "none", "-nodefaults", "-display", "none", "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let start = Instant::now();
        let monitor = loop {
            if socket.exists() {
                break Qmp::connect(&socket, DEADLINE).await.unwrap();
            }
            assert!(start.elapsed() < DEADLINE, "QEMU does not start");
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        Self { process, monitor }
    }

    async fn call(&self, command: &str, arguments: Value) {
        self.monitor.execute_json(command, Some(&arguments), DEADLINE).await.unwrap();
    }

    /// How long `blockdev-add` takes.
    async fn open(&self, home: &Path, path: &str, format: &str) -> Duration {
        let value = home.join("value");
        fs::write(&value, vmward(home, &["secret", "get-value", path])).unwrap();
        self.call("object-add", json!({ "qom-type": "secret", "id": "s", "file": value })).await;
        let file = json!({ "driver": "file", "filename": path });
        let node = match format {
            "raw" => json!({ "driver": "luks", "node-name": "d", "key-secret": "s", "file": file }),
            _ => json!({
                "driver": "qcow2", "node-name": "d", "encrypt": { "format": "luks", "key-secret": "s" }, "file": file
            }),
        };
        let start = Instant::now();
        self.call("blockdev-add", node).await;
        let took = start.elapsed();
        self.call("blockdev-del", json!({ "node-name": "d" })).await;
        self.call("object-del", json!({ "id": "s" })).await;
        took
    }

    async fn measure(&self, home: &Path, path: &str, format: &str) -> Duration {
        let mut turns = Vec::new();
        for _ in 0..TURNS {
            turns.push(self.open(home, path, format).await);
        }
        turns.sort();
        turns[TURNS / 2]
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let home = TempDir::new().unwrap();
    let home = home.path();
    fs::write(home.join("vmward.toml"), "keystore = 'file:secrets'\n").unwrap();
    let mut qemu = Qemu::start(home).await;
    println!("QEMU {}: blockdev-add, median of {TURNS}", qemu.monitor.version().major);
    println!("{:<8}{:>16}{:>16}{:>16}{:>16}", "", "QEMU's default", "rekeyed", "machine key", "rekey itself");
    for format in ["raw", "qcow2"] {
        let path = home.join(format).display().to_string();
        vmward(
            home,
            &["volume", "create", &path, "--size", "16M", "--format", format, "--generate", "--kdf", "slow"],
        );
        let slow = qemu.measure(home, &path, format).await;
        vmward(home, &["volume", "rekey", &path]);
        let rekeyed = qemu.measure(home, &path, format).await;
        let start = Instant::now();
        vmward(home, &["volume", "rekey", &path, "--machine-key"]);
        let itself = start.elapsed();
        let quick = qemu.measure(home, &path, format).await;
        println!("{format:<8}{slow:>16.1?}{rekeyed:>16.1?}{quick:>16.1?}{itself:>16.1?}");
    }
    qemu.process.kill().unwrap();
    qemu.process.wait().unwrap();
}
