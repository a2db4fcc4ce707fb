//! A supervisor that is killed, and one whose QEMU is killed, at every step of everything it does: no key, no process, no
//! lock, no half-plugged disk is left, every image opens, and a guest whose QEMU lives is under control again.
//!
//! Debug builds stop themselves at a step when the environment says so ([`Checkpoint`]).
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod bare;
mod images;
mod slow;
mod steps;
mod user;
mod vnc;

use std::cell::RefCell;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use vmward::supervisor::{Checkpoint, STOP_AT};

use Checkpoint::*;
use bare::{Host, PASSPHRASE, Run, helpers_of, installed, nothing_left, objects, processes_of, ssh_disk};
use images::image_options;
use steps::*;
use user::wait_until;
use vnc::{Login, login};

#[test]
fn no_step_is_left_out() {
    let tables = [
        HALF_STARTED,
        STARTED,
        ATTACH,
        ATTACH_SERVED,
        ATTACH_WITH_HELPER,
        DETACH,
        REKEY_RAW,
        REKEY_QCOW2,
        SNAPSHOT,
        MERGE,
        RESIZE,
        EXCHANGE,
        INSERT,
        EJECT,
        PASSWORD,
        CERTIFICATES,
        STOP,
        STOPPED,
    ];
    for step in Checkpoint::ALL {
        assert!(
            tables.iter().any(|table| table.iter().any(|(s, times)| *s == step && *times > 0)),
            "{step:?}"
        );
    }
}

#[test]
fn start_supervisor_killed() {
    if !can_stop() {
        return;
    }
    let host = Host::new();
    let guest = host.encrypted_guest("start");
    let image = host.path("start.qcow2");
    for (n, (_, at)) in each(HALF_STARTED).chain(each(STARTED)).enumerate() {
        let run = start(&host, &guest, &at);
        run.stopped(&at);
        let lib_dir = run.lib_dir().to_owned();
        let runs = STARTED.iter().any(|(step, _)| at.starts_with(&format!("{step:?}")));
        let qemu = runs.then(|| run.qemu());
        bereave(run);
        if !runs && n % 2 == 0 {
            host.user.ok(&["doctor", "--fix"], b"");
            nothing_left(&lib_dir);
        } else {
            let run = host.running(&guest);
            assert_eq!(processes_of(&lib_dir), [run.qemu()], "{at}");
            assert!(qemu.is_none_or(|qemu| qemu == run.qemu()), "{at}");
            let status = slow::qmp(&host, "start", "query-status", json!({}));
            assert_eq!(status["status"], "running", "{at}");
            let objects = slow::qmp(&host, "start", "qom-list", json!({ "path": "/objects" }));
            assert!(!objects.to_string().contains("secret0"), "{at}: {objects}");
            ends(run);
        }
        is_intact(&image, "qcow2", PASSPHRASE, &at);
    }
}

#[test]
fn start_qemu_killed() {
    if !can_stop() {
        return;
    }
    let host = Host::new();
    let guest = host.encrypted_guest("start");
    for (step, at) in each(HALF_STARTED).chain(each(STARTED)) {
        if WITHOUT_QEMU.contains(&step) {
            continue;
        }
        let run = start(&host, &guest, &at);
        run.stopped(&at);
        orphan(run, &at);
        is_intact(&host.path("start.qcow2"), "qcow2", PASSPHRASE, &at);
    }
}

#[test]
fn stop_killed() {
    if !can_stop() {
        return;
    }
    let host = Host::new();
    let guest = host.encrypted_guest("stop");
    for (step, at) in each(STOP).chain(each(STOPPED)) {
        if at == "KeyOverwritten:1" {
            // That is at the start, where there is none.
            continue;
        }
        let stopping = || {
            // A guest that is to be found again is not told to quit meanwhile.
            let patience = if step == PowerButton { "3600" } else { "0" };
            let mut run = host.start_with(&guest, &["--stop-timeout", patience], |command| {
                command.env(STOP_AT, &at);
            });
            run.ready();
            run.signal(Signal::SIGTERM);
            run.stopped(&at);
            run
        };
        let run = stopping();
        let lib_dir = run.lib_dir().to_owned();
        bereave(run);
        match step {
            // The guest goes on: this one never answers the power button.
            PowerButton | Quit => {
                let run = host.running(&guest);
                assert_eq!(processes_of(&lib_dir), [run.qemu()]);
                ends(run);
            }
            // Nothing is left to be done.
            Ended => nothing_left(&lib_dir),
            _ => {
                wait_until("QEMU does not quit", || processes_of(&lib_dir).is_empty());
                host.user.ok(&["doctor", "--fix"], b"");
                nothing_left(&lib_dir);
            }
        }
        is_intact(&host.path("stop.qcow2"), "qcow2", PASSPHRASE, &at);
        if STOP.iter().any(|(s, _)| *s == step) {
            orphan(stopping(), &at);
            is_intact(&host.path("stop.qcow2"), "qcow2", PASSPHRASE, &at);
        }
    }
}

