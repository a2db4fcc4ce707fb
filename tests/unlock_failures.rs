//! Every way in which unlocking a disk outside QEMU ends otherwise than with a disk: nothing is left of any of them, and
//! nothing is opened with a key that is not the image's.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod bare;
mod slow;
mod user;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Child;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use vmward::supervisor::STOP_AT;

use bare::{Host, PASSPHRASE, Run, SECRET, nothing_left};
use slow::{
    LONG, NbdServer, WORTHWHILE, can_unlock, deriving, disk, image, inventory, qmp, unlocked, volume_key,
};
use user::wait_until;

/// Where the salt of the volume key's digest is ("LUKS1 On-Disk Format Specification 1.2.3").
const DIGEST_SALT: u64 = 132;

/// A guest with a USB controller and no disks.
const USB: &str = "<controller type='usb' model='qemu-xhci'/>";

fn usb(image: &std::path::Path) -> String {
    disk(image, "sda").replace("'virtio'", "'usb'")
}

/// An attach that fails with that exit code and leaves all as it was; what it says.
fn refused(host: &Host, run: &Run, guest: &str, exit: i32, disk: &str) -> String {
    let before = inventory(host, run, guest);
    let said = host.user.fails(exit, &["attach-device", guest, "-"], disk.as_bytes());
    assert_eq!(inventory(host, run, guest), before, "{said}");
    assert!(unlocked(host, guest).is_empty());
    said
}

fn attaching(host: &Host, run: &Run, guest: &str, disk: &str) -> Child {
    let attach = host.user.start(&["attach-device", guest, "-"], disk.as_bytes());
    deriving(run.supervisor());
    attach
}

