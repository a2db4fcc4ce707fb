//! Disks plugged into a running Linux and out again, as the guest sees it.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod guest;
mod user;

use guest::{Description, Guest, files};
use user::{User, disk};

/// A disk in and out and in again, with data on it, on a machine of that type.
fn in_and_out(machine: &str, devices: &str, bus: &str, target: &str, device: &str) {
    let Some(files) = files() else { return };
    let user = User::new();
    let system = disk(&user, "system.qcow2", "vda", "virtio");
    let data = disk(&user, "data.luks", target, bus);
    let devices = format!("{devices}{system}");
    let mut guest =
        Guest::boot(user, &files, &Description { machine, devices: &devices, ..Description::default() });
    guest.fill("/dev/vda", "system");

    guest.attached(&data);
    guest.wait_for(&format!("[ -b {device} ]"));
    assert_eq!(guest.sh(&format!("blockdev --getsize64 {device}")), "16777216");
    guest.fill(device, "plugged in");
    assert_eq!(guest.targets(), ["vda", target]);

    guest.user.ok(&["detach-device", "guest", target], b"");
    guest.wait_for(&format!("[ ! -e {device} ]"));
    assert_eq!(guest.targets(), ["vda"]);

    guest.attached(&data);
    guest.wait_for(&format!("[ -b {device} ]"));
    assert_eq!(guest.filled(device), "plugged in");
    assert_eq!(guest.filled("/dev/vda"), "system");
    guest.user.ok(&["shutdown", "--wait", "guest"], b"");
    let (status, said) = guest.ended();
    assert!(status.success(), "{said}");
}

#[test]
fn a_virtio_disk_on_q35() {
    in_and_out("q35", "", "virtio", "vdb", "/dev/vdb");
}

#[test]
fn a_virtio_disk_on_i440fx() {
    in_and_out("pc", "", "virtio", "vdb", "/dev/vdb");
}

#[test]
fn a_scsi_disk() {
    in_and_out("q35", "<controller type='scsi' model='virtio-scsi'/>", "scsi", "sda", "/dev/sda");
}

#[test]
fn a_usb_disk() {
    in_and_out("q35", "<controller type='usb' model='qemu-xhci'/>", "usb", "sda", "/dev/sda");
}

/// A detach that the guest does not answer is an error that says so, and the disk stays.
fn not_let_go(kernel: Option<&str>) {
    let Some(files) = files() else { return };
    let user = User::new();
    let system = disk(&user, "system.qcow2", "vda", "virtio");
    let data = disk(&user, "data.luks", "vdb", "virtio");
    let mut guest =
        Guest::boot(user, &files, &Description { kernel, devices: &system, ..Description::default() });
    if kernel.is_some() {
        guest.fill("/dev/vda", "mine");
    }
    let said = guest.user.fails(75, &["detach-device", "--timeout", "3", "guest", "vda"], b"");
    assert!(said.contains("vda"), "{said}");
    assert_eq!(guest.targets(), ["vda"]);
    if kernel.is_some() {
        assert_eq!(guest.filled("/dev/vda"), "mine");
    }
    // The guest goes on, and takes other disks.
    guest.attached(&data);
    assert_eq!(guest.targets(), ["vda", "vdb"]);
    guest.user.ok(&["destroy", "guest"], b"");
    guest.ended();
}

#[test]
fn a_machine_without_a_system_does_not_let_go_of_a_disk() {
    not_let_go(None);
}

#[test]
fn a_system_without_hotplug_does_not_let_go_of_a_disk() {
    not_let_go(Some("acpiphp.disable=1 pcie_ports=compat"));
}

#[test]
fn qemu_killed_in_the_middle_of_an_attach_leaves_nothing() {
    let Some(files) = files() else { return };
    let user = User::new();
    let path = user.home.path().join("slow.luks");
    let path = path.to_str().unwrap();
    // A passphrase that a person typed gets the slow key derivation: QEMU is at it for seconds.
    let secret = user.define(&format!("<usage type='volume'><volume>{path}</volume></usage>"));
    user.ok(&["secret", "set-value", &secret], b"correct horse battery staple");
    user.ok(&["volume", "create", path, "--size", "16M", "--format", "raw", "--secret", &secret], b"");
    let slow = user::disk_xml(path, "raw", &secret, "vdb", "virtio");
    let guest = Guest::boot(user, &files, &Description::default());
    let qemu = nix::unistd::Pid::from_raw(guest.qemu());

    let mut attach = guest.user.start(&["attach-device", "guest", "-"], slow.as_bytes());
    guest.user.is_connected("guest");
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert!(attach.try_wait().unwrap().is_none(), "the disk was attached before QEMU could be killed");
    nix::sys::signal::kill(qemu, nix::sys::signal::Signal::SIGKILL).unwrap();
    let output = attach.wait_with_output().unwrap();
    assert!(!output.status.success());
    let (status, said) = guest.ended();
    assert_eq!(status.code(), Some(128 + 9), "{said}");
}
