//! A guest without a system: QEMU's firmware, which finds nothing to boot, and disks. It never answers the
//! power button.
#![allow(clippy::unwrap_used, reason = "this is a test")]
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::env;
use std::fs;
use std::io::Read;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::user::{PATIENCE, User};

/// The passphrase of all images, of the form of those that vmward generates: slots for it are cheap.
pub const PASSPHRASE: &str = "XEWe0eEe/zcQI6y/Shd4T2e/yctOOOc1DqnNqKfTDS0=";
/// The UUID of its secret.
pub const SECRET: &str = "5c8a3f2e-0b1d-4c6e-8f90-a1b2c3d4e5f6";

/// A user with the secret in his keystore, and a runtime directory of his own.
pub struct Host {
    pub user: User,
}

/// A supervisor that was started.
pub struct Run {
    child: Option<Child>,
    /// What its service manager is told.
    told: mpsc::Receiver<String>,
    /// What it says, to its end.
    said: Option<JoinHandle<String>>,
    lib_dir: PathBuf,
}

/// How a supervisor ended, and what it said.
pub struct Ended {
    pub status: ExitStatus,
    pub said: String,
}

/// Whether images can be made here; a test that needs them and cannot says so.
pub fn has_qemu_img() -> bool {
    let found = Command::new("qemu-img").arg("--version").output().is_ok();
    if !found {
        println!("skipped: there is no qemu-img");
    }
    found
}

impl Host {
    pub fn new() -> Self {
        let host = Self { user: User::new() };
        host.secret(SECRET, PASSPHRASE);
        host
    }

    /// Defines a volume's secret and sets its value.
    pub fn secret(&self, uuid: &str, value: &str) {
        self.user.define(&format!("<uuid>{uuid}</uuid>"));
        self.user.ok(&["secret", "set-value", uuid], value.as_bytes());
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.user.home.path().join(name)
    }

    /// Makes an image that is encrypted with [`PASSPHRASE`], or plain.
    pub fn image(&self, name: &str, format: &str, encrypted: bool) -> PathBuf {
        let path = self.path(name);
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q"]);
        if encrypted {
            let (format, prefix) = if format == "raw" { ("luks", "") } else { (format, "encrypt.") };
            command.args(["--object", &format!("secret,id=s,data={PASSPHRASE}"), "-f", format]);
            if format != "luks" {
                command.args(["-o", "encrypt.format=luks"]);
            }
            command.args(["-o", &format!("{prefix}key-secret=s,{prefix}iter-time=10")]);
        } else {
            command.args(["-f", format]);
        }
        command.arg(&path).arg("4M");
        loop {
            let made = command.output().unwrap();
            let said = String::from_utf8_lossy(&made.stderr);
            if made.status.success() {
                return path;
            }
            // On a busy machine the measurement of the key derivation's cost fails now and then.
            assert!(said.contains("Unable to get accurate CPU usage"), "{said}");
        }
    }

    /// Writes the XML of a guest; returns its path.
    pub fn guest(&self, name: &str, devices: &str) -> PathBuf {
        // As in every test, VMWARD_TEST_EMULATOR stands for a guest that names none.
        let emulator = match env::var("VMWARD_TEST_EMULATOR") {
            Ok(path) if !devices.contains("<emulator>") => format!("<emulator>{path}</emulator>"),
            _ => String::new(),
        };
        let xml = format!(
            "<domain type='qemu'>\n<name>{name}</name>\n<memory unit='MiB'>32</memory>\n<vcpu>1</vcpu>\n\
             <os><type arch='x86_64' machine='pc'>hvm</type></os>\n<features><acpi/></features>\n<devices>{emulator}\n{devices}\n</devices>\n</domain>\n"
        );
        let path = self.path(&format!("{name}.xml"));
        fs::write(&path, xml).unwrap();
        path
    }

    /// A guest with one encrypted disk.
    pub fn encrypted_guest(&self, name: &str) -> PathBuf {
        let image = self.image(&format!("{name}.qcow2"), "qcow2", true);
        self.guest(name, &disk(&image, "qcow2", Some(SECRET)))
    }

    pub fn lib_dir(&self, name: &str) -> PathBuf {
        self.path("run").join(name)
    }

