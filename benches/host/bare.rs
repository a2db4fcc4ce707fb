//! A QEMU without a machine, and how long it stands still while it opens an encrypted image.
#![allow(clippy::unwrap_used, reason = "this is a bench")]
#![allow(dead_code, reason = "each bench uses a part of it")]

use std::env;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::{Value, json};
use vmward::luks::{Container, LUKS1_HEADER_LEN, LuksHeader, unlock};
use vmward::qmp::Qmp;
use vmward::secret::{SecretValue, os_random};

/// Nothing here takes that long.
const DEADLINE: Duration = Duration::from_secs(120);

pub struct Bare {
    process: Child,
    pub monitor: Qmp,
}

impl Bare {
    /// `VMWARD_TEST_EMULATOR` names another QEMU than the one in PATH.
    pub async fn start(home: &Path) -> Self {
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

    /// How long `blockdev-add` takes with an image's own header; its passphrase is in a file.
    pub async fn open(&self, value: &Path, path: &str, format: &str) -> Duration {
        self.call("object-add", json!({ "qom-type": "secret", "id": "s", "file": value })).await;
        let file = json!({ "driver": "file", "filename": path });
        let node = match format {
            "raw" => json!({ "driver": "luks", "node-name": "d", "key-secret": "s", "file": file }),
            _ => json!({
                "driver": "qcow2", "node-name": "d", "encrypt": { "format": "luks", "key-secret": "s" }, "file": file
            }),
        };
        self.add(node).await
    }

    /// How long it takes with a header of one opening, which is made before.
    pub async fn open_with_header(&self, value: &Path, path: &str) -> Duration {
        let image = File::open(path).unwrap();
        let mut bytes = [0; LUKS1_HEADER_LEN];
        image.read_exact_at(&mut bytes, 0).unwrap();
        let LuksHeader::V1(header) = LuksHeader::parse(&bytes).unwrap() else { panic!("not LUKS1") };
        let passphrase = SecretValue::read_from(File::open(value).unwrap()).unwrap();
        let (_, key) = unlock(&[Container { header: &header, image: &image, passphrase: &passphrase }], 2)
            .remove(0)
            .unwrap();
        let once = SecretValue::random_passphrase().unwrap();
        let beside = header.ephemeral(&key, &once, &mut os_random()).unwrap();
        let memory = File::from(memfd_create(c"luks-header", MFdFlags::MFD_CLOEXEC).unwrap());
        memory.write_all_at(beside.expose(), 0).unwrap();
        self.monitor.add_fd(0, "header", memory.into()).await.unwrap();
        let secret = String::from_utf8(once.expose().to_vec()).unwrap();
        self.call("object-add", json!({ "qom-type": "secret", "id": "s", "data": secret })).await;
        let node = json!({
            "driver": "luks", "node-name": "d", "key-secret": "s",
            "file": { "driver": "file", "filename": path },
            "header": { "driver": "file", "filename": "/dev/fdset/0", "read-only": false, "auto-read-only": false, "locking": "off" },
        });
        let took = self.add(node).await;
        self.call("remove-fd", json!({ "fdset-id": 0 })).await;
        took
    }

    async fn add(&self, node: Value) -> Duration {
        let start = Instant::now();
        self.call("blockdev-add", node).await;
        let took = start.elapsed();
        self.call("blockdev-del", json!({ "node-name": "d" })).await;
        self.call("object-del", json!({ "id": "s" })).await;
        took
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Writes a secret's value into a file of its own.
pub fn value_in(home: &Path, value: &[u8]) -> std::path::PathBuf {
    let file = home.join("value");
    fs::write(&file, value).unwrap();
    file
}