#[test]
fn attach_killed() {
    if !can_stop() {
        return;
    }
    let scene = Scene::new("qcow2");
    let other = slow::image(&scene.host, "other", slow::WORTHWHILE);
    let disk = slow::disk(&other, "sdb").replace("bus='virtio'", "bus='scsi'");
    let run = scene.host.running(&scene.guest);
    let before = scene.inventory(&run);
    ends(run);
    let steps = match slow::can_unlock(&scene.host) {
        true => ATTACH,
        // No descriptors, and no header beside the image.
        false => &[
            (BackendSent, 1),
            (ObjectAdded, 1),
            (NodeAdded, 2),
            (DeviceAdded, 1),
            (Undone, 1),
            (AttachSaved, 1),
        ],
    };
    let again = |run: &Run, at: &str| {
        // All or nothing.
        let attach = || scene.host.user.ok(&["attach-device", "guest", "-"], disk.as_bytes());
        let detach = || scene.host.user.ok(&["detach-device", "guest", "sdb"], b"");
        if !scene.targets().contains(&"sdb".to_owned()) {
            comes_to(&scene, run, &before, at);
            attach();
        }
        detach();
        comes_to(&scene, run, &before, at);
    };
    scene.at_each(steps, &["attach-device", "guest", "-"], &disk, again, || {});
    is_intact(&other, "raw", PASSPHRASE, "in the end");
}

#[test]
fn attach_of_an_image_on_a_server_killed() {
    if !can_stop() {
        return;
    }
    let scene = Scene::new("qcow2");
    if !slow::can_unlock(&scene.host) {
        return;
    }
    let other = slow::image(&scene.host, "other", slow::WORTHWHILE);
    let server = slow::NbdServer::of(&other);
    let disk = server.disk("sdb").replace("bus='virtio'", "bus='scsi'");
    let run = scene.host.running(&scene.guest);
    let before = scene.inventory(&run);
    ends(run);
    let attach = ["attach-device", "guest", "-"];
    let again = |run: &Run, at: &str| {
        // Nobody is shown anything any more, by what served it.
        let address = json!({ "type": "unix", "data": { "path": scene.host.path("own.sock") } });
        slow::qmp(&scene.host, "guest", "nbd-server-start", json!({ "addr": address }));
        slow::qmp(&scene.host, "guest", "nbd-server-stop", json!({}));
        comes_to(&scene, run, &before, at);
        scene.host.user.ok(&attach, disk.as_bytes());
        scene.host.user.ok(&["detach-device", "guest", "sdb"], b"");
        comes_to(&scene, run, &before, at);
    };
    scene.at_each(ATTACH_SERVED, &attach, &disk, again, || {});
    // At a start QEMU has not run the guest by then, and is ended.
    let guest = scene.host.guest("served", &server.disk("vda"));
    for killed in [true, false] {
        let run = start(&scene.host, &guest, "HeaderShown:1");
        run.stopped("HeaderShown:1");
        match killed {
            true => bereave(run),
            false => orphan(run, "HeaderShown:1"),
        }
        ends(scene.host.running(&guest));
    }
    drop(server);
    is_intact(&other, "raw", PASSPHRASE, "in the end");
}

