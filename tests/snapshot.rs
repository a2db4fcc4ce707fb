//! Snapshots of the disks of running guests: overlays that are as encrypted as what is below them.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod bare;
mod guest;
mod images;
mod machine;
mod user;

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use nix::libc::{O_ACCMODE, O_DIRECT, O_RDONLY};
use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use serde_json::{Value, json};

use bare::{Host, has_qemu_img};
use guest::{Description, Guest, files};
use images::opens;
use machine::{Machine, inventory};
use user::{User, disk, wait_until};

/// What a guest writes, and what is looked for in the files of the host.
const MARK: &str = "to be found by nobody who has only the image";

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

/// What is in the directory.
fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn contains(path: &Path, needle: &str) -> bool {
    let bytes = fs::read(path).unwrap();
    bytes.windows(needle.len()).any(|w| w == needle.as_bytes())
}

/// The name of an overlay's image below and its format, and that it is encrypted with LUKS.
fn overlay_of(path: &Path) -> (String, String) {
    // The guest has it open.
    let output = Command::new("qemu-img").args(["info", "-U", "--output=json"]).arg(path).output().unwrap();
    let info: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(info["format-specific"]["data"]["encrypt"]["format"], "luks", "{info}");
    let word = |name: &str| info[name].as_str().unwrap().to_owned();
    (word("backing-filename"), word("backing-filename-format"))
}

/// cryptsetup's word for the LUKS header inside of a qcow2 image (docs/interop/qcow2.rst: extension 0x0537be77).
fn cryptsetup_unlocks(path: &Path, passphrase: &str) -> bool {
    let image = fs::read(path).unwrap();
    let number = |at: usize| u32::from_be_bytes(image[at..at + 4].try_into().unwrap()) as usize;
    let mut at = number(100);
    while number(at) != 0x0537_be77 {
        assert_ne!(number(at), 0, "the image has no encryption header");
        at += 8 + number(at + 4).next_multiple_of(8);
    }
    let (offset, len) = (number(at + 12), number(at + 20));
    let mut header = image[offset..offset + len].to_vec();
    // cryptsetup wants to see the payload that the header speaks of.
    header.resize(len + (1 << 20), 0);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), header).unwrap();
    let key = tempfile::NamedTempFile::new().unwrap();
    fs::write(key.path(), passphrase).unwrap();
    let output = Command::new("cryptsetup")
        .args(["open", "--test-passphrase", "--type", "luks1", "--key-file"])
        .arg(key.path())
        .arg(file.path())
        .output();
    match output {
        Ok(output) => output.status.success(),
        Err(e) => {
            println!("skipped in part: cryptsetup cannot be run ({e})");
            true
        }
    }
}

fn value(user: &User, disk: &str) -> String {
    let uuid = disk.split("uuid='").nth(1).unwrap().split('\'').next().unwrap();
    text(user.ok(&["secret", "get-value", uuid], b""))
}

