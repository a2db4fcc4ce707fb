//! What vmward adds to a guest: the time from its exec to the running guest, beside QEMU alone with the same
//! arguments, by turns in the same run; the supervisor's memory; and how often it wakes up while nothing happens.
#![allow(clippy::unwrap_used, reason = "this is a test")]

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use tempfile::TempDir;

/// Turns of each. Enough for a median that a busy machine does not move much.
const TURNS: usize = 21;
/// How long the supervisor is watched while nothing happens.
const IDLE: Duration = Duration::from_secs(10);
/// What both descriptors are told apart by, in QEMU's arguments.
const MONITOR_FD: i32 = 3;
/// Nothing here takes that long.
const DEADLINE: Duration = Duration::from_secs(60);

struct Bench {
    dir: TempDir,
    ready: UnixDatagram,
}

impl Bench {
    fn new() -> Self {
        // On a tmpfs where there is one, as in real use.
        let dir = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).expect("a directory");
        fs::write(dir.path().join("vmward.toml"), "keystore = 'file:secrets'\n").expect("a configuration");
        let ready = UnixDatagram::bind(dir.path().join("notify.sock")).expect("a socket");
        ready.set_read_timeout(Some(DEADLINE)).expect("a deadline");
        let bench = Self { dir, ready };
        let disks: String = ["vda", "vdb"].map(|target| bench.disk(target)).concat();
        let emulator = env::var("VMWARD_TEST_EMULATOR")
            .map_or_else(|_| String::new(), |path| format!("<emulator>{path}</emulator>"));
        let xml = format!(
            "<domain type='qemu'><name>bench</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features>\
             <devices>{emulator}{disks}</devices></domain>"
        );
        fs::write(bench.path("guest.xml"), xml).expect("a guest");
        bench
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn vmward(&self, arguments: &[&str]) -> Command {
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

    fn output(&self, arguments: &[&str]) -> String {
        let output = self.vmward(arguments).stderr(Stdio::inherit()).output().expect("vmward");
        assert!(output.status.success(), "vmward {arguments:?} failed");
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }

    /// An encrypted disk with a generated key; returns its XML.
    fn disk(&self, target: &str) -> String {
        let path = self.path(&format!("{target}.qcow2"));
        let uuid = self.output(&["secret", "generate", "--usage-volume", &path]);
        self.output(&["volume", "create", &path, "--format", "qcow2", "--size", "64M", "--secret", &uuid]);
        format!(
            "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{path}'>\
             <encryption format='luks'><secret type='passphrase' uuid='{uuid}'/></encryption></source>\
             <target dev='{target}' bus='virtio'/></disk>"
        )
    }

    /// Starts the guest through vmward; returns when it says that the guest runs.
    fn start(&self) -> (Child, Duration) {
        let start = Instant::now();
        let child = self.vmward(&["run", &self.path("guest.xml")]).spawn().expect("vmward");
        let mut message = [0; 4096];
        let mut ready = false;
        while !ready {
            let read = self.ready.recv(&mut message).expect("vmward did not start the guest");
            ready = message[..read].split(|b| *b == b'\n').any(|line| line == b"READY=1");
        }
        (child, start.elapsed())
    }

    fn stop(&self, mut child: Child) {
        self.output(&["destroy", "bench"]);
        child.wait().expect("vmward");
    }

    /// QEMU's arguments in a guest that runs, for a master key that outlives it.
    fn qemu_arguments(&self) -> Vec<String> {
        let (child, _) = self.start();
        let status: serde_json::Value =
            serde_json::from_str(&self.output(&["status", "--json", "bench"])).expect("JSON");
        let key = self.path("run/bench/master-key.aes");
        let kept = self.path("key");
        fs::copy(&key, &kept).expect("the master key");
        let line = fs::read(format!("/proc/{}/cmdline", status["qemu"])).expect("QEMU's arguments");
        self.stop(child);
        let line = String::from_utf8(line).expect("text").replace(&key, &kept);
        line.trim_end_matches('\0').split('\0').map(str::to_owned).collect()
    }

    /// Starts QEMU alone; returns when it has said that the guest runs.
    fn start_bare(&self, arguments: &[String]) -> (Child, Duration) {
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

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}

/// A figure of /proc/PID/FILE, by its name.
fn figure(pid: u32, file: &str, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().find_map(|word| word.parse().ok()).unwrap_or_default()
}

/// How often all threads of a process have given up the processor of their own accord.
fn wake_ups(pid: u32) -> u64 {
    let tasks = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task")).expect("the process");
    tasks
        .map(|task| {
            let task = task.expect("a thread").file_name().into_string().expect("a number");
            figure(pid, &format!("task/{task}/status"), "voluntary_ctxt_switches:")
        })
        .sum()
}

fn main() {
    let bench = Bench::new();
    let arguments = bench.qemu_arguments();
    let (mut with, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let (child, time) = bench.start();
        with.push(time);
        bench.stop(child);
        let (mut child, time) = bench.start_bare(&arguments);
        bare.push(time);
        child.kill().expect("QEMU");
        child.wait().expect("QEMU");
    }
    let (with, bare) = (median(with), median(bare));
    println!("exec to running, two encrypted disks, median of {TURNS}:");
    println!("  vmward   {with:7.1} ms");
    println!("  QEMU     {bare:7.1} ms   with the same arguments");
    println!("  added    {:7.1} ms   ({:.2} times)", with - bare, with / bare);

    let (child, _) = bench.start();
    let pid = child.id();
    sleep(Duration::from_secs(1));
    let before = wake_ups(pid);
    sleep(IDLE);
    let woken = wake_ups(pid) - before;
    println!("supervisor of a running guest:");
    println!("  RSS      {:7} KiB", figure(pid, "status", "VmRSS:"));
    println!("  PSS      {:7} KiB", figure(pid, "smaps_rollup", "Pss:"));
    println!("  locked   {:7} KiB", figure(pid, "status", "VmLck:"));
    println!("  wake-ups {woken:7}      in {} s", IDLE.as_secs());
    bench.stop(child);
}
