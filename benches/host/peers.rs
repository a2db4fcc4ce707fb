//! What else starts a guest from a libvirt domain XML, where it is installed: virt-qemu-run, and libvirt's daemon by `virsh`.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tempfile::TempDir;

use super::{Host, median};

/// A secret of the guest's, as files: its XML and its value.
struct Secret {
    uuid: String,
    xml: String,
    value: String,
}

/// The median of each one's times from its exec to the running guest, in milliseconds, once it has started it and so knows
/// QEMU. Prints which cannot, and why.
pub fn medians(host: &Host, turns: usize) -> Vec<(&'static str, f64)> {
    // What virt-qemu-run knows of QEMU is kept there as well. It gives its QEMU a /dev of its own, and so cannot be in /dev/shm.
    let dir = TempDir::new().expect("a directory");
    let secrets = secrets(host, dir.path());
    // Their QEMU may run as another user.
    fs::set_permissions(host.home(), Permissions::from_mode(0o711)).expect("the directory's mode");
    let all: [(_, &dyn Fn() -> Result<Duration, String>); 2] = [
        ("virt-qemu-run", &|| virt_qemu_run(host, &secrets, dir.path())),
        ("virsh create", &|| virsh_create(host, &secrets)),
    ];
    let mut able = Vec::new();
    for (name, turn) in all {
        match turn().and_then(|_| (0..turns).map(|_| turn()).collect()) {
            Ok(times) => able.push((name, median(times))),
            Err(why) => println!("skipped: {name}: {}", why.trim()),
        }
    }
    able
}

fn secrets(host: &Host, dir: &Path) -> Vec<Secret> {
    let list: serde_json::Value =
        serde_json::from_str(&host.output(&["secret", "list", "--json"])).expect("JSON");
    let one = |secret: &serde_json::Value| {
        let uuid = secret["uuid"].as_str().expect("a UUID").to_owned();
        let file = |kind: &str| dir.join(format!("{uuid}.{kind}")).display().to_string();
        let (xml, value) = (file("xml"), file("value"));
        fs::write(&xml, host.output(&["secret", "dumpxml", &uuid])).expect("the secret's XML");
        fs::write(&value, host.output(&["secret", "get-value", &uuid])).expect("the secret's value");
        Secret { uuid, xml, value }
    };
    list.as_array().expect("a list").iter().map(one).collect()
}

fn virt_qemu_run(host: &Host, secrets: &[Secret], root: &Path) -> Result<Duration, String> {
    let mut command = Command::new("virt-qemu-run");
    command.arg("--verbose").arg("--root").arg(root);
    for Secret { xml, value, .. } in secrets {
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

fn virsh_create(host: &Host, secrets: &[Secret]) -> Result<Duration, String> {
    let time = define(secrets).and_then(|()| {
        let xml = host.path("guest.xml");
        let start = Instant::now();
        virsh(&["create", &xml])?;
        let time = start.elapsed();
        virsh(&["destroy", "bench"])?;
        Ok(time)
    });
    // The daemon is somebody's, and would keep them.
    for Secret { uuid, .. } in secrets {
        let _ = virsh(&["secret-undefine", uuid]);
    }
    time
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
