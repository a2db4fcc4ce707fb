//! Disks of a running guest that grow.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod guest;
mod images;
mod machine;
mod user;

use std::fs::{self, File};
use std::process::Command;

use guest::{Description, Guest, files};
use images::qemu_img_info;
use machine::Machine;
use user::{User, disk};

const MIB: u64 = 1 << 20;

/// A plain raw disk of 16 MiB, with a filter in front of its image.
fn plain(user: &User, name: &str, target: &str) -> String {
    let path = user.home.path().join(name);
    File::create(&path).unwrap().set_len(16 * MIB).unwrap();
    format!(
        "<disk type='file' device='disk'><driver name='qemu' type='raw' copy_on_read='on'/><source file='{}'/>\
         <target dev='{target}' bus='virtio'/></disk>",
        path.display()
    )
}

#[test]
fn the_guest_gets_the_size_that_was_asked_for() {
    let Some(files) = files() else { return };
    let user = User::new();
    let devices = disk(&user, "a.luks", "vda", "virtio")
        + &disk(&user, "b.qcow2", "vdb", "virtio")
        + &plain(&user, "c.raw", "vdc");
    let mut guest = Guest::boot(user, &files, &Description { devices: &devices, ..Description::default() });
    for target in ["vda", "vdb", "vdc"] {
        let device = format!("/dev/{target}");
        guest.fill(&device, target);
        guest.user.ok(&["blockresize", "guest", target, "24MiB"], b"");
        guest.wait_for(&format!("[ $(blockdev --getsize64 {device}) = {} ]", 24 * MIB));
        // The last bytes are there, and what was there before is as well.
        guest
            .sh(&format!("echo end | dd of={device} bs=512 seek={} conv=notrunc 2>/dev/null", 24 * 2048 - 1));
        assert_eq!(guest.filled(&device), target);
        // Once more to the same size is no change.
        guest.user.ok(&["blockresize", "guest", target, "24M"], b"");
        let said = guest.user.fails(65, &["blockresize", "guest", target, "16M"], b"");
        assert!(said.contains("not made smaller") && said.contains(&(24 * MIB).to_string()), "{said}");
        let read = format!("dd if={device} bs=512 skip={} count=1 2>/dev/null | head -c 4", 24 * 2048 - 1);
        assert_eq!(guest.sh(&read), "end");
    }
    guest.user.fails(66, &["blockresize", "guest", "vdx", "24M"], b"");
    guest.user.fails(64, &["blockresize", "guest", "vda", "much"], b"");
    let home = guest.user.home.path().to_owned();
    guest.user.ok(&["destroy", "guest"], b"");
    // In front of the guest's bytes is the header, which grew into nothing.
    let encrypted = fs::metadata(home.join("a.luks")).unwrap().len();
    assert!(encrypted > 24 * MIB && encrypted < 28 * MIB, "{encrypted}");
    assert_eq!(fs::metadata(home.join("c.raw")).unwrap().len(), 24 * MIB);
    assert_eq!(qemu_img_info(home.join("b.qcow2").to_str().unwrap())["virtual-size"], 24 * MIB);
    guest.ended();
}

/// A loop device, taken off when this is dropped.
struct Loop(String);

impl Loop {
    fn of(path: &str) -> Option<Self> {
        let output = Command::new("losetup").args(["--find", "--show", path]).output().ok()?;
        let device = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        output.status.success().then_some(Self(device))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_block_device_has_the_size_that_the_host_gives_it() {
    let user = User::new();
    let path = user.home.path().join("device");
    let file = File::create(&path).unwrap();
    file.set_len(16 * MIB).unwrap();
    let Some(device) = Loop::of(path.to_str().unwrap()) else {
        println!("skipped: this machine has no loop devices for a test");
        return;
    };
    let guest = Machine::start(&format!(
        "<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='{}'/>\
         <target dev='vda' bus='virtio'/></disk>",
        device.0
    ));
    let said = guest.user.fails(69, &["blockresize", "guest", "vda", "24M"], b"");
    assert!(said.contains(&device.0) && said.contains("lvextend"), "{said}");
    file.set_len(24 * MIB).unwrap();
    assert!(Command::new("losetup").args(["--set-capacity", &device.0]).status().unwrap().success());
    guest.user.ok(&["blockresize", "guest", "vda", "24M"], b"");
    guest.end();
}

#[test]
fn an_empty_drive_has_no_size() {
    let guest = Machine::start("<disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>");
    let said = guest.user.fails(65, &["blockresize", "guest", "sda", "24M"], b"");
    assert!(said.contains("no image behind 'sda'"), "{said}");
    guest.end();
}
