//! Disks plugged in and out of a real QEMU whose machine runs no system: what goes right, every way in which it
//! goes wrong, and that nothing is left of either. What a guest's system sees is in `guest_hotplug.rs`.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod machine;
mod user;

use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use serde_json::json;

use machine::{Machine, inventory};
use user::{disk, disk_xml, wait_until};

/// A machine with a SCSI and a USB controller.
const CONTROLLERS: &str =
    "<controller type='scsi' model='virtio-scsi'/><controller type='usb' model='qemu-xhci'/>";

fn machine() -> Machine {
    Machine::start(CONTROLLERS)
}

/// An attach that fails with that exit code and leaves all as it was; what it says.
fn refused(guest: &Machine, exit: i32, disk: &str) -> String {
    let (before, xml) = (inventory(guest), guest.dumpxml());
    let said = guest.user.fails(exit, &["attach-device", "guest", "-"], disk.as_bytes());
    assert_eq!(inventory(guest), before, "{said}");
    assert_eq!(guest.dumpxml(), xml);
    said
}

#[test]
fn scsi_and_usb_disks_go_in_and_out() {
    let guest = machine();
    let before = inventory(&guest);
    let xml = guest.dumpxml();
    for (bus, name, alias) in [("scsi", "a.luks", "scsi0-0-0-0"), ("usb", "b.qcow2", "usb-disk0")] {
        let disk = disk(&guest.user, name, "sda", bus);
        guest.attach(&disk);
        let with = inventory(&guest);
        // The secret is gone as soon as the disk is open.
        assert_eq!(with.objects, before.objects);
        assert!(with.nodes.len() >= 2 && with.nodes.iter().any(|n| n.ends_with("-format")), "{with:?}");
        assert!(with.devices.contains(&alias.to_owned()), "{with:?}");
        let status = guest.status();
        let shown = &status["disks"][0];
        assert_eq!(
            (&shown["target"], &shown["alias"], &shown["encrypted"]),
            (&json!("sda"), &json!(alias), &json!(true))
        );
        let live = guest.dumpxml();
        assert!(live.contains(&format!("<alias name='{alias}'/>")), "{live}");
        assert!(live.contains("<address type="), "{live}");
        guest.user.ok(&["detach-device", "guest", "sda"], b"");
        assert_eq!(inventory(&guest), before);
        assert_eq!(guest.dumpxml(), xml);
    }
    guest.end();
}

#[test]
fn a_disk_goes_by_its_xml_too() {
    let guest = machine();
    let disk = disk(&guest.user, "a.luks", "sdc", "usb");
    let file = guest.user.home.path().join("disk.xml");
    fs::write(&file, &disk).unwrap();
    let file = file.to_str().unwrap();
    guest.user.ok(&["attach-device", "guest", file], b"");
    assert_eq!(guest.targets(), ["sdc"]);
    guest.user.ok(&["detach-device", "guest", file], b"");
    assert!(guest.targets().is_empty());
    guest.end();
}

#[test]
fn a_wrong_passphrase_is_said_to_be_one() {
    let guest = machine();
    let disk = disk(&guest.user, "a.luks", "sda", "scsi");
    let uuid = disk.split("uuid='").nth(1).unwrap().split('\'').next().unwrap().to_owned();
    guest.user.ok(&["secret", "set-value", &uuid], b"another");
    let said = refused(&guest, 77, &disk);
    assert!(said.contains("Invalid password") && said.contains("vmward secret set-value"), "{said}");
    assert!(
        said.contains(
            "undone: block node libvirt-1-storage, descriptor set 0, object libvirt-1-format-encryption-secret0"
        ),
        "{said}"
    );
    assert!(!said.contains("another"), "{said}");
    guest.end();
}