#[test]
fn what_a_guest_writes_after_a_snapshot_is_in_an_encrypted_overlay() {
    let Some(files) = files() else { return };
    if !has_qemu_img() {
        return;
    }
    let user = User::new();
    let (first, second) = (disk(&user, "a.qcow2", "vda", "virtio"), disk(&user, "b.luks", "vdb", "virtio"));
    let passphrase = value(&user, &second);
    let devices = format!("{first}{second}");
    let mut guest = Guest::boot(user, &files, &Description { devices: &devices, ..Description::default() });
    let home = guest.user.home.path().to_owned();
    guest.fill("/dev/vda", "before");
    guest.fill("/dev/vdb", "before");
    let live = text(guest.user.ok(&["dumpxml", "guest"], b""));
    guest.user.ok(&["snapshot", "create", "guest", "s1"], b"");
    guest.fill("/dev/vda", MARK);
    guest.fill("/dev/vdb", MARK);
    guest.sh("sync");
    let (a, b) = (home.join("a.s1.qcow2"), home.join("b.s1.qcow2"));
    // The image below is whole: nothing was written to it.
    assert_eq!(overlay_of(&a), (home.join("a.qcow2").display().to_string(), "qcow2".to_owned()));
    assert_eq!(overlay_of(&b), (home.join("b.luks").display().to_string(), "luks".to_owned()));
    for path in [&a, &b] {
        assert!(fs::metadata(path).unwrap().len() > 1 << 18);
        assert!(!contains(path, MARK));
    }
    assert!(cryptsetup_unlocks(&b, &passphrase) && !cryptsetup_unlocks(&b, "wrong"));
    // A second one, on one of them, with a secret of its own.
    let own = guest.user.uuid(&["secret", "generate"], b"");
    let own_value = text(guest.user.ok(&["secret", "get-value", &own], b""));
    let c = home.join("elsewhere.qcow2");
    let place = format!("vdb={}", c.display());
    guest.user.ok(&["snapshot", "create", "guest", "s2", "--disk", &place, "--secret", &own], b"");
    guest.fill("/dev/vdb", "after");
    guest.sh("sync");
    assert!(cryptsetup_unlocks(&c, &own_value) && !cryptsetup_unlocks(&c, &passphrase));
    let list: Value =
        serde_json::from_slice(&guest.user.ok(&["snapshot", "list", "--json", "guest"], b"")).unwrap();
    let names: Vec<&str> = list.as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["s1", "s2"]);
    assert_eq!(list[1]["disks"], json!([{ "target": "vdb", "overlay": c }]));
    // The guest still grows.
    guest.user.ok(&["blockresize", "guest", "vdb", "24M"], b"");
    guest.wait_for("[ $(blockdev --getsize64 /dev/vdb) = 25165824 ]");

    // The one in the middle goes first, then the topmost.
    guest.user.ok(&["snapshot", "delete", "guest", "s1"], b"");
    assert!(!a.exists() && !b.exists());
    assert_eq!(overlay_of(&c), (home.join("b.luks").display().to_string(), "luks".to_owned()));
    assert_eq!((guest.filled("/dev/vda"), guest.filled("/dev/vdb")), (MARK.to_owned(), "after".to_owned()));
    guest.user.ok(&["snapshot", "delete", "guest", "s2"], b"");
    assert!(!c.exists());
    assert_eq!((guest.filled("/dev/vda"), guest.filled("/dev/vdb")), (MARK.to_owned(), "after".to_owned()));
    guest.fill("/dev/vdb", "goes on");
    assert_eq!(text(guest.user.ok(&["dumpxml", "guest"], b"")), live);
    guest.user.ok(&["destroy", "guest"], b"");
    assert_eq!(opens(home.join("b.luks").to_str().unwrap(), "raw", &passphrase), Ok(()));
    guest.ended();
}

#[test]
fn a_snapshot_outlives_its_supervisor_and_its_guest() {
    if !has_qemu_img() {
        return;
    }
    let host = Host::new();
    let xml = host.encrypted_guest("guest");
    let mut run = host.running(&xml);
    for name in ["s1", "s2"] {
        host.user.ok(&["snapshot", "create", "guest", name], b"");
    }
    let overlay = host.path("guest.s1.qcow2");
    let live = host.user.ok(&["dumpxml", "guest"], b"");
    let listed = |expected: bool| {
        let list = text(host.user.ok(&["snapshot", "list", "guest"], b""));
        assert_eq!(list.starts_with("s1  20") && list.contains("vda"), expected, "{list}");
    };
    listed(true);
    run.signal(Signal::SIGKILL);
    run.ended();
    run = host.running(&xml);
    listed(true);
    assert_eq!(host.user.ok(&["dumpxml", "guest"], b""), live);
    host.user.ok(&["destroy", "guest"], b"");
    run.ends(0);
    // What it was started with last is what it is started with.
    fs::write(&xml, live).unwrap();
    run = host.running(&xml);
    listed(true);
    host.user.ok(&["snapshot", "create", "guest", "s3"], b"");
    // QEMU has opened the three below for reading only. In the one above it, whose header names what is below, it writes too.
    let (image, moved) = (host.path("guest.qcow2"), host.path("moved.qcow2"));
    fs::rename(&image, &moved).unwrap();
    fs::copy(&moved, &image).unwrap();
    let said = host.user.fails(65, &["snapshot", "delete", "guest", "s1"], b"");
    assert!(said.contains("guest.qcow2 is another file than the one that QEMU has open"), "{said}");
    listed(true);
    fs::rename(&moved, &image).unwrap();
    host.user.ok(&["snapshot", "delete", "guest", "s1"], b"");
    listed(false);
    let above = host.path("guest.s1.s2.qcow2");
    assert!(!overlay.exists());
    assert_eq!(overlay_of(&above), (host.path("guest.qcow2").display().to_string(), "qcow2".to_owned()));
    host.user.ok(&["snapshot", "delete", "guest", "s2"], b"");
    assert!(!above.exists() && host.path("guest.s1.s2.s3.qcow2").exists());
    // Of what was lent nothing is left: whoever wants to read the image with nobody writing to it can.
    let reads = Command::new("qemu-img").arg("info").arg(image).output().unwrap();
    assert!(reads.status.success(), "{}", String::from_utf8_lossy(&reads.stderr));
    host.user.ok(&["snapshot", "delete", "guest", "s3"], b"");
    assert_eq!(text(host.user.ok(&["snapshot", "list", "guest"], b"")), "");
    host.user.ok(&["destroy", "guest"], b"");
    run.ends(0);
}

