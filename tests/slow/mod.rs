//! Raw LUKS images whose headers ask for many iterations: as slow as a test wants them, whatever the machine.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "this is a test")]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use vmward::luks::{Container, LUKS1_HEADER_LEN, Luks1Header, LuksHeader, unlock};
use vmward::secret::{SecretValue, os_random};

use crate::bare::{Host, PASSPHRASE, Run, SECRET};
use crate::user::wait_until;

/// Worth being unlocked by vmward, and done in a moment.
pub const WORTHWHILE: u32 = 500_000;
/// Enough to do something meanwhile.
pub const LONG: u32 = 12_000_000;

/// The header of an image.
pub fn header(image: &Path) -> Luks1Header {
    let mut bytes = vec![0; LUKS1_HEADER_LEN];
    File::open(image).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    let LuksHeader::V1(header) = LuksHeader::parse(&bytes).unwrap() else { panic!("not LUKS1") };
    *header
}

/// An image of qemu-img's whose passphrase takes that many iterations.
pub fn image(host: &Host, name: &str, iterations: u32) -> PathBuf {
    let path = host.image(name, "raw", true);
    let passphrase = SecretValue::copy_of(PASSPHRASE.as_bytes()).unwrap();
    let image = File::options().read(true).write(true).open(&path).unwrap();
    let mut header = header(&path);
    let (_, key) = unlock(&[Container { header: &header, image: &image, passphrase: &passphrase }], 2)
        .remove(0)
        .unwrap();
    let material = header.fill_slot(0, &key, &passphrase, iterations, 2, &mut os_random()).unwrap();
    image.write_all_at(material.expose(), header.material(&header.slots[0]).start).unwrap();
    image.write_all_at(&header.encode(), 0).unwrap();
    path
}

/// A server of an image, which serves one client at a time, as qemu-nbd does if nothing else is said.
pub struct NbdServer {
    process: Child,
    socket: PathBuf,
}

impl NbdServer {
    /// With the image as its export `disk`.
    pub fn of(image: &Path) -> Self {
        let socket = image.with_extension("sock");
        let process = Command::new("qemu-nbd")
            .args(["--persistent", "--format=raw", "--export-name=disk"])
            .arg(format!("--socket={}", socket.display()))
            .arg(image)
            .spawn()
            .unwrap();
        let server = Self { process, socket };
        wait_until("qemu-nbd does not listen", || UnixStream::connect(&server.socket).is_ok());
        server
    }

    /// The XML of a virtio disk on it.
    pub fn disk(&self, target: &str) -> String {
        format!(
            "<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='nbd' name='disk'>\
             <host transport='unix' socket='{}'/><encryption format='luks'><secret type='passphrase' uuid='{SECRET}'/>\
             </encryption></source><target dev='{target}' bus='virtio'/></disk>",
            self.socket.display()
        )
    }

    /// What it is called in messages.
    pub fn name(&self) -> String {
        format!("nbd://{}/disk", self.socket.display())
    }

    /// The processes that have been told of it, but for itself and QEMU.
    pub fn readers(&self) -> Vec<i32> {
        let readers = crate::bare::processes_with(&self.socket.display().to_string()).into_iter();
        readers
            .filter(|pid| {
                fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "qemu-img\n")
            })
            .collect()
    }

    /// Stops it, or has it go on.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id().try_into().unwrap()), signal).unwrap();
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The XML of a virtio disk on such an image.
pub fn disk(image: &Path, target: &str) -> String {
    crate::bare::disk(image, "raw", Some(SECRET)).replace("'vda'", &format!("'{target}'"))
}

/// Whether the QEMU of these tests opens LUKS with a header beside the image; a test that needs it says so.
pub fn can_unlock(host: &Host) -> bool {
    if !crate::bare::has_qemu_img() {
        return false;
    }
    let program =
        std::env::var("VMWARD_TEST_EMULATOR").unwrap_or_else(|_| "/usr/bin/qemu-system-x86_64".into());
    let cache = host.path("cache");
    let can = vmward::qemu::Capabilities::of_program(Path::new(&program), &cache)
        .unwrap()
        .has_detached_luks_headers();
    if !can {
        println!("skipped: detached LUKS headers came with QEMU 9.0");
    }
    can
}

