//! Every end that a supervisor and its QEMU can come to.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod bare;
mod script;
mod user;

use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use rand::RngExt;

use bare::{Host, has_qemu_img, processes_of};
use user::wait_until;

/// A QEMU that answers what it is asked for its capabilities, and hangs when it is to start a guest.
fn stuck_qemu(host: &Host) -> PathBuf {
    let path = host.path("stuck-qemu");
    let script = "case \"$*\" in\n*master-key.aes*) exec sh -c 'read x <>\"$0\"' \"$0.fifo\" \"$@\";;\nesac\n\
                  exec /usr/bin/qemu-system-x86_64 \"$@\"";
    mkfifo(&host.path("stuck-qemu.fifo"), Mode::S_IRWXU).unwrap();
    script::write(&path, script);
    path
}

#[test]
fn a_second_signal_does_not_wait_for_the_guest() {
    let host = Host::new();
    let mut run = host.start(&host.guest("twice", ""), &["--stop-timeout", "3600"]);
    run.ready();
    run.signal(Signal::SIGHUP);
    run.signal(Signal::SIGINT);
    run.signal(Signal::SIGTERM);
    run.ends(0);
}

#[test]
fn a_qemu_that_is_killed_leaves_nothing() {
    if !has_qemu_img() {
        return;
    }
    let host = Host::new();
    let run = host.running(&host.encrypted_guest("killed"));
    kill(Pid::from_raw(run.qemu()), Signal::SIGKILL).unwrap();
    assert!(run.ends(137).contains("killed by SIGKILL"));
}

#[test]
fn a_qemu_that_is_told_to_quit_ends_well() {
    let host = Host::new();
    let run = host.running(&host.guest("quit", ""));
    host.user.run(&["qmp", "quit", "quit"], b"");
    run.ends(0);
    let run = host.running(&host.guest("destroyed", ""));
    host.user.ok(&["destroy", "destroyed"], b"");
    run.ends(0);
}

#[test]
fn sigterm_at_any_moment_of_a_start_leaves_nothing() {
    if !has_qemu_img() {
        return;
    }
    let host = Host::new();
    let guest = host.encrypted_guest("moments");
    // The first one fills the cache of capabilities.
    let run = host.running(&guest);
    run.signal(Signal::SIGTERM);
    run.ends(0);
    for _ in 0..10 {
        let moment = rand::rng().random_range(0..150_000);
        let run = host.start(&guest, &[]);
        sleep(Duration::from_micros(moment));
        run.signal(Signal::SIGTERM);
        let lib_dir = run.lib_dir().to_owned();
        let ended = run.ended();
        // Before anything is there to clean up, the signal does what it always does.
        let by_signal = std::os::unix::process::ExitStatusExt::signal(&ended.status);
        let code = ended.status.code();
        assert!(by_signal == Some(15) || code == Some(143) || code == Some(0), "{moment} us: {}", ended.said);
        bare::nothing_left(&lib_dir);
    }
}

#[test]
fn a_supervisor_killed_at_any_moment_leaves_nothing_that_the_next_one_cannot_end() {
    if !has_qemu_img() {
        return;
    }
    let host = Host::new();
    let guest = host.encrypted_guest("killed-moments");
    for _ in 0..5 {
        let moment = rand::rng().random_range(0..300_000);
        let run = host.start(&guest, &[]);
        sleep(Duration::from_micros(moment));
        run.signal(Signal::SIGKILL);
        run.ended();
        let run = host.running(&guest);
        assert_eq!(processes_of(run.lib_dir()), [run.qemu()], "{moment} us");
        run.signal(Signal::SIGTERM);
        run.ends(0);
    }
}

#[test]
fn a_start_that_hangs_can_be_stopped() {
    let host = Host::new();
    let emulator = format!("<emulator>{}</emulator>", stuck_qemu(&host).display());
    let run = host.start(&host.guest("hangs", &emulator), &[]);
    wait_until("QEMU does not start", || !processes_of(run.lib_dir()).is_empty());
    run.signal(Signal::SIGINT);
    run.ends(130);
}

#[test]
fn a_supervisor_that_was_killed_finds_its_guest_again() {
    if !has_qemu_img() {
        return;
    }
    let host = Host::new();
    let guest = host.encrypted_guest("back");
    let mut run = host.running(&guest);
    let attach = |target: &str| {
        let image = host.image(&format!("{target}.luks"), "raw", true);
        let xml = host.path("disk.xml");
        fs::write(&xml, bare::disk(&image, "raw", Some(bare::SECRET)).replace("vda", target)).unwrap();
        host.user.ok(&["attach-device", "back", xml.to_str().unwrap()], b"");
    };
    attach("vdb");
    let (qemu, key) = (run.qemu(), fs::read(run.lib_dir().join("master-key.aes")).unwrap());
    let dumped = host.user.ok(&["dumpxml", "back"], b"");
    host.user.ok(&["secret", "undefine", bare::SECRET], b"");
    for _ in 0..2 {
        run.signal(Signal::SIGKILL);
        run.ended();
        // The guest's secret is not needed to take it back.
        run = host.running(&guest);
        assert_eq!(run.qemu(), qemu);
        assert_eq!(fs::read(run.lib_dir().join("master-key.aes")).unwrap(), key);
        let text = |xml: &[u8]| String::from_utf8_lossy(xml).into_owned();
        assert_eq!(text(&host.user.ok(&["dumpxml", "back"], b"")), text(&dumped));
    }
    host.secret(bare::SECRET, bare::PASSPHRASE);
    attach("vdc");
    run.signal(Signal::SIGTERM);
    run.ends(0);
}

#[test]
fn a_guest_that_died_alone_is_wiped_and_started_anew() {
    let host = Host::new();
    let guest = host.guest("alone", "");
    let run = host.running(&guest);
    let qemu = run.qemu();
    let lib_dir = run.lib_dir().to_owned();
    run.signal(Signal::SIGKILL);
    run.ended();
    kill(Pid::from_raw(qemu), Signal::SIGKILL).unwrap();
    wait_until("QEMU does not go", || processes_of(&lib_dir).is_empty());
    let run = host.running(&guest);
    assert_ne!(run.qemu(), qemu);
    run.signal(Signal::SIGTERM);
    assert!(run.ends(0).contains("was wiped"));
}

#[test]
fn a_qemu_taken_back_that_is_killed_is_no_success() {
    let host = Host::new();
    let guest = host.guest("again", "");
    let run = host.running(&guest);
    run.signal(Signal::SIGKILL);
    run.ended();
    let run = host.running(&guest);
    kill(Pid::from_raw(run.qemu()), Signal::SIGKILL).unwrap();
    run.ends(1);
}

#[test]
fn a_qemu_of_a_start_that_was_killed_does_not_stay() {
    let host = Host::new();
    let emulator = format!("<emulator>{}</emulator>", stuck_qemu(&host).display());
    let run = host.start(&host.guest("cut", &emulator), &[]);
    wait_until("QEMU does not start", || !processes_of(run.lib_dir()).is_empty());
    run.signal(Signal::SIGKILL);
    let lib_dir = run.lib_dir().to_owned();
    run.ended();
    // A script has no arguments for the moment in which it starts a program in its place.
    wait_until("no orphan", || processes_of(&lib_dir).len() == 1);
    let orphan = processes_of(&lib_dir)[0];
    let run = host.running(&host.guest("cut", ""));
    assert!(!processes_of(&lib_dir).contains(&orphan));
    run.signal(Signal::SIGTERM);
    run.ends(0);
}