/// A machine with an encrypted disk, and what is in its user's home.
fn machine() -> (Machine, Vec<String>) {
    let user = User::new();
    let disk = disk(&user, "a.qcow2", "vda", "virtio");
    let guest = Machine::start_as(user, &disk);
    let home = entries(guest.user.home.path());
    (guest, home)
}

#[test]
fn snapshots_that_fail_leave_nothing() {
    let (guest, home) = machine();
    let before = (inventory(&guest), guest.dumpxml());
    let fails = |exit: i32, arguments: &[&str]| {
        let said = guest.user.fails(exit, &[&["snapshot", "create", "guest"], arguments].concat(), b"");
        assert_eq!((inventory(&guest), guest.dumpxml()), before, "{said}");
        assert_eq!(entries(guest.user.home.path()), home, "{said}");
        said
    };
    fails(65, &["a/b"]);
    fails(65, &[".."]);
    fails(66, &["s1", "--disk", "vdx"]);
    assert!(fails(65, &["s1", "--disk", "vda", "--disk", "vda"]).contains("named twice"));
    let there = format!("vda={}", guest.user.home.path().join("a.qcow2").display());
    assert!(fails(65, &["s1", "--disk", &there]).contains("a.qcow2 could not be made"));
    fails(65, &["s1", "--disk", "vda=/nowhere/at/all.qcow2"]);
    fails(66, &["s1", "--secret", "no such secret"]);
    // Each step in QEMU finds something of that name, which is not the snapshot's to remove.
    let steps = [
        ("object-add", json!({ "qom-type": "iothread", "id": "libvirt-2-format-encryption-secret0" })),
        ("blockdev-add", json!({ "driver": "null-co", "node-name": "libvirt-2-storage" })),
        ("blockdev-add", json!({ "driver": "null-co", "node-name": "libvirt-2-format" })),
    ];
    for (command, arguments) in steps {
        guest.qmp(command, &arguments);
        let with = inventory(&guest);
        let said = guest.user.fails(69, &["snapshot", "create", "guest", "s1"], b"");
        assert_eq!((inventory(&guest), guest.dumpxml()), (with, before.1.clone()), "{said}");
        assert_eq!(entries(guest.user.home.path()), home, "{said}");
        match arguments.get("id") {
            Some(id) => guest.qmp("object-del", &json!({ "id": id })),
            None => guest.qmp("blockdev-del", &json!({ "node-name": arguments["node-name"] })),
        };
    }
    assert_eq!(inventory(&guest), before.0);
    // A job that copies the disk keeps others from changing it.
    copying(&guest, "libvirt-1-format", || {
        let said = guest.user.fails(69, &["snapshot", "create", "guest", "s1"], b"");
        assert!(said.contains("were not switched"), "{said}");
        assert_eq!(entries(guest.user.home.path()), home, "{said}");
    });
    wait_until("something is left", || inventory(&guest) == before.0);
    guest.user.ok(&["snapshot", "create", "guest", "s1"], b"");
    let said = guest.user.fails(65, &["snapshot", "create", "guest", "s1"], b"");
    assert!(said.contains("'s1' already"), "{said}");
    guest.end();
}

