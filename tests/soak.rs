//! Encrypted disks plugged in and out over and over: nodes, objects, descriptors and memory are where they were.
//!
//! `VMWARD_TEST_SOAK` says how often, 50 times if it does not. And guests started and stopped over and over:
//! `VMWARD_TEST_SOAK_STARTS` says how often, 5 times if it does not.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod bare;
mod machine;
mod user;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use bare::{Host, has_qemu_img, nothing_left};
use machine::{Machine, inventory};
use nix::sys::signal::Signal;
use user::{disk, wait_until};

/// Allocators keep some of what they were given back, and what is left between may take a while to fill up. What one
/// round leaks adds up to more than this in a thousand: 4 kB each.
const SLACK_KB: u64 = 4096;

/// A process of the guest.
struct Process(String);

impl Process {
    fn of(guest: &Machine, which: &str) -> Self {
        Self(format!("/proc/{}", guest.status()[which]))
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("{}/fd", self.0)).unwrap().count()
    }

    /// What it has written to, in kilobytes, wherever that is now: of a program's code the kernel keeps as much in memory as it
    /// likes.
    fn memory(&self) -> u64 {
        self.kilobytes("RssAnon") + self.kilobytes("VmSwap")
    }

    /// A number of kilobytes of its `status`.
    fn kilobytes(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("{}/status", self.0)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

/// The names of what is in a directory.
fn files_of(dir: &Path) -> Vec<OsString> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    names
}

#[test]
fn in_and_out_over_and_over() {
    let rounds: usize = env::var("VMWARD_TEST_SOAK").map_or(50, |n| n.parse().unwrap());
    let guest = Machine::start(
        "<controller type='scsi' model='virtio-scsi'/><controller type='usb' model='qemu-xhci'/>",
    );
    let disks = [disk(&guest.user, "a.luks", "sda", "scsi"), disk(&guest.user, "b.qcow2", "sdb", "usb")];
    let once = || {
        for (disk, target) in disks.iter().zip(["sda", "sdb"]) {
            guest.attach(disk);
            guest.user.ok(&["detach-device", "guest", target], b"");
        }
    };
    // The first times open and allocate what stays: threads of a pool with their stacks, buffers, tables.
    (0..10).for_each(|_| once());
    let (qemu, supervisor) = (Process::of(&guest, "qemu"), Process::of(&guest, "supervisor"));
    let files = files_of(&guest.lib_dir());
    let before = (inventory(&guest), guest.dumpxml());
    let descriptors = (qemu.descriptors(), supervisor.descriptors());
    let locked = supervisor.kilobytes("VmLck");
    let memory = [&qemu, &supervisor].map(|p| p.memory());
    (0..rounds.div_ceil(2)).for_each(|_| once());
    assert_eq!((inventory(&guest), guest.dumpxml()), before);
    // Connections of commands that have ended are closed a moment later.
    wait_until("more files are open than before", || {
        qemu.descriptors() <= descriptors.0 && supervisor.descriptors() <= descriptors.1
    });
    assert_eq!(supervisor.kilobytes("VmLck"), locked, "secrets are left in locked memory");
    let after = [&qemu, &supervisor].map(|p| p.memory());
    assert_eq!(files_of(&guest.lib_dir()), files);
    println!(
        "{rounds} times: {} descriptors of QEMU, then {}; {} of the supervisor, then {}",
        descriptors.0,
        qemu.descriptors(),
        descriptors.1,
        supervisor.descriptors()
    );
    println!(
        "{rounds} times: {} files in the lib dir, then {}",
        files.len(),
        files_of(&guest.lib_dir()).len()
    );
    println!(
        "{rounds} times: QEMU {} kB, then {} kB; supervisor {} kB, then {} kB",
        memory[0], after[0], memory[1], after[1]
    );
    for (before, after) in memory.iter().zip(after) {
        assert!(after <= before + SLACK_KB, "{before} kB of memory have become {after} kB");
    }
    guest.end();
}

#[test]
fn started_and_stopped_over_and_over() {
    if !has_qemu_img() {
        return;
    }
    let rounds: usize = env::var("VMWARD_TEST_SOAK_STARTS").map_or(5, |n| n.parse().unwrap());
    let host = Host::new();
    let guest = host.encrypted_guest("again");
    let once = || {
        let run = host.running(&guest);
        let lib_dir = run.lib_dir().to_owned();
        let supervisor = Process(format!("/proc/{}", run.supervisor()));
        let numbers = (supervisor.descriptors(), files_of(&lib_dir), supervisor.memory());
        run.signal(Signal::SIGTERM);
        run.ends(0);
        nothing_left(&lib_dir);
        numbers
    };
    // What the first one leaves, the cache of QEMU's capabilities, is there for all others.
    once();
    let outside =
        || [host.user.home.path().to_owned(), host.path("run"), "/dev/shm".into()].map(|dir| count(&dir));
    let (before, left) = (once(), outside());
    let mut after = None;
    for _ in 0..rounds {
        after = Some(once());
    }
    let after = after.unwrap();
    println!(
        "{rounds} starts and stops: {} descriptors of the supervisor, then {}; {} kB, then {} kB; {} files in the lib \
         dir, then {}; {:?} files beside it, then {:?}",
        before.0,
        after.0,
        before.2,
        after.2,
        before.1.len(),
        after.1.len(),
        left,
        outside()
    );
    assert_eq!(after.1, before.1);
    assert_eq!(outside()[..2], left[..2]);
}

/// How many files there are, below as well.
fn count(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    entries.map(|e| 1 + if e.file_type().is_ok_and(|t| t.is_dir()) { count(&e.path()) } else { 0 }).sum()
}
