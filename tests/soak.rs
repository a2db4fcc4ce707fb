//! Encrypted disks plugged in and out over and over: nodes, objects, descriptors and memory are where they were.
//!
//! `VMWARD_TEST_SOAK` says how often, 50 times if it does not.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod machine;
mod user;

use std::env;
use std::fs;

use machine::{Machine, inventory, wait_until};
use user::disk;

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

    /// A number of kilobytes of its `status`.
    fn kilobytes(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("{}/status", self.0)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
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
    let before = (inventory(&guest), guest.dumpxml());
    let descriptors = (qemu.descriptors(), supervisor.descriptors());
    let locked = supervisor.kilobytes("VmLck");
    let memory = [&qemu, &supervisor].map(|p| p.kilobytes("VmRSS"));
    (0..rounds.div_ceil(2)).for_each(|_| once());
    assert_eq!((inventory(&guest), guest.dumpxml()), before);
    // Connections of commands that have ended are closed a moment later.
    wait_until("more files are open than before", || {
        qemu.descriptors() <= descriptors.0 && supervisor.descriptors() <= descriptors.1
    });
    assert_eq!(supervisor.kilobytes("VmLck"), locked, "secrets are left in locked memory");
    let after = [&qemu, &supervisor].map(|p| p.kilobytes("VmRSS"));
    println!(
        "{rounds} times: QEMU {} kB, then {} kB; supervisor {} kB, then {} kB",
        memory[0], after[0], memory[1], after[1]
    );
    for (before, after) in memory.iter().zip(after) {
        assert!(after <= before + SLACK_KB, "{before} kB of memory have become {after} kB");
    }
    guest.end();
}