#[test]
fn attach_of_an_image_that_a_helper_serves_killed() {
    if !can_stop() || !installed(&["nbdkit"]) {
        return;
    }
    let scene = Scene::new("qcow2");
    let disk = ssh_disk(&scene.host, "sdb", "scsi");
    let run = scene.host.running(&scene.guest);
    let before = scene.inventory(&run);
    ends(run);
    let attach = ["attach-device", "guest", "-"];
    let again = |run: &Run, at: &str| {
        assert_eq!(helpers_of(run.lib_dir()), [0; 0], "{at}");
        let said = scene.host.user.fails(69, &attach, disk.as_bytes());
        assert!(said.contains("Connection refused"), "{said}");
        assert_eq!(helpers_of(run.lib_dir()), [0; 0], "{at}");
        assert_eq!(scene.inventory(run), before, "{at}");
    };
    scene.at_each(ATTACH_WITH_HELPER, &attach, &disk, again, || {});
}

#[test]
fn detach_killed() {
    if !can_stop() {
        return;
    }
    let scene = Scene::new("qcow2");
    let run = scene.host.running(&scene.guest);
    scene.host.user.ok(&["detach-device", "guest", "sda"], b"");
    let after = scene.inventory(&run);
    ends(run);
    let again = |run: &Run, at: &str| {
        comes_to(&scene, run, &after, at);
        wait_until(&format!("{at}: the disk is still known"), || scene.targets().is_empty());
    };
    scene.at_each(DETACH, &["detach-device", "guest", "sda"], "", again, || {});
}

fn rekey_killed(format: &'static str, steps: Steps) {
    if !can_stop() {
        return;
    }
    let scene = Scene::new(format);
    let rekey = ["volume", "rekey", "--domain", "guest", "sda"];
    let run = scene.host.running(&scene.guest);
    let before = scene.inventory(&run);
    ends(run);
    let value = RefCell::new(scene.value());
    let is_new = |at: &str| assert_ne!(value.replace(scene.value()), scene.value(), "{at}");
    let again = |run: &Run, at: &str| {
        comes_to(&scene, run, &before, at);
        scene.host.user.ok(&rekey, b"");
        is_new(at);
        assert_eq!(scene.inventory(run), before, "{at}");
        let jobs = slow::qmp(&scene.host, "guest", "query-jobs", json!({}));
        assert_eq!(jobs, json!([]), "{at}");
    };
    scene.at_each(steps, &rekey, "", again, || {
        scene.host.user.ok(&["volume", "rekey", scene.path()], b"");
        is_new("at rest");
    });
}

#[test]
fn rekey_of_a_raw_disk_killed() {
    rekey_killed("raw", REKEY_RAW);
}

#[test]
fn rekey_of_a_qcow2_disk_killed() {
    rekey_killed("qcow2", REKEY_QCOW2);
}

#[test]
fn snapshot_killed() {
    if !can_stop() {
        return;
    }
    for (step, at) in each(SNAPSHOT) {
        let scene = Scene::new("qcow2");
        let overlay = scene.host.path("disk.one.qcow2");
        let create = ["snapshot", "create", "guest", "one"];
        let mut run = start(&scene.host, &scene.guest, &at);
        run.ready();
        let before = scene.inventory(&run);
        let client = scene.host.user.start(&create, b"");
        run.stopped(&at);
        bereave(run);
        returns(client, true, &at);
        let run = scene.host.running(&scene.guest);
        // All or nothing: what the guest writes to is what the XML says.
        let dumped = String::from_utf8(scene.host.user.ok(&["dumpxml", "guest"], b"")).unwrap();
        let blocks = slow::qmp(&scene.host, "guest", "query-block", json!({}));
        let written = blocks[0]["inserted"]["backing_file_depth"] == 1;
        assert_eq!(dumped.contains("disk.one.qcow2"), written, "{at}: {blocks}");
        assert_eq!(written, [SwitchSaved, Switched].contains(&step), "{at}");
        if !written {
            comes_to(&scene, &run, &before, &at);
        }
        assert_eq!(overlay.exists(), written, "{at}");
        scene.host.user.ok(&["snapshot", "create", "guest", "two"], b"");
        ends(run);
        is_intact(&scene.image, "qcow2", &scene.value(), &at);
        if written {
            // What is below needs the key as well, which its header does not say.
            let below = image_options(scene.path(), "qcow2");
            let below: Vec<String> = below.split(',').map(|option| format!("backing.{option}")).collect();
            let options = PathBuf::from(format!("{},{}", overlay.display(), below.join(",")));
            is_intact(&options, "qcow2", &scene.value(), &at);
        }

        let scene = Scene::new("qcow2");
        let mut run = start(&scene.host, &scene.guest, &at);
        run.ready();
        let client = scene.host.user.start(&create, b"");
        run.stopped(&at);
        orphan(run, &at);
        returns(client, false, &at);
        is_intact(&scene.image, "qcow2", &scene.value(), &at);
        // What the guest may have written to stays.
        assert_eq!(scene.host.path("disk.one.qcow2").exists(), step == Switched, "{at}");
    }
}