    /// Starts a supervisor.
    pub fn start(&self, guest: &Path, options: &[&str]) -> Run {
        self.start_with(guest, options, |_| {})
    }

    /// Starts a supervisor in a way of the test's own.
    pub fn start_with(&self, guest: &Path, options: &[&str], way: impl FnOnce(&mut Command)) -> Run {
        let name = guest.file_stem().unwrap().to_str().unwrap();
        let socket = self.path(&format!("{name}.notify"));
        let _ = fs::remove_file(&socket);
        let notify = UnixDatagram::bind(&socket).unwrap();
        let patience = if options.contains(&"--stop-timeout") { &[][..] } else { &["--stop-timeout", "0"] };
        let mut command = self.user.command(&["run", guest.to_str().unwrap()]);
        command
            .args(patience)
            .args(options)
            .env("NOTIFY_SOCKET", &socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        way(&mut command);
        let mut child = command.spawn().unwrap();
        // Both are read as they come: a supervisor waits for who does not read.
        let (hears, told) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 256];
            while let Ok(len) = notify.recv(&mut buffer) {
                let _ = hears.send(String::from_utf8(buffer[..len].to_vec()).unwrap());
            }
        });
        let mut stderr = child.stderr.take().unwrap();
        let said = thread::spawn(move || {
            let mut said = String::new();
            stderr.read_to_string(&mut said).unwrap();
            said
        });
        Run { child: Some(child), told, said: Some(said), lib_dir: self.lib_dir(name) }
    }

    /// Starts a supervisor, and waits until its guest runs.
    pub fn running(&self, guest: &Path) -> Run {
        let mut run = self.start(guest, &[]);
        run.ready();
        run
    }

    /// A supervisor that fails with that exit code; returns what it said. Nothing may be left.
    pub fn fails(&self, exit: i32, guest: &Path) -> String {
        let run = self.start(guest, &[]);
        let lib_dir = run.lib_dir.clone();
        let ended = run.ended();
        assert_eq!(ended.status.code(), Some(exit), "{}", ended.said);
        nothing_left(&lib_dir);
        ended.said
    }
}

/// The XML of a disk on a file.
pub fn disk(image: &Path, format: &str, secret: Option<&str>) -> String {
    let encryption = secret.map_or_else(String::new, |uuid| {
        format!("\n<encryption format='luks'><secret type='passphrase' uuid='{uuid}'/></encryption>\n")
    });
    format!(
        "<disk type='file' device='disk'><driver name='qemu' type='{format}'/>\
         <source file='{}'>{encryption}</source><target dev='vda' bus='virtio'/></disk>",
        image.display()
    )
}

/// Whether programs are installed; a test that needs them and has none says so.
pub fn installed(programs: &[&str]) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let missing = programs.iter().find(|name| !env::split_paths(&path).any(|dir| dir.join(name).is_file()));
    if let Some(name) = missing {
        println!("skipped: there is no {name}");
    }
    missing.is_none()
}

/// The XML of a disk behind a password, where nobody answers.
pub fn ssh_disk(host: &Host, target: &str, bus: &str) -> String {
    let secret = host.user.define("<usage type='iscsi'><target>ssh</target></usage>");
    host.user.ok(&["secret", "set-value", &secret], b"vmward-test-Ssh-Password-1");
    format!(
        "<disk type='network' device='disk'><driver name='qemu' type='raw'/>\
         <source protocol='ssh' name='/disk'><host name='127.0.0.1' port='1'/>\
         <auth username='me'><secret type='iscsi' usage='ssh'/></auth>\
         <knownHosts path='{}'/></source><target dev='{target}' bus='{bus}'/></disk>",
        host.path("known_hosts").display()
    )
}

/// No lib dir, and no process that was started with its key, or that serves its guest.
pub fn nothing_left(lib_dir: &Path) {
    assert!(!lib_dir.exists(), "{} is left", lib_dir.display());
    let left = [processes_of(lib_dir), helpers_of(lib_dir)].concat();
    assert!(left.is_empty(), "left: {left:?}");
}

/// The processes that were started with the lib dir's key.
pub fn processes_of(lib_dir: &Path) -> Vec<i32> {
    processes_with(&format!("{}/master-key.aes", lib_dir.display()))
}