#[test]
fn secrets_that_are_missing_are_named_at_their_line() {
    let guest = machine();
    let good = disk(&guest.user, "a.luks", "sda", "scsi");
    let uuid = good.split("uuid='").nth(1).unwrap().split('\'').next().unwrap().to_owned();
    let missing = good.replace(&uuid, "00000000-0000-4000-8000-000000000001");
    let said = refused(&guest, 66, &missing);
    assert!(said.contains("<stdin>:1:") && said.contains("vmward secret define"), "{said}");
    let valueless = guest.user.define("<usage type='volume'><volume>/x</volume></usage>");
    let said = refused(&guest, 66, &good.replace(&uuid, &valueless));
    assert!(said.contains("set-value"), "{said}");
    let other = guest.user.define("<usage type='ceph'><name>x</name></usage>");
    guest.user.ok(&["secret", "set-value", &other], b"x");
    let said = refused(&guest, 65, &good.replace(&uuid, &other));
    assert!(said.contains("ceph"), "{said}");
    guest.end();
}

#[test]
fn an_image_that_is_in_use_or_not_there() {
    let guest = machine();
    let disk = disk(&guest.user, "a.luks", "sda", "scsi");
    let missing = disk.replace("a.luks", "b.luks");
    let said = refused(&guest, 65, &missing);
    assert!(said.contains("there is no image"), "{said}");
    // That of the data that is elsewhere is missed when it is opened.
    let path = guest.user.home.path().join("data");
    let store = format!(
        "<dataStore type='file'><format type='raw'/><source file='{}'/></dataStore></source>",
        path.display()
    );
    let plain = guest.user.home.path().join("plain.qcow2");
    let options = format!("data_file={},data_file_raw=on", path.display());
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", "qcow2", "-o", &options]).arg(&plain).arg("1M");
    assert!(create.status().unwrap().success());
    fs::remove_file(&path).unwrap();
    let in_two = format!(
        "<disk type='file'><driver type='qcow2'/><source file='{}'>{store}<target dev='sda' bus='scsi'/></disk>",
        plain.display()
    );
    let said = refused(&guest, 66, &in_two);
    assert!(said.contains(path.to_str().unwrap()) && said.contains("could not be opened"), "{said}");
    // QEMU's words have the path, and not what QEMU knows it by.
    let device = format!(
        "<disk type='block'><driver type='raw'/><source dev='{}'/><target dev='sda' bus='scsi'/></disk>",
        path.display()
    );
    fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let said = refused(&guest, 69, &device);
    assert!(said.contains(&format!("requires '{}'", path.display())), "{said}");
    guest.attach(&disk);
    let said = refused(&guest, 75, &disk.replace("'sda'", "'sdb'"));
    assert!(said.contains("lock") && said.contains("<shareable/>"), "{said}");
    guest.end();
}

#[test]
fn an_image_that_is_not_what_the_xml_says() {
    let guest = machine();
    let encrypted = disk(&guest.user, "a.luks", "sda", "scsi");
    let start = encrypted.find("<encryption").unwrap();
    let end = encrypted.find("</encryption>").unwrap() + "</encryption>".len();
    let said = refused(&guest, 65, &encrypted.replace(&encrypted[start..end], ""));
    assert!(said.contains("the image is encrypted, and the XML does not say so"), "{said}");
    guest.end();
}

#[test]
fn what_is_wrong_with_the_xml_is_shown_at_its_place() {
    let guest = machine();
    let disk = disk(&guest.user, "a.luks", "sda", "scsi");
    guest.attach(&disk);
    let said = refused(&guest, 65, &disk);
    assert!(said.contains("'sda'") && said.contains("<stdin>:1:") && said.contains("^^^"), "{said}");
    let said = refused(&guest, 65, "<disk type='file'>\n  <source");
    assert!(said.contains("<stdin>:2:"), "{said}");
    let odd = disk.replace("'sda'", "'sdb'").replace("</disk>", "<colour/></disk>");
    let said = refused(&guest, 65, &odd);
    assert!(said.contains("does not honour <colour>"), "{said}");
    let said = refused(&guest, 65, "<interface type='user'/>");
    assert!(said.contains("disk"), "{said}");
    guest.end();
}