/// Does something while a job copies a node, slowly.
fn copying(guest: &Machine, node: &str, work: impl Fn()) {
    let size = guest
        .qmp("query-named-block-nodes", &json!({ "flat": true }))
        .as_array()
        .unwrap()
        .iter()
        .find(|n| n["node-name"] == node)
        .unwrap()["image"]["virtual-size"]
        .clone();
    guest.qmp("blockdev-add", &json!({ "driver": "null-co", "node-name": "sink", "size": size }));
    let mirror = json!({ "job-id": "copy", "device": node, "target": "sink", "sync": "full", "speed": 1 });
    guest.qmp("blockdev-mirror", &mirror);
    work();
    guest.qmp("block-job-cancel", &json!({ "device": "copy", "force": true }));
    wait_until("the job does not end", || guest.qmp("query-jobs", &json!({})) == json!([]));
    guest.qmp("blockdev-del", &json!({ "node-name": "sink" }));
}

#[test]
fn a_snapshot_that_cannot_be_deleted_stays() {
    let (guest, home) = machine();
    let before = (inventory(&guest), guest.dumpxml());
    guest.user.ok(&["snapshot", "create", "guest", "s1"], b"");
    let with = (inventory(&guest), guest.dumpxml(), entries(guest.user.home.path()));
    let said = guest.user.fails(66, &["snapshot", "delete", "guest", "s2"], b"");
    assert!(said.contains("'s2'") && said.contains("snapshot list"), "{said}");
    copying(&guest, "libvirt-2-format", || {
        let said = guest.user.fails(69, &["snapshot", "delete", "guest", "s1"], b"");
        assert!(said.contains("was not merged"), "{said}");
    });
    assert_eq!((inventory(&guest), guest.dumpxml(), entries(guest.user.home.path())), with);
    guest.user.ok(&["snapshot", "delete", "guest", "s1"], b"");
    assert_eq!(
        (inventory(&guest), guest.dumpxml(), entries(guest.user.home.path())),
        (before.0, before.1, home)
    );
    guest.end();
}

#[test]
fn not_every_disk_has_overlays() {
    let user = User::new();
    let read_only = disk(&user, "a.qcow2", "vda", "virtio").replace("</disk>", "<readonly/></disk>");
    let shared = disk(&user, "b.luks", "vdb", "virtio").replace("</disk>", "<shareable/></disk>");
    let guest = Machine::start_as(user, &format!("{read_only}{shared}"));
    let fails = |target: &str, why: &str| {
        let said = guest.user.fails(65, &["snapshot", "create", "guest", "s1", "--disk", target], b"");
        assert!(said.contains(why), "{said}");
    };
    fails("vda", "does not write");
    fails("vdb", "<shareable/>");
    guest.end();
    let guest = Machine::start("");
    let said = guest.user.fails(65, &["snapshot", "create", "guest", "s1"], b"");
    assert!(said.contains("no disk that it writes to"), "{said}");
    guest.end();
}

