//! A small Linux run by `vmward`, and a shell in it over its serial port. `integration/guest.sh` makes it.
#![allow(clippy::unwrap_used, reason = "this is a test")]
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::user::{PATIENCE, User};

/// What a guest is made of.
pub struct Description<'a> {
    /// The machine type.
    pub machine: &'a str,
    /// More of the kernel's command line; `None` starts no system at all.
    pub kernel: Option<&'a str>,
    /// Elements before `<devices>`.
    pub domain: &'a str,
    /// Elements of `<devices>`.
    pub devices: &'a str,
    /// Options of `vmward run`.
    pub options: &'a [&'a str],
}

impl Default for Description<'_> {
    fn default() -> Self {
        Self { machine: "q35", kernel: Some(""), domain: "", devices: "", options: &[] }
    }
}

/// A running guest, with its own user, keystore and directory.
pub struct Guest {
    /// Who runs it.
    pub user: User,
    name: String,
    run: Option<Child>,
    serial: BufReader<UnixStream>,
}

/// Where the guest's kernel is; a test that needs it and has none says so.
pub fn files() -> Option<PathBuf> {
    let dir = env::var_os("VMWARD_TEST_GUEST")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guest"), PathBuf::from);
    if dir.join("initramfs.gz").exists() {
        return Some(dir);
    }
    println!("skipped: there is no guest in {}; integration/guest.sh makes it", dir.display());
    None
}

impl Guest {
    /// Starts it, and waits until its shell is there.
    pub fn boot(user: User, files: &Path, description: &Description) -> Self {
        let serial = user.home.path().join("serial.sock");
        let os = description.kernel.map_or_else(String::new, |arguments| {
            format!(
                "<kernel>{0}/vmlinuz</kernel><initrd>{0}/initramfs.gz</initrd>\
                 <cmdline>console=ttyS0 quiet panic=-1 {arguments}</cmdline>",
                files.display()
            )
        });
        let emulator = env::var("VMWARD_TEST_EMULATOR")
            .map_or_else(|_| String::new(), |path| format!("<emulator>{path}</emulator>"));
        let xml = format!(
            "<domain type='qemu'><name>guest</name><memory unit='MiB'>256</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='{}'>hvm</type>{os}</os><features><acpi/></features>{}\
             <devices>{emulator}{}<serial type='unix'><source mode='bind' path='{}'/></serial></devices></domain>",
            description.machine,
            description.domain,
            description.devices,
            serial.display(),
        );
        let file = user.home.path().join("guest.xml");
        fs::write(&file, xml).unwrap();
        let run = user
            .command(&["run", file.to_str().unwrap()])
            .args(description.options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(user.home.path().join("run.log")).unwrap())
            .spawn()
            .unwrap();
        let mut guest = Self::of(user, "guest", run);
        if description.kernel.is_some() {
            guest.ready();
        }
        guest
    }

    /// Of a `vmward run` that has been started: connects to its serial port, `serial.sock` in the user's home.
    pub fn of(user: User, name: &str, mut run: Child) -> Self {
        let serial = user.home.path().join("serial.sock");
        let start = Instant::now();
        let stream = loop {
            if let Ok(stream) = UnixStream::connect(&serial) {
                break stream;
            }
            let ended = run.try_wait().unwrap();
            assert!(ended.is_none() && start.elapsed() < PATIENCE, "no guest: {}", log_of(&user));
            sleep(Duration::from_millis(20));
        };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { user, name: name.to_owned(), run: Some(run), serial: BufReader::new(stream) }
    }

    /// Waits until the guest has started (again).
    pub fn ready(&mut self) {
        while self.line() != "guest: ready" {}
    }

    fn line(&mut self) -> String {
        let mut line = Vec::new();
        let read = self.serial.read_until(b'\n', &mut line);
        assert!(read.is_ok_and(|n| n > 0), "the guest fell silent: {}", log_of(&self.user));
        // The firmware clears the screen before it says anything.
        let line = String::from_utf8_lossy(&line);
        line.trim_end().rsplit('\u{1b}').next().unwrap_or_default().trim_start_matches("[2J").to_owned()
    }

    /// Types a command, without waiting for what becomes of it.
    pub fn type_in(&mut self, command: &str) {
        self.serial.get_mut().write_all(format!("{command}\n").as_bytes()).unwrap();
    }

    /// Runs a command in the guest that must succeed; returns what it printed.
    pub fn sh(&mut self, command: &str) -> String {
        self.type_in(command);
        let mut printed = String::new();
        loop {
            let line = self.line();
            match line.strip_prefix("guest: done ") {
                Some("0") => return printed.trim_end().to_owned(),
                Some(code) => panic!("in the guest, {command} exited with {code}: {printed}"),
                None => printed += &(line + "\n"),
            }
        }
    }

    /// Waits in the guest until a condition holds.
    pub fn wait_for(&mut self, condition: &str) {
        self.sh(&format!("i=0; until {condition}; do i=$((i+1)); [ $i -lt 300 ] || exit 1; sleep 0.1; done"));
    }

    /// Puts a file system with a file on a disk of the guest.
    pub fn fill(&mut self, device: &str, text: &str) {
        self.sh(&format!(
            "mke2fs -F {device} >/dev/null && mount -t ext4 {device} /mnt2 && echo '{text}' >/mnt2/file && umount /mnt2"
        ));
    }

    /// What the file says that [`Guest::fill`] wrote.
    pub fn filled(&mut self, device: &str) -> String {
        self.sh(&format!("mount -t ext4 {device} /mnt2 && cat /mnt2/file && umount /mnt2"))
    }

    /// Plugs in the disk of that XML.
    pub fn attach(&self, disk: &str) -> Output {
        self.user.run(&["attach-device", "guest", "-"], disk.as_bytes())
    }

    /// The same, and it must succeed.
    pub fn attached(&self, disk: &str) {
        self.user.ok(&["attach-device", "guest", "-"], disk.as_bytes());
    }

    /// What `vmward status --json` says.
    pub fn status(&self) -> serde_json::Value {
        serde_json::from_slice(&self.user.ok(&["status", "--json", "guest"], b"")).unwrap()
    }

    /// The targets of its disks.
    pub fn targets(&self) -> Vec<String> {
        let status = self.status();
        let disks = status["disks"].as_array().unwrap();
        disks.iter().map(|d| d["target"].as_str().unwrap().to_owned()).collect()
    }

    /// QEMU's process.
    pub fn qemu(&self) -> i32 {
        self.status()["qemu"].as_i64().unwrap().try_into().unwrap()
    }

    /// Waits for the supervisor's end; returns how it ended and what it said. Nothing of the guest may be left.
    pub fn ended(mut self) -> (ExitStatus, String) {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.run.as_mut().unwrap().try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < PATIENCE, "the supervisor does not end: {}", log_of(&self.user));
            sleep(Duration::from_millis(20));
        };
        self.run = None;
        let left: Vec<_> = fs::read_dir(self.user.home.path().join("run"))
            .map(|entries| entries.map(|e| e.unwrap().path()).collect())
            .unwrap_or_default();
        assert!(left.is_empty(), "left behind: {left:?}");
        (status, log_of(&self.user))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(mut run) = self.run.take() {
            // A failed test: SIGTERM would wait for the guest to shut down.
            let _ = self.user.run(&["destroy", &self.name], b"");
            let _ = run.kill();
            let _ = run.wait();
        }
    }
}

fn log_of(user: &User) -> String {
    fs::read_to_string(user.home.path().join("run.log")).unwrap_or_default()
}
