//! What a supervisor and a service manager have to do with each other, and what is done about supervisors that died.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod bare;
mod user;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use bare::{Host, Run, SECRET, disk, has_qemu_img, nothing_left, processes_of};
use user::{PATIENCE, wait_until};

/// Kills a supervisor; its QEMU goes on.
fn bereave(run: Run) {
    run.signal(Signal::SIGKILL);
    run.ended();
}

/// What a guest that is gone may have left.
fn leave(lib_dir: &Path) {
    fs::DirBuilder::new().mode(0o700).recursive(true).create(lib_dir).unwrap();
    fs::write(lib_dir.join("master-key.aes"), [7; 32]).unwrap();
}

/// One call of `io.systemd.MachineInstance`.
fn call(lib_dir: &Path, method: &str) -> Value {
    let mut stream = UnixStream::connect(lib_dir.join("machine.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let message = json!({ "method": format!("io.systemd.MachineInstance.{method}") });
    stream.write_all(format!("{message}\0").as_bytes()).unwrap();
    let mut reply = Vec::new();
    BufReader::new(&stream).read_until(0, &mut reply).unwrap();
    serde_json::from_slice(reply.strip_suffix(b"\0").unwrap()).unwrap()
}

#[test]
fn the_service_manager_is_told_what_happens() {
    let host = Host::new();
    let mut run = host.start(&host.guest("tells", ""), &["--stop-timeout", "1"]);
    run.told("STATUS=QEMU opens its disks");
    run.told("EXTEND_TIMEOUT_USEC=610000000");
    assert!(run.told("READY=1").contains("STATUS=runs"));
    run.signal(Signal::SIGHUP);
    assert!(run.told("RELOADING=1").contains("MONOTONIC_USEC="));
    run.told("READY=1");
    host.user.ok(&["suspend", "tells"], b"");
    run.told("STATUS=is paused");
    host.user.ok(&["resume", "tells"], b"");
    run.told("STATUS=runs");
    run.signal(Signal::SIGTERM);
    assert!(run.told("STOPPING=1").contains("within 1 s"));
    // The guest's own time, and what QEMU and the wiping may take after it.
    run.told("EXTEND_TIMEOUT_USEC=61000000");
    run.told("STATUS=QEMU is told to quit");
    run.ends(0);
}

#[test]
fn the_watchdog_is_fed_while_qemu_answers() {
    let host = Host::new();
    let mut run = host.start_with(&host.guest("watched", ""), &[], |command| {
        command.env("WATCHDOG_USEC", "200000");
    });
    run.told("READY=1");
    for _ in 0..3 {
        run.told("WATCHDOG=1");
    }
    kill(Pid::from_raw(run.qemu()), Signal::SIGSTOP).unwrap();
    // As the service manager does then: QEMU is killed, and nothing is left.
    run.signal(Signal::SIGABRT);
    assert!(run.ends(137).contains("has not answered the watchdog"));
}

#[test]
fn a_power_button_is_a_signal_too() {
    let host = Host::new();
    let run = host.running(&host.guest("button", ""));
    let power_off = nix::libc::SIGRTMIN() + 4;
    let sent = std::process::Command::new("kill")
        .args([format!("-{power_off}"), run.supervisor().to_string()])
        .status();
    assert!(sent.unwrap().success());
    run.ends(0);
}

#[test]
fn a_master_key_in_memory_is_in_no_file_and_the_next_supervisor_gets_on_without_it() {
    if !has_qemu_img() {
        return;
    }
    let host = Host::new();
    let guest = host.encrypted_guest("forgetful");
    let mut run = host.start(&guest, &["--master-key", "memory"]);
    run.ready();
    let lib_dir = run.lib_dir().to_owned();
    assert!(fs::symlink_metadata(lib_dir.join("master-key.aes")).unwrap().is_symlink());
    let attach = |name: &str| {
        let image = host.image(name, "qcow2", true);
        let disk = disk(&image, "qcow2", Some(SECRET)).replace("vda", "vdb");
        host.user.ok(&["attach-device", "forgetful", "-"], disk.as_bytes());
    };
    let qemu = run.qemu();
    bereave(run);
    let mut run = host.start(&guest, &[]);
    run.ready();
    assert_eq!(run.qemu(), qemu);
    attach("second.qcow2");
    // With its new key just the same.
    bereave(run);
    let mut run = host.start(&guest, &[]);
    run.ready();
    assert_eq!(run.qemu(), qemu);
    assert!(!lib_dir.join("master-key.pipe").exists());
    run.signal(Signal::SIGTERM);
    assert!(run.ends(0).contains("QEMU is given a new one"));
}

#[test]
fn doctor_wipes_what_has_no_qemu_and_leaves_the_rest() {
    let host = Host::new();
    let guest = host.guest("bereaved", "");
    let run = host.running(&guest);
    let qemu = run.qemu();
    let supervised = host.running(&host.guest("supervised", ""));
    bereave(run);
    leave(&host.lib_dir("gone"));
    let said = String::from_utf8(host.user.ok(&["doctor", "--fix"], b"")).unwrap();
    assert!(said.contains("run/gone was wiped"), "{said}");
    assert!(said.contains(&format!("runs without a supervisor (QEMU is process {qemu})")), "{said}");
    assert!(!said.contains("supervised"), "{said}");
    assert!(!host.lib_dir("gone").exists());
    // It is still there to be taken back by its own.
    let mut run = host.start(&guest, &[]);
    run.ready();
    assert_eq!(run.qemu(), qemu);
    run.signal(Signal::SIGTERM);
    run.ends(0);
    supervised.signal(Signal::SIGTERM);
    supervised.ends(0);
    let said = String::from_utf8(host.user.ok(&["doctor", "--fix"], b"")).unwrap();
    assert!(said.contains("no guest has left anything behind"), "{said}");
}

#[test]
fn doctor_says_what_it_cannot_wipe() {
    let host = Host::new();
    let dir = host.lib_dir("open");
    leave(&dir);
    fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let output = host.user.run(&["doctor", "--fix"], b"");
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains("run/open cannot be wiped") && said.contains("others may look into it"), "{said}");
}

#[test]
fn the_next_start_of_any_guest_wipes_what_another_left() {
    let host = Host::new();
    let guest = host.guest("crashed", "");
    let run = host.running(&guest);
    let (lib_dir, qemu) = (run.lib_dir().to_owned(), run.qemu());
    bereave(run);
    kill(Pid::from_raw(qemu), Signal::SIGKILL).unwrap();
    wait_until("QEMU does not go", || processes_of(&lib_dir).is_empty());
    let run = host.running(&host.guest("other", ""));
    nothing_left(&lib_dir);
    run.signal(Signal::SIGTERM);
    run.ends(0);
}

#[test]
fn a_process_of_another_boot_is_nobodys() {
    let host = Host::new();
    let guest = host.guest("rebooted", "");
    let run = host.running(&guest);
    let (lib_dir, qemu) = (run.lib_dir().to_owned(), run.qemu());
    let file = lib_dir.join("state.json");
    let state: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    bereave(run);
    kill(Pid::from_raw(qemu), Signal::SIGKILL).unwrap();
    wait_until("QEMU does not go", || processes_of(&lib_dir).is_empty());
    // A stranger has the number now, to the tick.
    let mut stranger = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let stat = fs::read_to_string(format!("/proc/{}/stat", stranger.id())).unwrap();
    let ticks: u64 = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse().unwrap();
    let mut state = state;
    state["process"] = json!({ "pid": stranger.id(), "start-ticks": ticks });
    state["boot"] = json!("00000000-0000-0000-0000-000000000000");
    fs::write(&file, state.to_string()).unwrap();
    let mut run = host.start(&guest, &[]);
    run.ready();
    assert_ne!(run.qemu(), i32::try_from(stranger.id()).unwrap());
    assert!(stranger.try_wait().unwrap().is_none());
    run.signal(Signal::SIGTERM);
    run.ends(0);
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[test]
fn systemds_tools_have_a_socket_of_their_own() {
    let host = Host::new();
    let run = host.running(&host.guest("controlled", ""));
    let call = |method| call(run.lib_dir(), method);
    assert_eq!(call("Pause")["error"], Value::Null);
    let description = call("Describe");
    assert_eq!(description["parameters"]["status"], "paused", "{description}");
    assert_eq!(description["parameters"]["memory"]["configuredBytes"], 32 << 20);
    assert_eq!(call("Resume")["error"], Value::Null);
    assert_eq!(call("QueryStatus")["parameters"], json!({"running": true, "status": "running"}));
    assert_eq!(call("AddStorage")["error"], "org.varlink.service.MethodNotFound");
    assert_eq!(call("Terminate")["error"], Value::Null);
    run.ends(0);
}