#[test]
fn qemus_user_needs_no_right_on_the_images() {
    if !geteuid().is_root() {
        println!("skipped: only root can run QEMU as another user");
        return;
    }
    if !has_qemu_img() {
        return;
    }
    let user = User::new();
    let home = user.home.path().to_owned();
    // QEMU gets to its lib dir, and to no image.
    fs::set_permissions(&home, fs::Permissions::from_mode(0o711)).unwrap();
    let images = home.join("images");
    fs::DirBuilder::new().mode(0o700).create(&images).unwrap();
    let path = |name: &str| images.join(name).display().to_string();
    for (name, len) in [("base.raw", 4 << 20), ("medium.iso", 1 << 20), ("other.iso", 1 << 20)] {
        fs::File::create(images.join(name)).unwrap().set_len(len).unwrap();
    }
    for (name, backing) in [("middle.qcow2", "base.raw"), ("top.qcow2", "middle.qcow2")] {
        let format = backing.split('.').next_back().unwrap();
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2", "-F", format, "-b", &path(backing), &path(name)]);
        assert!(create.status().unwrap().success());
    }
    let encrypted = disk(&user, "images/a.luks", "vda", "virtio");
    let plugged = disk(&user, "images/b.qcow2", "sdb", "usb");
    let devices = format!(
        "{encrypted}<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/><source file='{}'/>\
         <backingStore type='file'><format type='qcow2'/><source file='{}'/>\
         <backingStore type='file'><format type='raw'/><source file='{}'/></backingStore></backingStore>\
         <target dev='vdb' bus='virtio'/></disk>\
         <disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='{}'/><target dev='sda' bus='sata'/></disk>\
         <controller type='usb' model='qemu-xhci'/>",
        path("top.qcow2"),
        path("middle.qcow2"),
        path("base.raw"),
        path("medium.iso"),
    );
    let guest = Machine::start_with(user, &devices, &["--user", "nobody"]);
    let ok = |arguments: &[&str]| guest.user.ok(arguments, b"");
    // Whether QEMU can write to an image; none of them is opened twice.
    let writes = |name: &str| {
        let pid = guest.status()["qemu"].as_u64().unwrap();
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|e| e.unwrap().path());
        let ours = fds.filter(|fd| fs::read_link(fd).is_ok_and(|to| to == images.join(name)));
        let flags = ours.map(|fd| {
            let info = fs::read_to_string(fd.to_str().unwrap().replace("/fd/", "/fdinfo/")).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
            i32::from_str_radix(flags.trim(), 8).unwrap() & (O_ACCMODE | O_DIRECT)
        });
        let flags: Vec<i32> = flags.collect();
        assert!(flags.iter().all(|f| f == &flags[0]), "{name}: {flags:?}");
        flags.first().map(|f| (f & O_ACCMODE != O_RDONLY, f & O_DIRECT != 0))
    };
    let (reads, both) = (Some((false, false)), Some((true, false)));
    assert_eq!((writes("a.luks"), writes("medium.iso")), (both, reads));
    let chain = || ["top.qcow2", "middle.qcow2", "base.raw"].map(&writes);
    let (uncached, uncached_both) = (Some((false, true)), Some((true, true)));
    assert_eq!(chain(), [uncached_both, uncached, uncached]);
    let before = inventory(&guest);

    guest.attach(&plugged);
    assert_eq!(writes("b.qcow2"), both);
    ok(&["blockresize", "guest", "sdb", "24M"]);
    ok(&["detach-device", "guest", "sdb"]);
    assert_eq!((inventory(&guest), writes("b.qcow2")), (before.clone(), None));
    let mut nodes = before.nodes.clone();
    ok(&["change-media", "guest", "sda", "--force", &path("other.iso")]);
    assert_eq!((writes("medium.iso"), writes("other.iso")), (None, reads));
    ok(&["change-media", "guest", "sda", "--force", "--eject"]);
    assert_eq!(writes("other.iso"), None);
    nodes.retain(|name| name != "libvirt-1-storage");

    // A lock on a descriptor is a lock on the image.
    for name in ["a.luks", "top.qcow2", "base.raw"] {
        let written = Command::new("qemu-io").args(["-f", "raw", "-c", "write 0 512", &path(name)]).output();
        let said = String::from_utf8(written.unwrap().stderr).unwrap();
        assert!(said.contains("Failed to get \"write\" lock"), "{name}: {said}");
    }
    ok(&["snapshot", "create", "guest", "s1"]);
    ok(&["snapshot", "create", "guest", "s2", "--disk", "vdb"]);
    assert_eq!((writes("a.s1.qcow2"), writes("top.s1.s2.qcow2")), (both, uncached_both));
    ok(&["snapshot", "delete", "guest", "s1"]);
    ok(&["snapshot", "delete", "guest", "s2"]);
    let after = inventory(&guest);
    assert_eq!((after.nodes, writes("a.luks"), chain()[0]), (nodes, both, uncached_both));
    assert_eq!(entries(&images).len(), 7);
    guest.end();
}
