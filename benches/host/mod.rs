//! A user with guests, and what they take: through vmward, and by QEMU alone.
#![allow(dead_code, reason = "each bench uses a part of it")]
#![allow(clippy::unwrap_used, reason = "this is a bench")]

pub mod peers;

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use tempfile::TempDir;

/// What both descriptors are told apart by, in QEMU's arguments.
const MONITOR_FD: i32 = 3;
/// Nothing here takes that long.
pub const DEADLINE: Duration = Duration::from_secs(120);

pub struct Host {
    dir: TempDir,
    ready: UnixDatagram,
}

impl Host {
    /// With nothing in the keystore yet.
    pub fn new() -> Self {
        // On a tmpfs where there is one, as in real use.
        let dir = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).expect("a directory");
        fs::write(dir.path().join("vmward.toml"), "keystore = 'file:secrets'\n").expect("a configuration");
        let ready = UnixDatagram::bind(dir.path().join("notify.sock")).expect("a socket");
        ready.set_read_timeout(Some(DEADLINE)).expect("a deadline");
        Self { dir, ready }
    }

    /// Writes the guest `bench` with these disks.
    pub fn guest(&self, disks: &str) {
        self.guest_with("", disks);
    }

    /// The same with elements of `<os>`.
    pub fn guest_with(&self, os: &str, devices: &str) {
        let emulator = env::var("VMWARD_TEST_EMULATOR")
            .map_or_else(|_| String::new(), |path| format!("<emulator>{path}</emulator>"));
        // A system needs more than firmware that finds nothing to boot.
        let memory = if os.is_empty() { 128 } else { 192 };
        let xml = format!(
            "<domain type='qemu'><name>bench</name><memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='q35'>hvm</type>{os}</os><features><acpi/></features>\
             <devices>{emulator}{devices}</devices></domain>"
        );
        fs::write(self.path("guest.xml"), xml).expect("a guest");
    }

    /// Where everything of his is.
    pub fn home(&self) -> &Path {
        self.dir.path()
    }

    /// A file of his.
    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// vmward with these arguments.
    pub fn vmward(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmward"));
        command
            .args(arguments)
            .env("VMWARD_CONFIG", self.path("vmward.toml"))
            .env("VMWARD_RUNTIME_DIR", self.path("run"))
            .env("NOTIFY_SOCKET", self.path("notify.sock"))
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    /// What vmward prints.
    pub fn output(&self, arguments: &[&str]) -> String {
        let output = self.vmward(arguments).stderr(Stdio::piped()).output().expect("vmward");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "vmward {arguments:?} failed: {said}");
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }

    /// Starts the guest through vmward; returns when it says that the guest runs.
    pub fn start(&self, options: &[&str]) -> (Child, Duration) {
        let start = Instant::now();
        let child = self.vmward(&["run", &self.path("guest.xml")]).args(options).spawn().expect("vmward");
        let mut message = [0; 4096];
        let mut ready = false;
        while !ready {
            let read = self.ready.recv(&mut message).expect("vmward did not start the guest");
            ready = message[..read].split(|b| *b == b'\n').any(|line| line == b"READY=1");
        }
        (child, start.elapsed())
    }

    /// Ends it.
    pub fn stop(&self, mut child: Child) {
        self.output(&["destroy", "bench"]);
        child.wait().expect("vmward");
    }

    /// QEMU's arguments in a guest that runs, for a master key that outlives it.
    pub fn qemu_arguments(&self, options: &[&str]) -> Vec<String> {
        let (child, _) = self.start(options);
        let status: serde_json::Value =
            serde_json::from_str(&self.output(&["status", "--json", "bench"])).expect("JSON");
        let key = self.path("run/bench/master-key.aes");
        let kept = self.path("key");
        fs::copy(&key, &kept).expect("the master key");
        let line = fs::read(format!("/proc/{}/cmdline", status["qemu"])).expect("QEMU's arguments");
        let state = fs::read(self.path("run/bench/state.json")).expect("the state");
        self.stop(child);
        let mut line = String::from_utf8(line).expect("text").replace(&key, &kept);
        // QEMU alone has no descriptors: it opens the images by their paths.
        let state: serde_json::Value = serde_json::from_slice(&state).expect("JSON");
        let disks = state["disks"].as_array().into_iter().flatten();
        for set in disks.flat_map(|disk| disk["descriptors"].as_array().into_iter().flatten()) {
            let path = set["image"]["path"].as_str().expect("an image");
            line = line.replace(&format!("\"/dev/fdset/{}\"", set["number"]), &format!("\"{path}\""));
        }
        let words: Vec<_> = line.trim_end_matches('\0').split('\0').map(str::to_owned).collect();
        let is_descriptor = |n: &usize| words[*n] == "-add-fd" || *n > 0 && words[n - 1] == "-add-fd";
        (0..words.len()).filter(|n| !is_descriptor(n)).map(|n| words[n].clone()).collect()
    }

    /// Starts QEMU alone; returns when it has said that the guest runs.
    pub fn start_bare(&self, arguments: &[String]) -> (Child, Duration) {
        let socket = self.path("bare.sock");
        let _ = fs::remove_file(&socket);
        let start = Instant::now();
        let listener = UnixListener::bind(&socket).expect("a socket");
        let mut command = Command::new(&arguments[0]);
        command.args(&arguments[1..]).stdin(Stdio::null()).stderr(Stdio::null());
        let mapping = FdMapping { parent_fd: OwnedFd::from(listener), child_fd: MONITOR_FD };
        command.fd_mappings(vec![mapping]).expect("a descriptor");
        let child = command.spawn().expect("QEMU");
        drop(command);
        let mut monitor = BufReader::new(UnixStream::connect(&socket).expect("the monitor"));
        monitor.get_ref().set_read_timeout(Some(DEADLINE)).expect("a deadline");
        let mut line = String::new();
        let mut hear = |monitor: &mut BufReader<UnixStream>, what: &str| {
            while !line.contains(what) {
                line.clear();
                assert!(monitor.read_line(&mut line).is_ok_and(|n| n > 0), "QEMU ended");
            }
            line.clear();
        };
        hear(&mut monitor, "QMP");
        for command in ["qmp_capabilities", "cont"] {
            writeln!(monitor.get_mut(), "{{\"execute\":\"{command}\"}}").expect("the monitor");
            hear(&mut monitor, "\"return\"");
        }
        (child, start.elapsed())
    }
}

/// In milliseconds.
pub fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}
