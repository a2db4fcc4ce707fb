//! A Linux that writes to its disks while they get new keys.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod guest;
mod user;

use guest::{Description, Guest, files};
use user::{User, disk};

#[test]
fn what_a_guest_writes_meanwhile_is_there_when_the_new_value_opens_the_disk() {
    let Some(files) = files() else { return };
    let user = User::new();
    let system = disk(&user, "system.qcow2", "vda", "virtio");
    // Around the host's cache, as the writing of key slots is not.
    let data = disk(&user, "data.luks", "vdb", "virtio").replace("type='raw'", "type='raw' cache='none'");
    let devices = format!("{system}{data}");
    let mut guest = Guest::boot(user, &files, &Description { devices: &devices, ..Description::default() });
    for (target, device) in [("vda", "/dev/vda"), ("vdb", "/dev/vdb")] {
        guest.fill(device, "before");
        guest.sh(&format!("mount -t ext4 {device} /mnt2"));
        guest.sh(
            "(i=0; while [ ! -e /stop ]; do i=$((i+1)); echo line $i >>/mnt2/log; sync; done; echo $i >/lines) &",
        );
        for _ in 0..3 {
            guest.user.ok(&["volume", "rekey", "--domain", "guest", target], b"");
        }
        guest.sh("touch /stop");
        guest.wait_for("[ -s /lines ]");
        let lines: usize = guest.sh("cat /lines").parse().unwrap();
        assert!(lines > 0);
        guest.sh("umount /mnt2; rm /stop /lines");
        let xml = if target == "vda" { &system } else { &data };
        guest.user.ok(&["detach-device", "guest", target], b"");
        guest.wait_for(&format!("[ ! -e {device} ]"));
        guest.attached(xml);
        guest.wait_for(&format!("[ -b {device} ]"));
        assert_eq!(guest.filled(device), "before");
        guest.sh(&format!("mount -t ext4 {device} /mnt2"));
        assert_eq!(guest.sh("tail -n 1 /mnt2/log"), format!("line {lines}"));
        guest.sh("umount /mnt2");
    }
    guest.user.ok(&["shutdown", "--wait", "guest"], b"");
    let (status, said) = guest.ended();
    assert!(status.success(), "{said}");
}
