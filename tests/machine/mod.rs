//! A machine that runs no system, under a `vmward` of its own.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "this is a test")]

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::user::{PATIENCE, User};

/// A running machine. It is ended when this is dropped.
pub struct Machine {
    /// Who runs it.
    pub user: User,
    run: Child,
}

impl Machine {
    /// A q35 machine called `guest` with these devices.
    pub fn start(devices: &str) -> Self {
        Self::start_as(User::new(), devices)
    }

    /// The same, of a user who has made something before.
    pub fn start_as(user: User, devices: &str) -> Self {
        Self::start_with(user, devices, &[])
    }

    /// The same with options of `vmward run`.
    pub fn start_with(user: User, devices: &str, options: &[&str]) -> Self {
        let emulator = env::var("VMWARD_TEST_EMULATOR")
            .map_or_else(|_| String::new(), |path| format!("<emulator>{path}</emulator>"));
        let xml = format!(
            "<domain type='qemu'><name>guest</name><memory unit='MiB'>128</memory>\
             <os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features>\
             <devices>{emulator}{devices}</devices></domain>"
        );
        let file = user.home.path().join("guest.xml");
        fs::write(&file, xml).unwrap();
        let run = user
            .command(&["run", file.to_str().unwrap()])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(user.home.path().join("run.log")).unwrap())
            .spawn()
            .unwrap();
        let mut machine = Self { user, run };
        let start = Instant::now();
        while !machine.user.run(&["status", "guest"], b"").status.success() {
            let ended = machine.run.try_wait().unwrap();
            assert!(ended.is_none() && start.elapsed() < PATIENCE, "it does not start: {}", machine.log());
            sleep(Duration::from_millis(20));
        }
        machine
    }

    /// What the supervisor has said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.user.home.path().join("run.log")).unwrap()
    }

    /// What `vmward status --json` says.
    pub fn status(&self) -> Value {
        serde_json::from_slice(&self.user.ok(&["status", "--json", "guest"], b"")).unwrap()
    }

    /// The targets of its disks.
    pub fn targets(&self) -> Vec<String> {
        let status = self.status();
        let disks = status["disks"].as_array().unwrap();
        disks.iter().map(|d| d["target"].as_str().unwrap().to_owned()).collect()
    }

    /// The live XML.
    pub fn dumpxml(&self) -> String {
        String::from_utf8(self.user.ok(&["dumpxml", "guest"], b"")).unwrap()
    }

    /// What QEMU answers.
    pub fn qmp(&self, command: &str, arguments: &Value) -> Value {
        let text = json!({ "execute": command, "arguments": arguments }).to_string();
        serde_json::from_slice(&self.user.ok(&["qmp", "guest", &text], b"")).unwrap()
    }

    /// Plugs in a disk, which must succeed.
    pub fn attach(&self, disk: &str) {
        self.user.ok(&["attach-device", "guest", "-"], disk.as_bytes());
    }

    /// The lib dir.
    pub fn lib_dir(&self) -> PathBuf {
        self.user.home.path().join("run/guest")
    }

    /// Ends it; nothing of it may be left.
    pub fn end(mut self) {
        self.user.ok(&["destroy", "guest"], b"");
        let status = self.run.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.log());
        let left = fs::read_dir(self.user.home.path().join("run")).unwrap().count();
        assert_eq!(left, 0, "something is left behind");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Ok(None) = self.run.try_wait() {
            // Told twice, it does not wait for the machine to power off.
            let pid = nix::unistd::Pid::from_raw(i32::try_from(self.run.id()).unwrap());
            for _ in 0..2 {
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT);
                sleep(Duration::from_millis(50));
            }
            let _ = self.run.wait();
        }
    }
}

/// Everything that a disk, a medium or a snapshot could leave in QEMU.
#[derive(Debug, Clone, PartialEq)]
pub struct Inventory {
    pub nodes: Vec<String>,
    pub objects: Vec<String>,
    pub devices: Vec<String>,
    pub chardevs: Vec<String>,
    pub jobs: Vec<String>,
    /// What is in its sets of descriptors: the node's name for each.
    pub descriptors: Vec<(i64, Vec<String>)>,
}

/// What there is.
pub fn inventory(guest: &Machine) -> Inventory {
    let names = |list: Value, name: &str| {
        let mut names: Vec<String> =
            list.as_array().unwrap().iter().map(|e| e[name].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    Inventory {
        nodes: names(guest.qmp("query-named-block-nodes", &json!({ "flat": true })), "node-name"),
        objects: names(guest.qmp("qom-list", &json!({ "path": "/objects" })), "name"),
        devices: names(guest.qmp("qom-list", &json!({ "path": "/machine/peripheral" })), "name"),
        chardevs: names(guest.qmp("query-chardev", &json!({})), "label"),
        jobs: names(guest.qmp("query-jobs", &json!({})), "id"),
        descriptors: descriptors(guest),
    }
}

fn descriptors(guest: &Machine) -> Vec<(i64, Vec<String>)> {
    let sets = guest.qmp("query-fdsets", &json!({}));
    let names = |set: &Value| {
        let fds = set["fds"].as_array().unwrap().iter();
        fds.map(|fd| fd["opaque"].as_str().unwrap_or_default().to_owned()).collect()
    };
    let mut sets: Vec<_> =
        sets.as_array().unwrap().iter().map(|set| (set["fdset-id"].as_i64().unwrap(), names(set))).collect();
    sets.sort();
    sets
}