#[test]
fn snapshot_whose_guest_is_killed_as_well() {
    if !can_stop() {
        return;
    }
    let scene = Scene::new("qcow2");
    let overlay = scene.host.path("disk.one.qcow2");
    for at in ["OverlayMade", "OverlaysOpened"] {
        let mut run = start(&scene.host, &scene.guest, at);
        run.ready();
        let lib_dir = run.lib_dir().to_owned();
        let client = scene.host.user.start(&["snapshot", "create", "guest", "one"], b"");
        run.stopped(at);
        assert!(overlay.exists());
        let qemu = run.qemu();
        bereave(run);
        returns(client, true, at);
        kill(Pid::from_raw(qemu), Signal::SIGKILL).unwrap();
        wait_until("QEMU does not go", || processes_of(&lib_dir).is_empty());
        scene.host.user.ok(&["doctor", "--fix"], b"");
        nothing_left(&lib_dir);
        assert!(!overlay.exists(), "{at}");
        is_intact(&scene.image, "qcow2", &scene.value(), at);
    }
}

#[test]
fn merge_killed() {
    if !can_stop() {
        return;
    }
    let scene = Scene::new("qcow2");
    let overlay = scene.host.path("disk.one.qcow2");
    let delete = ["snapshot", "delete", "guest", "one"];
    let at_rest = scene.host.running(&scene.guest);
    let before = scene.inventory(&at_rest);
    ends(at_rest);
    for (step, at) in each(MERGE) {
        // With a snapshot that another supervisor has made, whose steps do not count.
        let midway = || {
            let run = scene.host.running(&scene.guest);
            scene.host.user.ok(&["snapshot", "create", "guest", "one"], b"");
            bereave(run);
            let mut run = start(&scene.host, &scene.guest, &at);
            run.ready();
            let client = scene.host.user.start(&delete, b"");
            run.stopped(&at);
            (run, client)
        };
        let (run, client) = midway();
        bereave(run);
        returns(client, true, &at);
        let run = scene.host.running(&scene.guest);
        let dumped = String::from_utf8(scene.host.user.ok(&["dumpxml", "guest"], b"")).unwrap();
        let blocks = slow::qmp(&scene.host, "guest", "query-block", json!({}));
        let is_there = step == MergeAnnounced;
        assert_eq!(dumped.contains("disk.one.qcow2"), is_there, "{at}");
        assert_eq!(blocks[0]["inserted"]["backing_file_depth"] == 1, is_there, "{at}: {blocks}");
        assert_eq!(overlay.exists(), is_there, "{at}");
        if is_there {
            // QEMU has begun, and waits to be told to complete it.
            let job = json!({ "device": top(&blocks), "job-id": "vmward-commit-sda", "auto-dismiss": false });
            slow::qmp(&scene.host, "guest", "block-commit", job);
            bereave(run);
            let run = scene.host.running(&scene.guest);
            assert_eq!(slow::qmp(&scene.host, "guest", "query-jobs", json!({})), json!([]));
            scene.host.user.ok(&delete, b"");
            assert!(!overlay.exists());
            comes_to(&scene, &run, &before, &at);
            ends(run);
        } else {
            comes_to(&scene, &run, &before, &at);
            ends(run);
        }
        is_intact(&scene.image, "qcow2", &scene.value(), &at);

        if step == OverlayRemoved {
            // There is nothing left to be done.
            continue;
        }
        let (run, client) = midway();
        orphan(run, &at);
        returns(client, false, &at);
        assert_eq!(overlay.exists(), is_there, "{at}");
        if is_there {
            std::fs::remove_file(&overlay).unwrap();
        }
        is_intact(&scene.image, "qcow2", &scene.value(), &at);
    }
}

/// The topmost node of the only disk.
fn top(blocks: &Value) -> String {
    let nodes = blocks.as_array().unwrap().iter();
    nodes.filter_map(|block| block["inserted"]["node-name"].as_str()).next().unwrap().to_owned()
}