/// What QEMU answers.
pub fn qmp(host: &Host, guest: &str, command: &str, arguments: Value) -> Value {
    let text = json!({ "execute": command, "arguments": arguments }).to_string();
    serde_json::from_slice(&host.user.ok(&["qmp", guest, &text], b"")).unwrap()
}

/// The disks of a guest, as `vmward status` has them: target and whether vmward has unlocked it.
pub fn unlocked(host: &Host, guest: &str) -> Vec<(String, bool)> {
    let status: Value = serde_json::from_slice(&host.user.ok(&["status", "--json", guest], b"")).unwrap();
    let disks = status["disks"].as_array().unwrap().iter();
    disks
        .map(|d| (d["target"].as_str().unwrap().to_owned(), d["unlocked_outside"].as_bool().unwrap()))
        .collect()
}

/// An image's volume key, from another program.
pub fn volume_key(image: &Path) -> Option<Vec<u8>> {
    let dump = Command::new("cryptsetup")
        .args(["luksDump", "--dump-volume-key", "--batch-mode", "--key-file", "-"])
        .arg(image)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut dump) = dump else {
        println!("skipped: there is no cryptsetup in PATH");
        return None;
    };
    dump.stdin.take().unwrap().write_all(PASSPHRASE.as_bytes()).unwrap();
    let output = dump.wait_with_output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let hex: String = text.split("MK dump:").nth(1).unwrap().split_whitespace().collect();
    Some((0..hex.len()).step_by(2).map(|n| u8::from_str_radix(&hex[n..n + 2], 16).unwrap()).collect())
}

/// An image that cryptsetup makes, whose passphrase takes that many iterations. Without cryptsetup it is qemu-img's.
pub fn image_of_cryptsetup(host: &Host, name: &str, iterations: u32) -> PathBuf {
    let path = host.path(name);
    File::create(&path).unwrap().set_len(6 << 20).unwrap();
    let format = Command::new("cryptsetup")
        .args([
            "luksFormat",
            "--batch-mode",
            "--type",
            "luks1",
            "--pbkdf-force-iterations",
            &iterations.to_string(),
        ])
        .args(["--key-file", "-"])
        .arg(&path)
        .stdin(Stdio::piped())
        .spawn();
    let Ok(mut format) = format else {
        println!("skipped: there is no cryptsetup in PATH: qemu-img makes the image instead");
        return image(host, name, iterations);
    };
    format.stdin.take().unwrap().write_all(PASSPHRASE.as_bytes()).unwrap();
    assert!(format.wait().unwrap().success());
    path
}

/// The headers of one opening that a process has open, by what is in them.
pub fn headers_beside(process: i32) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(format!("/proc/{process}/fd")).unwrap().filter_map(Result::ok);
    let ours = entries.filter(|e| {
        fs::read_link(e.path()).is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:luks-header"))
    });
    ours.map(|e| fs::read(e.path()).unwrap()).collect()
}

/// Waits until a supervisor derives keys.
pub fn deriving(supervisor: i32) {
    wait_until("no key is derived", || is_deriving(supervisor));
}

fn is_deriving(supervisor: i32) -> bool {
    let threads =
        fs::read_dir(format!("/proc/{supervisor}/task")).into_iter().flatten().filter_map(Result::ok);
    let mut names = threads.map(|t| fs::read_to_string(t.path().join("comm")).unwrap_or_default());
    names.any(|name| name == "unlock\n")
}

/// Everything that a disk could leave in QEMU.
pub fn inventory(host: &Host, run: &Run, guest: &str) -> Vec<Value> {
    let mut all: Vec<Value> = vec![
        qmp(host, guest, "query-named-block-nodes", json!({ "flat": true }))
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n["node-name"].clone())
            .collect(),
        qmp(host, guest, "qom-list", json!({ "path": "/objects" })),
        qmp(host, guest, "qom-list", json!({ "path": "/machine/peripheral" })),
        qmp(host, guest, "query-fdsets", json!({})),
    ];
    all.push(json!(headers_beside(run.qemu()).len()));
    all
}
