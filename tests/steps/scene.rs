//! Supervisors that stop themselves at a step, and are killed there or have their QEMU killed.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Child;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use vmward::supervisor::STOP_AT;

use super::{Steps, each};
use crate::bare::{Host, Run, has_qemu_img, nothing_left, processes_of};
use crate::images::opens;
use crate::slow::inventory;
use crate::user::{self, wait_until};

/// Whether a supervisor stops itself where it is told; a test that needs it says so if not.
pub fn can_stop() -> bool {
    if !cfg!(debug_assertions) {
        println!("skipped: only a debug build can be stopped at a step");
    }
    cfg!(debug_assertions) && has_qemu_img()
}

/// Starts a supervisor that stops itself there.
pub fn start(host: &Host, guest: &Path, at: &str) -> Run {
    host.start_with(guest, &[], |command| {
        command.env(STOP_AT, at);
    })
}

/// Kills a supervisor.
pub fn bereave(run: Run) {
    run.signal(Signal::SIGKILL);
    run.ended();
}

/// Kills the QEMU of a supervisor that has stopped itself, which then goes on. It has to end, and leave nothing.
pub fn orphan(run: Run, at: &str) {
    let lib_dir = run.lib_dir().to_owned();
    // Also one that no state file names yet.
    for qemu in processes_of(&lib_dir) {
        kill(Pid::from_raw(qemu), Signal::SIGKILL).unwrap();
    }
    wait_until("QEMU does not go", || processes_of(&lib_dir).is_empty());
    run.signal(Signal::SIGCONT);
    let ended = run.ended();
    assert_eq!(ended.status.signal(), None, "{at}: {}", ended.said);
    assert!(!ended.said.contains("panicked"), "{at}: {}", ended.said);
    nothing_left(&lib_dir);
}

/// A client comes to an end, whoever was killed; with a success only if what it asked for was done by then.
pub fn returns(client: Child, supervisor_killed: bool, at: &str) {
    let output = client.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let code = output.status.code();
    assert!(code.is_some_and(|code| code != 0 || !supervisor_killed), "{at}: {}: {said}", output.status);
    assert!(!said.contains("panicked"), "{at}: {said}");
}

pub fn ends(run: Run) {
    run.signal(Signal::SIGTERM);
    run.ends(0);
}

pub fn is_intact(image: &Path, format: &str, passphrase: &str, at: &str) {
    assert_eq!(opens(image.to_str().unwrap(), format, passphrase), Ok(()), "{at}");
}

/// A guest with an encrypted disk `sda`.
pub struct Scene {
    pub host: Host,
    pub guest: PathBuf,
    pub image: PathBuf,
    pub format: &'static str,
}

impl Scene {
    pub fn new(format: &'static str) -> Self {
        let host = Host::new();
        // With a generated key, which costs QEMU no time.
        let name = if format == "raw" { "disk.luks" } else { "disk.qcow2" };
        let disk = user::disk(&host.user, name, "sda", "scsi");
        let image = host.path(name);
        let guest = host.guest("guest", &format!("<controller type='scsi' model='virtio-scsi'/>{disk}"));
        Self { host, guest, image, format }
    }

    /// Replaces a part of the guest's XML.
    pub fn replace(&self, part: &str, by: &str) {
        let xml = fs::read_to_string(&self.guest).unwrap();
        assert!(xml.contains(part), "{xml}");
        fs::write(&self.guest, xml.replace(part, by)).unwrap();
    }

    /// Gives the guest one more device.
    pub fn add(&self, device: &str) {
        self.replace("</devices>", &format!("{device}</devices>"));
    }

    pub fn path(&self) -> &str {
        self.image.to_str().unwrap()
    }

    pub fn inventory(&self, run: &Run) -> Vec<Value> {
        inventory(&self.host, run, "guest")
    }

    pub fn value(&self) -> String {
        String::from_utf8(self.host.user.ok(&["secret", "get-value", self.path()], b"")).unwrap()
    }

    /// The targets of the guest's disks.
    pub fn targets(&self) -> Vec<String> {
        let status = self.host.user.ok(&["status", "--json", "guest"], b"");
        let status: Value = serde_json::from_slice(&status).unwrap();
        let disks = status["disks"].as_array().unwrap();
        disks.iter().map(|d| d["target"].as_str().unwrap().to_owned()).collect()
    }

    /// Kills the supervisor and then, in another run, QEMU at each of these steps of a command. `again`: what is to be
    /// possible afterwards; `at_rest`: what is, once QEMU is gone.
    pub fn at_each(
        &self,
        steps: Steps,
        args: &[&str],
        input: &str,
        again: impl Fn(&Run, &str),
        at_rest: impl Fn(),
    ) {
        for (_, at) in each(steps) {
            let midway = || {
                let mut run = start(&self.host, &self.guest, &at);
                run.ready();
                let client = self.host.user.start(args, input.as_bytes());
                run.stopped(&at);
                (run, client)
            };
            let (run, client) = midway();
            let qemu = run.qemu();
            bereave(run);
            returns(client, true, &at);
            let run = self.host.running(&self.guest);
            assert_eq!(run.qemu(), qemu, "{at}");
            again(&run, &at);
            ends(run);
            is_intact(&self.image, self.format, &self.value(), &at);

            let (run, client) = midway();
            orphan(run, &at);
            returns(client, false, &at);
            is_intact(&self.image, self.format, &self.value(), &at);
            at_rest();
            is_intact(&self.image, self.format, &self.value(), &at);
        }
    }
}

/// The guest lets go of a device a moment after it was told to.
pub fn comes_to(scene: &Scene, run: &Run, expected: &[Value], at: &str) {
    wait_until(&format!("{at}: something is left in QEMU"), || scene.inventory(run) == expected);
}
