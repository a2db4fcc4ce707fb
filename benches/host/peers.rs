//! What else starts a guest from a libvirt domain XML, where it is installed: virt-qemu-run, and libvirt's daemon by `virsh`.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tempfile::TempDir;

use super::Host;

/// A secret of the guest's, as files: its XML and its value.
struct Secret {
    uuid: String,
    xml: String,
    value: String,
}

/// What they start it with.
struct Given {
    secrets: Vec<Secret>,
    /// Where virt-qemu-run keeps what it knows of QEMU from one guest to the next. It gives its QEMU a /dev of its own, and so
    /// cannot be in /dev/shm.
    root: TempDir,
}

/// One that can start the guest.
pub struct Peer {
    /// What it is called.
    pub name: &'static str,
    turn: fn(&Host, &Given) -> Result<Duration, String>,
}

/// Those that can start the guest here, and a first guest for each, after which it knows this QEMU. Prints which cannot, and why.
pub struct Peers {
    /// They.
    pub able: Vec<Peer>,
    given: Given,
}

impl Peers {
    pub fn of(host: &Host) -> Self {
        let all = [
            Peer { name: "virt-qemu-run", turn: virt_qemu_run },
            Peer { name: "virsh create", turn: virsh_create },
        ];
        let given = Given { secrets: secrets(host), root: TempDir::new().expect("a directory") };
        // Their QEMU may run as another user.
        fs::set_permissions(host.home(), Permissions::from_mode(0o711)).expect("the directory's mode");
        let mut able = Vec::new();
        for peer in all {
            let program = peer.name.split(' ').next().unwrap_or_default();
            let tried = match Command::new(program).arg("--version").output() {
                Err(e) => Err(e.to_string()),
                Ok(_) if program == "virsh" => {
                    define(&given.secrets).and_then(|()| (peer.turn)(host, &given))
                }
                Ok(_) => (peer.turn)(host, &given),
            };
            match tried {
                Ok(_) => able.push(peer),
                Err(why) => println!("skipped: {}: {}", peer.name, why.trim()),
            }
        }
        Self { able, given }
    }

    /// Starts the guest and ends it: how long it took until it ran.
    pub fn turn(&self, host: &Host, peer: &Peer) -> Duration {
        (peer.turn)(host, &self.given).unwrap_or_else(|why| panic!("{}: {why}", peer.name))
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        if self.able.iter().any(|peer| peer.name.starts_with("virsh")) {
            for secret in &self.given.secrets {
                let _ = virsh(&["secret-undefine", &secret.uuid]);
            }
        }
    }
}

fn secrets(host: &Host) -> Vec<Secret> {
    let list: serde_json::Value =
        serde_json::from_str(&host.output(&["secret", "list", "--json"])).expect("JSON");
    let one = |secret: &serde_json::Value| {
        let uuid = secret["uuid"].as_str().expect("a UUID").to_owned();
        let (xml, value) = (host.path(&format!("{uuid}.xml")), host.path(&format!("{uuid}.value")));
        fs::write(&xml, host.output(&["secret", "dumpxml", &uuid])).expect("the secret's XML");
        fs::write(&value, host.output(&["secret", "get-value", &uuid])).expect("the secret's value");
        Secret { uuid, xml, value }
    };
    list.as_array().expect("a list").iter().map(one).collect()
}

fn virt_qemu_run(host: &Host, given: &Given) -> Result<Duration, String> {
    let mut command = Command::new("virt-qemu-run");
    command.arg("--verbose").arg("--root").arg(given.root.path());
    for Secret { xml, value, .. } in &given.secrets {
        command.args(["--secret", &format!("{xml},{value}")]);
    }
    let start = Instant::now();
    let mut child = command
        .arg(host.path("guest.xml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| e.to_string())?;
    let mut said = BufReader::new(child.stderr.take().expect("its stderr"));
    let (mut line, mut all) = (String::new(), String::new());
    let mut time = None;
    while time.is_none() && said.read_line(&mut line).is_ok_and(|n| n > 0) {
        time = line.contains("guest running").then(|| start.elapsed());
        all += &line;
        line.clear();
    }
    let _ = kill(Pid::from_raw(i32::try_from(child.id()).expect("a PID")), Signal::SIGTERM);
    let _ = said.read_to_string(&mut all);
    child.wait().map_err(|e| e.to_string())?;
    // The last line is that it has cleaned up.
    time.ok_or_else(|| all.lines().rev().nth(1).unwrap_or(&all).to_owned())
}

fn virsh_create(host: &Host, _: &Given) -> Result<Duration, String> {
    let xml = host.path("guest.xml");
    let start = Instant::now();
    virsh(&["create", &xml])?;
    let time = start.elapsed();
    virsh(&["destroy", "bench"])?;
    Ok(time)
}

/// Gives the daemon the secrets.
fn define(secrets: &[Secret]) -> Result<(), String> {
    for Secret { uuid, xml, value } in secrets {
        virsh(&["secret-define", xml])?;
        virsh(&["secret-set-value", uuid, "--plain", "--file", value])?;
    }
    Ok(())
}

fn virsh(arguments: &[&str]) -> Result<(), String> {
    let uri = if geteuid().is_root() { "qemu:///system" } else { "qemu:///session" };
    let Output { status, stdout: _, stderr } =
        Command::new("virsh").args(["--connect", uri]).args(arguments).output().map_err(|e| e.to_string())?;
    if status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&stderr).replace('\n', " ")) }
}