#[test]
fn a_full_bus_is_said_to_be_full() {
    let guest = machine();
    let attach = |n: u8| {
        let letter = char::from(b'a' + n);
        let disk = disk(&guest.user, &format!("{letter}.luks"), &format!("vd{letter}"), "virtio");
        (guest.user.run(&["attach-device", "guest", "-"], disk.as_bytes()), disk)
    };
    let full = (0..20).map(attach).find(|(output, _)| !output.status.success());
    let (_, disk) = full.expect("the machine takes 20 disks");
    let said = refused(&guest, 65, &disk);
    assert!(said.contains("<stdin>:1:"), "{said}");
    guest.end();
}

#[test]
fn each_step_that_fails_is_undone_and_named() {
    let guest = machine();
    let disk = disk(&guest.user, "a.luks", "sda", "usb");
    // What is there already under the same name, and is not the attach's to remove.
    let secret = "libvirt-1-format-encryption-secret0";
    guest.qmp("object-add", &json!({ "qom-type": "iothread", "id": secret }));
    let said = refused(&guest, 69, &disk);
    assert!(said.contains(&format!("object {secret} could not be made")), "{said}");
    // What does not need it has been made by then.
    assert!(said.contains("undone: block node libvirt-1-storage, descriptor set 0\n"), "{said}");
    guest.qmp("object-del", &json!({ "id": secret }));

    // The device was sent when the node below was known to be the disk's.
    for (node, undone) in
        [("libvirt-1-storage", ""), ("libvirt-1-format", "device usb-disk0, block node libvirt-1-storage, ")]
    {
        guest.qmp("blockdev-add", &json!({ "driver": "null-co", "node-name": node }));
        let said = refused(&guest, 69, &disk);
        assert!(said.contains(&format!("block node {node} could not be made")), "{said}");
        assert!(said.contains(&format!("undone: {undone}descriptor set 0, object {secret}\n")), "{said}");
        guest.qmp("blockdev-del", &json!({ "node-name": node }));
    }

    guest.qmp("device_add", &json!({ "driver": "usb-tablet", "id": "ua-mine" }));
    let said = refused(&guest, 69, &disk.replace("</disk>", "<alias name='ua-mine'/></disk>"));
    assert!(said.contains("device ua-mine could not be made"), "{said}");
    assert!(said.contains("undone: block node libvirt-1-format, block node libvirt-1-storage"), "{said}");
    guest.qmp("device_del", &json!({ "id": "ua-mine" }));
    // None of that keeps the disk out for good.
    guest.attach(&disk);
    guest.end();
}

#[test]
fn a_disk_that_is_not_there_cannot_go() {
    let guest = machine();
    let said = guest.user.fails(66, &["detach-device", "guest", "sdx"], b"");
    assert!(said.contains("'sdx'") && said.contains("vmward status"), "{said}");
    guest.end();
}

#[test]
fn a_disk_that_the_guest_lets_go_of_late_is_taken_out_then() {
    let guest = machine();
    let before = inventory(&guest);
    guest.attach(&disk(&guest.user, "a.luks", "vda", "virtio"));
    let with = inventory(&guest);
    // There is no system that would answer.
    let said = guest.user.fails(75, &["detach-device", "--timeout", "1", "guest", "vda"], b"");
    assert!(said.contains("still there"), "{said}");
    assert_eq!(inventory(&guest), with);
    assert_eq!(guest.targets(), ["vda"]);
    // A second request is no error of its own.
    guest.user.fails(75, &["detach-device", "--timeout", "1", "guest", "vda"], b"");
    // A reset carries out what is pending.
    guest.user.ok(&["reset", "guest"], b"");
    wait_until("the disk stays", || guest.targets().is_empty());
    assert_eq!(inventory(&guest), before);
    assert!(!guest.dumpxml().contains("<disk"));
    guest.end();
}