#[test]
fn resize_killed() {
    if !can_stop() {
        return;
    }
    let scene = Scene::new("qcow2");
    let resize = ["blockresize", "guest", "sda", "24M"];
    let again = |_: &Run, _: &str| drop(scene.host.user.ok(&resize, b""));
    scene.at_each(RESIZE, &resize, "", again, || {});
}

/// The size of what is in the drive.
fn medium(scene: &Scene) -> Option<u64> {
    let blocks = slow::qmp(&scene.host, "guest", "query-block", json!({}));
    let drive = blocks.as_array().unwrap().iter().find(|block| block.get("tray_open").is_some()).unwrap();
    assert_eq!(drive["tray_open"], false, "{drive}");
    drive.get("inserted").map(|inserted| inserted["image"]["virtual-size"].as_u64().unwrap())
}

#[test]
fn change_of_a_medium_killed() {
    if !can_stop() {
        return;
    }
    let scene = Scene::new("qcow2");
    let old = user::disk(&scene.host.user, "old.luks", "sdb", "scsi").replace("='disk'", "='cdrom'");
    let new = old.replace("old.luks", "new.luks");
    std::fs::copy(scene.host.path("old.luks"), scene.host.path("new.luks")).unwrap();
    File::options().append(true).open(scene.host.path("new.luks")).unwrap().write_all(&[0; 4096]).unwrap();
    // The firmware locks the tray for the moment that it looks for a system.
    let change = ["change-media", "--force", "guest", "sdb", "-"];
    let eject = ["change-media", "--force", "--eject", "guest", "sdb"];

    scene.add(&old);
    let run = scene.host.running(&scene.guest);
    let with_old = medium(&scene);
    scene.host.user.ok(&eject, b"");
    let empty = scene.inventory(&run);
    scene.host.user.ok(&change, new.as_bytes());
    let with_new = medium(&scene);
    ends(run);
    assert_ne!(with_old, with_new);

    let killed = |steps: Steps, args: &[&str], before: Option<u64>, after: Option<u64>| {
        let again = |run: &Run, at: &str| {
            // All or nothing.
            let is_saved = ["MediumSaved:1", "Undone:2", "Undone:3", "Undone:4"].contains(&at);
            let expected = if is_saved { after } else { before };
            assert_eq!(medium(&scene), expected, "{at}");
            let dumped = String::from_utf8(scene.host.user.ok(&["dumpxml", "guest"], b"")).unwrap();
            for (medium, name) in [(with_old, "old.luks"), (with_new, "new.luks")] {
                assert_eq!(dumped.contains(name), expected == medium, "{at}: {dumped}");
            }
            scene.host.user.ok(&change, new.as_bytes());
            scene.host.user.ok(&eject, b"");
            assert_eq!(scene.inventory(run), empty, "{at}");
        };
        scene.at_each(steps, args, &new, again, || {});
    };
    killed(EXCHANGE, &change, with_old, with_new);
    killed(EJECT, &eject, with_old, None);
    scene.replace(&old, "<disk type='file' device='cdrom'><target dev='sdb' bus='scsi'/></disk>");
    killed(INSERT, &change, None, with_new);
}

#[test]
fn change_of_a_password_killed() {
    if !can_stop() {
        return;
    }
    let scene = Scene::new("qcow2");
    let socket = scene.host.path("vnc.sock");
    let password = scene.host.user.define("<usage type='iscsi'><target>console</target></usage>");
    scene.host.user.ok(&["secret", "set-value", &password], b"old");
    scene.add(&format!(
        "<graphics type='vnc'><listen type='socket' socket='{}'/><secret type='passphrase' uuid='{password}'/></graphics>",
        socket.display()
    ));
    let lets_in = |password: &str| login(&socket, password) == Login::In;
    let set = ["set-password", "guest", "vnc", "--expires", "2105-01-01T00:00:00"];
    let again = |_: &Run, at: &str| {
        // Nobody gets in before all is done.
        assert!(!lets_in("old"), "{at}");
        assert_eq!(lets_in("new"), at == "ExpirySet:1", "{at}");
        assert_eq!(objects(&scene.host), ["masterKey0"], "{at}");
        scene.host.user.ok(&set, b"again");
        assert!(lets_in("again") && !lets_in("new"), "{at}");
    };
    scene.at_each(PASSWORD, &set, "new", again, || {});
}