fn said(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_wrong_passphrase_is_said_to_be_one() {
    let host = Host::new();
    if !can_unlock(&host) {
        return;
    }
    let (cold, hot) = (image(&host, "cold", WORTHWHILE), image(&host, "hot", WORTHWHILE));
    host.user.ok(&["secret", "set-value", SECRET], b"another passphrase");
    let said = host.fails(77, &host.guest("cold", &disk(&cold, "vda")));
    assert!(said.contains("no key slot opens") && said.contains(cold.to_str().unwrap()), "{said}");
    assert!(said.contains("vmward secret set-value") && !said.contains("another passphrase"), "{said}");

    let run = host.running(&host.guest("hot", USB));
    let said = refused(&host, &run, "hot", 77, &usb(&hot));
    assert!(said.contains("no key slot opens") && said.contains(hot.to_str().unwrap()), "{said}");
    assert!(said.contains("vmward secret set-value") && !said.contains("another passphrase"), "{said}");
    run.signal(Signal::SIGTERM);
    run.ends(0);
}

#[test]
fn an_image_that_gets_another_header_meanwhile_is_not_opened() {
    let host = Host::new();
    if !can_unlock(&host) {
        return;
    }
    let (cold, hot) = (image(&host, "cold", LONG), image(&host, "hot", LONG));
    let overwrite = |path| {
        File::options().write(true).open(path).unwrap().write_all_at(&[0x55; 32], DIGEST_SALT).unwrap();
    };
    let run = host.start(&host.guest("cold", &disk(&cold, "vda")), &[]);
    deriving(run.supervisor());
    overwrite(&cold);
    let said_cold = run.ends(75);
    assert!(said_cold.contains(&format!("{} is not the image any more", cold.display())), "{said_cold}");

    let run = host.running(&host.guest("hot", USB));
    let before = inventory(&host, &run, "hot");
    let attach = attaching(&host, &run, "hot", &usb(&hot));
    overwrite(&hot);
    let (exit, said) = said(attach);
    assert_eq!(exit, Some(75), "{said}");
    assert!(said.contains(&format!("{} is not the image any more", hot.display())), "{said}");
    assert!(said.contains("undone: block node libvirt-1-format, block node libvirt-1-storage"), "{said}");
    assert_eq!(inventory(&host, &run, "hot"), before);
    run.signal(Signal::SIGTERM);
    run.ends(0);
}

#[test]
fn an_image_on_a_server_is_opened_with_its_own_key_or_not_at_all() {
    let host = Host::new();
    if !can_unlock(&host) {
        return;
    }
    if !cfg!(debug_assertions) {
        println!("skipped: only a debug build can be stopped at a step");
        return;
    }
    let path = image(&host, "image", WORTHWHILE);
    let server = NbdServer::of(&path);
    let (cold, hot) = (server.disk("vda"), server.disk("sda").replace("'virtio'", "'usb'"));
    host.user.ok(&["secret", "set-value", SECRET], b"another passphrase");
    let wrong = format!("{} cannot be unlocked: no key slot opens", server.name());
    let said_cold = host.fails(77, &host.guest("cold", &cold));
    assert!(said_cold.contains(&wrong), "{said_cold}");
    let run = host.running(&host.guest("hot", USB));
    let said_hot = refused(&host, &run, "hot", 77, &hot);
    assert!(said_hot.contains(&wrong), "{said_hot}");
    host.user.ok(&["secret", "set-value", SECRET], PASSPHRASE.as_bytes());
    run.signal(Signal::SIGTERM);
    run.ends(0);

    // Another volume key comes there, before QEMU opens it or after that.
    let right = fs::read(&path).unwrap();
    let put =
        |bytes: &[u8], at| File::options().write(true).open(&path).unwrap().write_all_at(bytes, at).unwrap();
    let changed = format!("{} is not the image any more", server.name());
    let stopping = |guest: &str, devices: &str, at: &str| {
        host.start_with(&host.guest(guest, devices), &[], |command| {
            command.env(STOP_AT, at);
        })
    };
    let run = stopping("cold", &cold, "HeaderShown");
    run.stopped("HeaderShown");
    put(&[0x55; 32], DIGEST_SALT);
    run.signal(Signal::SIGCONT);
    let said_cold = run.ends(75);
    assert!(said_cold.contains(&changed), "{said_cold}");
    put(&right[..4096], 0);

    let mut run = stopping("hot", USB, "Unlocked");
    run.ready();
    let attach = host.user.start(&["attach-device", "hot", "-"], hot.as_bytes());
    run.stopped("Unlocked");
    put(&[0x55; 32], DIGEST_SALT);
    run.signal(Signal::SIGCONT);
    let (exit, said) = said(attach);
    assert_eq!(exit, Some(75), "{said}");
    assert!(said.contains(&changed), "{said}");
    put(&right[..4096], 0);
    // Nothing of all that is left, and nothing is in the way.
    host.user.ok(&["attach-device", "hot", "-"], hot.as_bytes());
    assert_eq!(unlocked(&host, "hot"), [("sda".to_owned(), true)]);
    host.user.ok(&["detach-device", "hot", "sda"], b"");
    assert_eq!(slow::headers_beside(run.qemu()).len(), 0);

    // QEMU has one NBD server. Whoever uses it goes on doing so, and QEMU opens the image by itself.
    let address = json!({ "type": "unix", "data": { "path": host.path("own.sock") } });
    qmp(&host, "hot", "nbd-server-start", json!({ "addr": address }));
    host.user.ok(&["attach-device", "hot", "-"], hot.as_bytes());
    assert_eq!(unlocked(&host, "hot"), [("sda".to_owned(), false)]);
    qmp(&host, "hot", "nbd-server-stop", json!({}));
    host.user.ok(&["detach-device", "hot", "sda"], b"");

    drop(server);
    let said_hot = refused(&host, &run, "hot", 69, &hot);
    assert!(said_hot.contains("Connection refused"), "{said_hot}");
    run.signal(Signal::SIGTERM);
    run.ends(0);
    let said_cold = host.fails(69, &host.guest("cold", &cold));
    assert!(said_cold.contains("Connection refused"), "{said_cold}");
}

#[test]
fn an_image_that_comes_to_the_path_meanwhile_is_not_opened() {
    let host = Host::new();
    if !can_unlock(&host) {
        return;
    }
    let (path, other) = (image(&host, "image", LONG), image(&host, "other", WORTHWHILE));
    let real = host.path("moved");
    let run = host.start(&host.guest("swap", &disk(&path, "vda")), &[]);
    let mut run = run;
    deriving(run.supervisor());
    fs::rename(&path, &real).unwrap();
    fs::rename(&other, &path).unwrap();
    run.ready();
    let opened = fs::read_dir(format!("/proc/{}/fd", run.qemu())).unwrap().filter_map(Result::ok);
    let opened: Vec<_> = opened.filter_map(|e| fs::read_link(e.path()).ok()).collect();
    assert!(opened.contains(&real) && !opened.contains(&path), "{opened:?}");
    run.signal(Signal::SIGTERM);
    run.ends(0);
}

#[test]
fn a_start_is_ended_or_killed_while_it_unlocks() {
    let host = Host::new();
    if !can_unlock(&host) {
        return;
    }
    // Nobody waits for that to be done.
    let image = image(&host, "image", WORTHWHILE);
    let endless = host.path("endless");
    fs::copy(&image, &endless).unwrap();
    let mut header = slow::header(&endless);
    header.slots[0].iterations = u32::MAX;
    File::options().write(true).open(&endless).unwrap().write_all_at(&header.encode(), 0).unwrap();
    let guest = host.guest("ended", &disk(&endless, "vda"));
    // QEMU starts meanwhile, and waits.
    let waiting = || {
        let run = host.start(&guest, &[]);
        deriving(run.supervisor());
        wait_until("there is no QEMU", || !bare::processes_of(run.lib_dir()).is_empty());
        run
    };
    let run = waiting();
    run.signal(Signal::SIGTERM);
    run.ends(143);

    let run = waiting();
    let lib_dir = run.lib_dir().to_owned();
    let [qemu] = bare::processes_of(&lib_dir)[..] else { panic!("more than one QEMU") };
    kill(Pid::from_raw(qemu), Signal::SIGKILL).unwrap();
    let ended = run.ended();
    assert_eq!(ended.status.code(), Some(69), "{}", ended.said);
    nothing_left(&lib_dir);

    let run = waiting();
    run.signal(Signal::SIGKILL);
    run.ended();
    assert_eq!(bare::processes_of(&lib_dir).len(), 1);
    let run = host.running(&host.guest("ended", &disk(&image, "vda")));
    assert_eq!(bare::processes_of(&lib_dir), [run.qemu()]);
    run.signal(Signal::SIGTERM);
    assert!(run.ends(0).contains("was wiped"));
}

#[test]
fn an_image_that_ends_in_its_key_material_is_said_to() {
    let host = Host::new();
    if !can_unlock(&host) {
        return;
    }
    let short = image(&host, "short", WORTHWHILE);
    File::options().write(true).open(&short).unwrap().set_len(8192).unwrap();
    let said = host.fails(69, &host.guest("short", &disk(&short, "vda")));
    assert!(said.contains("could not be unlocked") && said.contains("key material"), "{said}");
    assert!(said.contains("--unlock=qemu"), "{said}");
    let run = host.running(&host.guest("short", USB));
    let before = inventory(&host, &run, "short");
    let said = host.user.fails(65, &["attach-device", "short", "-"], usb(&short).as_bytes());
    assert!(said.contains("could not be unlocked") && said.contains("key material"), "{said}");
    assert_eq!(inventory(&host, &run, "short"), before);
    run.signal(Signal::SIGTERM);
    run.ends(0);
}

#[test]
fn a_supervisor_is_killed_while_a_disk_is_plugged_in() {
    let host = Host::new();
    if !can_unlock(&host) {
        return;
    }
    let guest = host.guest("killed", USB);
    let mut run = host.running(&guest);
    let before = inventory(&host, &run, "killed");
    let slow = usb(&image(&host, "image", LONG));
    let attach = attaching(&host, &run, "killed", &slow);
    run.signal(Signal::SIGKILL);
    run.ended();
    assert_ne!(said(attach).0, Some(0));
    run = host.running(&guest);
    assert_eq!(inventory(&host, &run, "killed"), before);
    host.user.ok(&["attach-device", "killed", "-"], slow.as_bytes());
    assert_eq!(unlocked(&host, "killed"), [("sda".to_owned(), true)]);
    run.signal(Signal::SIGTERM);
    run.ends(0);
}

#[test]
fn what_a_supervisor_that_was_killed_had_made_of_a_disk_is_removed() {
    let host = Host::new();
    if !bare::has_qemu_img() {
        return;
    }
    let guest = host.guest("cut", USB);
    let mut run = host.start(&guest, &["--unlock=qemu"]);
    run.ready();
    let before = inventory(&host, &run, "cut");
    // QEMU answers the next supervisor when it has derived it.
    let path = image(&host, "image", LONG / 3);
    let attach = host.user.start(&["attach-device", "cut", "-"], usb(&path).as_bytes());
    // QEMU has the storage node, and begins to derive the key.
    let opened = || {
        let open = fs::read_dir(format!("/proc/{}/fd", run.qemu())).unwrap().filter_map(Result::ok);
        open.filter_map(|e| fs::read_link(e.path()).ok()).any(|file| file == path)
    };
    wait_until("QEMU does not open the image", opened);
    run.signal(Signal::SIGKILL);
    run.ended();
    assert_ne!(said(attach).0, Some(0));
    run = host.running(&guest);
    assert_eq!(inventory(&host, &run, "cut"), before);
    host.user.ok(&["attach-device", "cut", "-"], usb(&path).as_bytes());
    run.signal(Signal::SIGTERM);
    assert!(run.ends(0).contains("was killed in the middle of a change"));
}

#[test]
fn qemu_dies_while_a_disk_is_plugged_in() {
    let host = Host::new();
    if !can_unlock(&host) {
        return;
    }
    let run = host.running(&host.guest("dies", USB));
    let attach = attaching(&host, &run, "dies", &usb(&image(&host, "image", LONG)));
    let (qemu, lib_dir) = (run.qemu(), run.lib_dir().to_owned());
    kill(Pid::from_raw(qemu), Signal::SIGKILL).unwrap();
    let ended = run.ended();
    assert_eq!(ended.status.code(), Some(137), "{}", ended.said);
    assert_ne!(said(attach).0, Some(0));
    nothing_left(&lib_dir);
}

#[test]
fn each_step_that_fails_is_undone_and_named() {
    let host = Host::new();
    if !can_unlock(&host) {
        return;
    }
    let run = host.running(&host.guest("steps", USB));
    let disk = usb(&image(&host, "image", WORTHWHILE));
    let ask = |command: &str, arguments: Value| qmp(&host, "steps", command, arguments);

    let secret = "libvirt-1-format-encryption-secret0";
    ask("object-add", json!({ "qom-type": "iothread", "id": secret }));
    let said = refused(&host, &run, "steps", 69, &disk);
    assert!(said.contains(&format!("object {secret} could not be made")), "{said}");
    ask("object-del", json!({ "id": secret }));

    // The node with the header is made with the one that uses it.
    for (taken, named, undone) in [
        // With the header beside it the other node opens whatever is below.
        ("libvirt-1-storage", "libvirt-1-storage", "block node libvirt-1-format, "),
        ("libvirt-1-header", "libvirt-1-format", "block node libvirt-1-storage, "),
        ("libvirt-1-format", "libvirt-1-format", "block node libvirt-1-storage, "),
    ] {
        ask("blockdev-add", json!({ "driver": "null-co", "node-name": taken }));
        let said = refused(&host, &run, "steps", 69, &disk);
        assert!(said.contains(&format!("block node {named} could not be made")), "{said}");
        let sets = "descriptor set 1, descriptor set 0, ";
        assert!(said.contains(&format!("undone: {undone}{sets}object {secret}\n")), "{said}");
        ask("blockdev-del", json!({ "node-name": taken }));
    }

    ask("device_add", json!({ "driver": "usb-tablet", "id": "ua-mine" }));
    let said = refused(&host, &run, "steps", 69, &disk.replace("</disk>", "<alias name='ua-mine'/></disk>"));
    assert!(said.contains("device ua-mine could not be made"), "{said}");
    ask("device_del", json!({ "id": "ua-mine" }));
    wait_until("the tablet stays", || {
        !ask("qom-list", json!({ "path": "/machine/peripheral" })).to_string().contains("ua-mine")
    });

    host.user.ok(&["attach-device", "steps", "-"], disk.as_bytes());
    // The image is in use now, by whom it is not said.
    let before = inventory(&host, &run, "steps");
    let second = disk.replace("'sda'", "'sdb'");
    let said = host.user.fails(75, &["attach-device", "steps", "-"], second.as_bytes());
    assert!(said.contains("lock"), "{said}");
    assert_eq!(inventory(&host, &run, "steps"), before);
    run.signal(Signal::SIGTERM);
    run.ends(0);
}

#[test]
fn what_is_unusual_is_left_to_qemu() {
    let host = Host::new();
    if !can_unlock(&host) {
        return;
    }
    let path = image(&host, "image", WORTHWHILE);
    // A slot that is not in use, over the one that is: harmless to QEMU's eyes or not, it is for QEMU to say.
    let mut header = slow::header(&path);
    header.slots[7].stripes = 3999;
    File::options().write(true).open(&path).unwrap().write_all_at(&header.encode(), 0).unwrap();
    let said = host.fails(69, &host.guest("unusual", &disk(&path, "vda")));
    assert!(said.contains("QEMU did not start the guest"), "{said}");
    // Behind an overlay it has to stay possible to open it for writing, for a commit.
    let base = image(&host, "base", WORTHWHILE);
    let overlay = host.image("overlay", "qcow2", true);
    let xml = bare::disk(&overlay, "qcow2", Some(SECRET)).replace(
        "</disk>",
        &format!(
            "<backingStore type='file'><format type='raw'/><source file='{}'><encryption format='luks'>\
             <secret type='passphrase' uuid='{SECRET}'/></encryption></source></backingStore></disk>",
            base.display()
        ),
    );
    let run = host.running(&host.guest("behind", &xml));
    assert_eq!(unlocked(&host, "behind"), [("vda".to_owned(), false)]);
    run.signal(Signal::SIGTERM);
    run.ends(0);
}

#[test]
fn neither_key_nor_passphrase_stays_in_the_supervisor() {
    let host = Host::new();
    if !can_unlock(&host) {
        return;
    }
    let images = ["cold", "hot", "served"].map(|name| image(&host, name, WORTHWHILE));
    let keys: Option<Vec<_>> = images.iter().map(|image| volume_key(image)).collect();
    let Some(keys) = keys else { return };
    let [cold, hot, served] = &images;
    let server = NbdServer::of(served);
    let run = host.running(&host.guest("memory", &disk(cold, "vda")));
    for disk in [disk(hot, "vdb"), server.disk("vdc")] {
        host.user.ok(&["attach-device", "memory", "-"], disk.as_bytes());
    }
    let by = ["vda", "vdb", "vdc"].map(|target| (target.to_owned(), true));
    assert_eq!(unlocked(&host, "memory"), by);
    let Some(memory) = memory_of(run.supervisor()) else { return };
    // The reader sees what is there.
    let master_key = fs::read(run.lib_dir().join("master-key.aes")).unwrap();
    assert_eq!(count(&memory, &master_key), 1);
    for (key, name) in keys.iter().zip(["cold", "hot", "served"]) {
        assert_eq!(key.len(), 64);
        for half in key.chunks(32) {
            assert_eq!(count(&memory, half), 0, "the volume key of {name}");
        }
    }
    let padded = |pad: u8| PASSPHRASE.bytes().map(|b| b ^ pad).collect::<Vec<_>>();
    for (pad, what) in [(0, "the passphrase"), (0x36, "HMAC's inner key"), (0x5c, "HMAC's outer key")] {
        assert_eq!(count(&memory, &padded(pad)), 0, "{what}");
    }
    run.signal(Signal::SIGTERM);
    run.ends(0);
}

/// All that a process could have written a value to.
fn memory_of(process: i32) -> Option<Vec<u8>> {
    let Ok(memory) = File::open(format!("/proc/{process}/mem")) else {
        println!("skipped: only root looks into the memory of vmward");
        return None;
    };
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let mut all = Vec::new();
    for line in maps.lines().filter(|l| l.contains(" rw")) {
        let (start, end) = line.split_whitespace().next().unwrap().split_once('-').unwrap();
        let number = |hex| u64::from_str_radix(hex, 16).unwrap();
        let (start, end) = (number(start), number(end));
        let mut part = vec![0; usize::try_from(end - start).unwrap()];
        if memory.read_exact_at(&mut part, start).is_ok() {
            all.extend(part);
        }
    }
    Some(all)
}

fn count(haystack: &[u8], needle: &[u8]) -> usize {
    haystack.windows(needle.len()).filter(|w| w[0] == needle[0] && *w == needle).count()
}