#[test]
fn a_device_removed_past_vmward_is_tidied_up_after() {
    let guest = machine();
    let before = inventory(&guest);
    guest.attach(&disk(&guest.user, "a.luks", "sda", "usb"));
    guest.qmp("device_del", &json!({ "id": "usb-disk0" }));
    wait_until("the disk stays", || guest.targets().is_empty());
    assert_eq!(inventory(&guest), before);
    guest.end();
}

#[test]
fn what_something_else_holds_goes_when_that_is_gone() {
    let guest = machine();
    let before = inventory(&guest);
    guest.attach(&disk(&guest.user, "a.luks", "sda", "usb"));
    guest.qmp("blockdev-add", &json!({ "driver": "raw", "node-name": "holder", "file": "libvirt-1-format" }));
    let said = guest.user.fails(75, &["detach-device", "guest", "sda"], b"");
    assert!(said.contains("block node libvirt-1-format") && said.contains("detach-device"), "{said}");
    assert_eq!(guest.targets(), ["sda"]);
    guest.qmp("blockdev-del", &json!({ "node-name": "holder" }));
    guest.user.ok(&["detach-device", "guest", "sda"], b"");
    assert!(guest.targets().is_empty());
    assert_eq!(inventory(&guest), before);
    guest.end();
}

#[test]
fn several_at_once_come_one_after_the_other() {
    let guest = machine();
    let disks: Vec<String> = (0..4u8)
        .map(|n| char::from(b'a' + n))
        .map(|c| {
            disk(&guest.user, &format!("{c}.luks"), &format!("sd{c}"), if c < 'c' { "usb" } else { "scsi" })
        })
        .collect();
    let attaches: Vec<_> =
        disks.iter().map(|d| guest.user.start(&["attach-device", "guest", "-"], d.as_bytes())).collect();
    for attach in attaches {
        let output = attach.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let mut targets = guest.targets();
    targets.sort();
    assert_eq!(targets, ["sda", "sdb", "sdc", "sdd"]);
    guest.end();
}

#[test]
fn an_attach_goes_on_without_the_client_that_asked_for_it() {
    let guest = machine();
    let path = guest.user.home.path().join("slow.luks");
    let path = path.to_str().unwrap();
    // Made by qemu-img's default: QEMU derives the key for seconds, in which the client is killed.
    let secret = guest.user.define(&format!("<usage type='volume'><volume>{path}</volume></usage>"));
    guest.user.ok(&["secret", "set-value", &secret], b"correct horse battery staple");
    guest.user.ok(&["volume", "create", path, "--size", "16M", "--format", "raw", "--secret", &secret], b"");
    let slow = disk_xml(path, "raw", &secret, "sda", "usb");
    let mut attach = guest.user.start(&["attach-device", "guest", "-"], slow.as_bytes());
    guest.user.is_connected("guest");
    sleep(Duration::from_millis(500));
    attach.kill().unwrap();
    attach.wait().unwrap();
    wait_until("the disk does not come", || guest.targets() == ["sda"]);
    guest.user.ok(&["detach-device", "guest", "sda"], b"");
    guest.end();
}

#[test]
fn limits_hold_from_the_start_and_of_what_comes_later() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let disk = |target: &str, bus: &str, limit: u32| {
        let path = directory.path().join(target);
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        format!(
            "<disk type='file'><driver name='qemu' type='raw'/><source file='{}'/>\
             <target dev='{target}' bus='{bus}'/>\
             <iotune><total_iops_sec>{limit}</total_iops_sec></iotune></disk>",
            path.display()
        )
    };
    let start = disk("vda", "virtio", 111) + &disk("sda", "scsi", 222);
    let guest = Machine::start(&format!("{CONTROLLERS}{start}"));
    guest.attach(&disk("vdb", "virtio", 333));
    let blocks = guest.qmp("query-block", &json!({}));
    let said = blocks.to_string();
    for limit in [111, 222, 333] {
        assert!(said.contains(&format!("\"iops\":{limit}")), "{said}");
    }
    guest.end();
}
