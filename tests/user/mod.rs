//! Who calls `vmward` in the tests of its command line.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "this is a test")]

use std::env;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Where a test gives up: nothing that it measures. Under emulation on a busy machine a boot alone takes ten seconds.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// Waits for what takes a while.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what}: in vain");
        sleep(Duration::from_millis(10));
    }
}

/// A user with a configuration and a file keystore of his own.
pub struct User {
    /// Where everything of his is.
    pub home: TempDir,
}

impl User {
    /// With nothing in the keystore yet.
    pub fn new() -> Self {
        let home = TempDir::new().unwrap();
        // Supervisors open of it what is there at the start, and all of the directory in which a guest's XML is.
        fs::create_dir(home.path().join("home")).unwrap();
        fs::write(home.path().join("vmward.toml"), "keystore = 'file:secrets'\n").unwrap();
        Self { home }
    }

    /// The directory of the keystore.
    pub fn store(&self) -> PathBuf {
        self.home.path().join("secrets")
    }

    /// The keystore's key file.
    pub fn key(&self) -> PathBuf {
        self.home.path().join("keystore.key")
    }

    /// `vmward` with these arguments, all its streams piped.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmward"));
        command
            .args(args)
            .env_clear()
            .env("VMWARD_CONFIG", self.home.path().join("vmward.toml"))
            .env("VMWARD_RUNTIME_DIR", self.home.path().join("run"))
            .env("HOME", self.home.path().join("home"))
            .env("PATH", env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Starts it and gives it all its input.
    pub fn start(&self, args: &[&str], input: &[u8]) -> Child {
        let mut child = self.command(args).spawn().unwrap();
        // A command that fails early does not read its input.
        let _ = child.stdin.take().unwrap().write_all(input);
        child
    }

    /// Waits until a client is connected to a guest's supervisor.
    pub fn is_connected(&self, guest: &str) {
        let socket = self.home.path().join("run").join(guest).join("control.sock");
        let socket = socket.to_str().unwrap();
        wait_until("no client connects", || {
            let sockets = fs::read_to_string("/proc/net/unix").unwrap();
            // One is what listens.
            sockets.lines().filter(|line| line.ends_with(socket)).count() > 1
        });
    }

    /// Runs it to its end.
    pub fn run(&self, args: &[&str], input: &[u8]) -> Output {
        self.start(args, input).wait_with_output().unwrap()
    }

    /// What a command that succeeds prints.
    pub fn ok(&self, args: &[&str], input: &[u8]) -> Vec<u8> {
        let output = self.run(args, input);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// The UUID that a command prints.
    pub fn uuid(&self, args: &[&str], input: &[u8]) -> String {
        String::from_utf8(self.ok(args, input)).unwrap().trim().to_owned()
    }

    /// What a command that fails with that exit code says.
    pub fn fails(&self, exit: i32, args: &[&str], input: &[u8]) -> String {
        let output = self.run(args, input);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(exit), "{args:?}: {said}");
        said
    }

    /// Defines a secret; returns its UUID.
    pub fn define(&self, inner: &str) -> String {
        self.uuid(&["secret", "define", "-"], format!("<secret>{inner}</secret>").as_bytes())
    }
}

/// A secret and a volume encrypted with it, in a file of that name; returns the XML of the disk.
pub fn disk(user: &User, name: &str, target: &str, bus: &str) -> String {
    let path = user.home.path().join(name);
    let path = path.to_str().unwrap();
    let format = if name.ends_with(".qcow2") { "qcow2" } else { "raw" };
    let uuid = user.uuid(&["secret", "generate", "--usage-volume", path], b"");
    user.ok(&["volume", "create", path, "--size", "16M", "--format", format, "--secret", &uuid], b"");
    disk_xml(path, format, &uuid, target, bus)
}

/// The XML of a disk on an encrypted file.
pub fn disk_xml(path: &str, format: &str, secret: &str, target: &str, bus: &str) -> String {
    format!(
        "<disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{path}'>\
         <encryption format='luks'><secret type='passphrase' uuid='{secret}'/></encryption></source>\
         <target dev='{target}' bus='{bus}'/></disk>"
    )
}