/// The processes that were started with a helper's socket in the lib dir.
pub fn helpers_of(lib_dir: &Path) -> Vec<i32> {
    processes_with(&format!("{}/helper-", lib_dir.display()))
}

/// The processes that have that in their arguments.
pub fn processes_with(needle: &str) -> Vec<i32> {
    let pids = fs::read_dir("/proc").unwrap().filter_map(|e| e.unwrap().file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&arguments).contains(needle)
    })
    .collect()
}

impl Run {
    /// Waits until the service manager is told that the guest runs.
    pub fn ready(&mut self) {
        self.told("READY=1");
    }

    /// Waits until the service manager is told something; returns all the lines of that message.
    pub fn told(&mut self, what: &str) -> String {
        let start = Instant::now();
        loop {
            match self.told.recv_timeout(Duration::from_secs(1)) {
                Ok(text) if text.lines().any(|line| line.starts_with(what)) => return text,
                Ok(_) => continue,
                Err(_) => {}
            }
            let child = self.child.as_mut().unwrap();
            if start.elapsed() > PATIENCE {
                child.kill().unwrap();
            } else if child.try_wait().unwrap().is_none() {
                continue;
            }
            let ended = self.end();
            panic!("not told {what}, ended with {}: {}", ended.status, ended.said);
        }
    }

    /// Waits until the supervisor has stopped itself where its environment says (`vmward::supervisor::STOP_AT`).
    pub fn stopped(&self, at: &str) {
        let start = Instant::now();
        loop {
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.supervisor())).unwrap();
            match stat.rsplit_once(") ").unwrap().1.as_bytes()[0] {
                b'T' => return,
                b'Z' => panic!("{at}: the supervisor has ended"),
                _ => assert!(start.elapsed() < PATIENCE, "{at} is not reached"),
            }
            sleep(Duration::from_millis(5));
        }
    }

    pub fn lib_dir(&self) -> &Path {
        &self.lib_dir
    }

    pub fn supervisor(&self) -> i32 {
        self.child.as_ref().unwrap().id().try_into().unwrap()
    }

    /// QEMU's process.
    pub fn qemu(&self) -> i32 {
        let state = fs::read(self.lib_dir.join("state.json")).unwrap();
        let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
        state["process"]["pid"].as_i64().unwrap().try_into().unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.supervisor()), signal).unwrap();
    }

    /// Waits for the end.
    pub fn ended(mut self) -> Ended {
        self.end()
    }

    fn end(&mut self) -> Ended {
        let status = self.child.take().unwrap().wait().unwrap();
        Ended { status, said: self.said.take().unwrap().join().unwrap() }
    }

    /// Waits for an end with that exit code, after which nothing may be left; returns what was said.
    pub fn ends(self, exit: i32) -> String {
        let lib_dir = self.lib_dir.clone();
        let ended = self.ended();
        assert_eq!(ended.status.code(), Some(exit), "{}", ended.said);
        nothing_left(&lib_dir);
        ended.said
    }
}

impl Drop for Run {
    /// A test that fails leaves nothing either, nor does one that forgot a guest; of a supervisor that it saw end, the guest is
    /// another one's to end.
    fn drop(&mut self) {
        let forgotten = self.child.is_some();
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if forgotten || std::thread::panicking() {
            for process in [processes_of(&self.lib_dir), helpers_of(&self.lib_dir)].concat() {
                let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
            }
        }
    }
}

/// The objects that the QEMU of the guest `guest` has, its memory left out.
pub fn objects(host: &Host) -> Vec<String> {
    let command = "{\"execute\":\"qom-list\",\"arguments\":{\"path\":\"/objects\"}}";
    let list: serde_json::Value =
        serde_json::from_slice(&host.user.ok(&["qmp", "guest", command], b"")).unwrap();
    let names = list.as_array().unwrap().iter().map(|o| o["name"].as_str().unwrap().to_owned());
    // Since QEMU 11.1 its monitor is one.
    let usual = ["type", "pc.ram", "monitor"];
    let mut names: Vec<String> = names.filter(|name| !usual.contains(&name.as_str())).collect();
    names.sort();
    names
}
