//! Other media for the drives of running guests, encrypted ones among them; and that the old one stays where that fails.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod guest;
mod machine;
mod user;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use serde_json::{Value, json};

use guest::{Description, Guest, files};
use machine::{Machine, inventory};
use user::{User, disk};

/// A plain medium that begins with its name; its path.
fn medium(home: &Path, name: &str) -> String {
    let path = home.join(name);
    let mut content = name.as_bytes().to_vec();
    content.resize(1 << 20, 0);
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

fn cdrom(source: &str) -> String {
    format!(
        "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/>{source}\
         <target dev='sda' bus='sata'/></disk>"
    )
}

/// The same disk as a medium.
fn as_medium(disk: &str) -> String {
    disk.replace("device='disk'", "device='cdrom'").replace("bus='virtio'", "bus='sata'")
}

/// What is in the drive, as QEMU has it.
fn inserted(guest: &Machine) -> Value {
    let blocks = guest.qmp("query-block", &json!({}));
    blocks.as_array().unwrap()[0]["inserted"]["node-name"].clone()
}

#[test]
fn the_guest_reads_what_is_in_the_drive() {
    let Some(files) = files() else { return };
    let user = User::new();
    let encrypted = disk(&user, "medium.luks", "sda", "virtio");
    let (first, second) = (medium(user.home.path(), "first.iso"), medium(user.home.path(), "second.iso"));
    let devices = cdrom(&format!("<source file='{first}'/>"));
    let mut guest = Guest::boot(user, &files, &Description { devices: &devices, ..Description::default() });
    // The first access after a change tells the guest of it, and fails.
    let read = "dd if=/dev/sr0 bs=2048 count=1 2>/dev/null | tr -d '\\000'";
    let has = |guest: &mut Guest, text: &str| guest.wait_for(&format!("[ \"$({read})\" = '{text}' ]"));
    has(&mut guest, "first.iso");
    guest.user.ok(&["change-media", "guest", "sda", &second], b"");
    has(&mut guest, "second.iso");

    // What is on the encrypted one, the guest wrote itself when it was a disk.
    let as_disk = encrypted.replace("'sda'", "'vda'");
    guest.attached(&as_disk);
    guest.wait_for("[ -b /dev/vda ]");
    guest.sh("echo encrypted | dd of=/dev/vda bs=2048 conv=sync 2>/dev/null");
    guest.user.ok(&["detach-device", "guest", "vda"], b"");
    guest.user.ok(&["change-media", "guest", "sda", "-"], as_medium(&encrypted).as_bytes());
    has(&mut guest, "encrypted");
    assert_eq!(guest.status()["disks"][0]["encrypted"], true);

    // A guest that uses the drive has locked it.
    guest.sh("(sleep 3600 </dev/sr0) >/dev/null 2>&1 &");
    let said = guest.user.fails(69, &["change-media", "guest", "sda", &first], b"");
    assert!(said.contains("has locked the tray") && said.contains("--force"), "{said}");
    has(&mut guest, "encrypted");
    guest.user.ok(&["change-media", "--force", "guest", "sda", &first], b"");
    guest.user.ok(&["destroy", "guest"], b"");
    guest.ended();
}

#[test]
fn media_come_and_go_and_leave_nothing() {
    let guest = Machine::start(&cdrom(""));
    let home = guest.user.home.path();
    let empty = (inventory(&guest), guest.dumpxml());
    let (plain, encrypted) = (medium(home, "plain.iso"), disk(&guest.user, "a.qcow2", "sda", "virtio"));
    let xml = home.join("medium.xml");
    fs::write(&xml, as_medium(&encrypted)).unwrap();
    for _ in 0..3 {
        guest.user.ok(&["change-media", "guest", "sda", &plain], b"");
        assert!(guest.dumpxml().contains("plain.iso"));
        guest.user.ok(&["change-media", "guest", "sda", xml.to_str().unwrap()], b"");
        let live = guest.dumpxml();
        assert!(live.contains("a.qcow2") && live.contains("<encryption"), "{live}");
        assert!(live.contains("type='qcow2'") && !live.contains("plain.iso"), "{live}");
        assert_eq!(inventory(&guest).objects, empty.0.objects, "secrets are gone when the medium is open");
    }
    guest.user.ok(&["change-media", "--eject", "guest", "sda"], b"");
    assert_eq!(inventory(&guest), empty.0);
    assert_eq!(inserted(&guest), Value::Null);
    assert!(!guest.dumpxml().contains("<source"), "{}", guest.dumpxml());
    guest.end();
}

#[test]
fn the_old_medium_stays_where_the_new_one_does_not_come() {
    let user = User::new();
    let old = medium(user.home.path(), "old.iso");
    let guest = Machine::start_as(user, &cdrom(&format!("<source file='{old}'/>")));
    let home = guest.user.home.path();
    let before = (inventory(&guest), guest.dumpxml(), inserted(&guest));
    let fails = |exit: i32, arguments: &[&str], xml: &str| {
        let arguments = [&["change-media", "guest"], arguments].concat();
        let said = guest.user.fails(exit, &arguments, xml.as_bytes());
        assert_eq!((inventory(&guest), guest.dumpxml(), inserted(&guest)), before, "{said}");
        said
    };
    let new = medium(home, "new.iso");
    let encrypted = as_medium(&disk(&guest.user, "a.luks", "sda", "virtio"));
    let uuid = encrypted.split("uuid='").nth(1).unwrap().split('\'').next().unwrap().to_owned();

    // The arguments, the XML, the image, the secret.
    fails(64, &["sda"], "");
    fails(66, &["sdx", &new], "");
    fails(65, &["sda", home.join("none.iso").to_str().unwrap()], "");
    assert!(fails(65, &["sda", "-"], "<disk").contains("<stdin>:1:"));
    assert!(fails(65, &["sda", "-"], &cdrom("")).contains("--eject"));
    assert!(fails(65, &["sda", "-"], &encrypted.replace("'sda'", "'sdb'")).contains("another drive"));
    let missing = encrypted.replace(&uuid, "00000000-0000-4000-8000-000000000001");
    assert!(fails(66, &["sda", "-"], &missing).contains("vmward secret define"));
    // Each step in QEMU.
    guest.qmp("object-add", &json!({ "qom-type": "iothread", "id": "libvirt-2-format-encryption-secret0" }));
    let with_object = inventory(&guest);
    let said = guest.user.fails(69, &["change-media", "guest", "sda", "-"], encrypted.as_bytes());
    assert!(said.contains("libvirt-2-format-encryption-secret0 could not be made"), "{said}");
    assert_eq!((inventory(&guest), inserted(&guest)), (with_object, before.2.clone()));
    guest.qmp("object-del", &json!({ "id": "libvirt-2-format-encryption-secret0" }));
    guest.user.ok(&["secret", "set-value", &uuid], b"wrong");
    assert!(fails(77, &["sda", "-"], &encrypted).contains("Invalid password"));
    let locked = lock(&new);
    let said = fails(75, &["sda", &new], "");
    assert!(said.contains("could not be put in") && said.contains("the old one is in the drive"), "{said}");
    drop(locked);
    guest.user.ok(&["change-media", "guest", "sda", &new], b"");
    assert_ne!(inserted(&guest), before.2);
    guest.end();
}

/// Keeps QEMU from reading an image: nobody may hold these locks of a program that shares nothing (block/file-posix.c).
fn lock(path: &str) -> File {
    let file = File::open(path).unwrap();
    let range = libc::flock {
        l_type: libc::F_RDLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 200,
        l_len: 10,
        l_pid: 0,
    };
    fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&range)).unwrap();
    file
}

#[test]
fn only_drives_have_media() {
    let user = User::new();
    let disk = disk(&user, "a.luks", "vda", "virtio");
    let guest = Machine::start_as(user, &disk);
    let new = medium(guest.user.home.path(), "new.iso");
    let said = guest.user.fails(65, &["change-media", "guest", "vda", &new], b"");
    assert!(said.contains("'vda' is no drive"), "{said}");
    guest.end();
}
