//! `vmward volume rekey --domain`: new keys for disks that a real QEMU runs from, every way in which that is refused, and
//! what opens them afterwards.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod bare;
mod images;
mod machine;
mod user;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use bare::{Host, PASSPHRASE, SECRET, has_qemu_img};
use images::opens;
use machine::Machine;
use user::{User, disk};

const REKEY: [&str; 5] = ["volume", "rekey", "--domain", "guest", "sda"];

fn machine() -> Machine {
    Machine::start("<controller type='scsi' model='virtio-scsi'/>")
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

fn path(user: &User, name: &str) -> String {
    user.home.path().join(name).to_str().unwrap().to_owned()
}

fn value(user: &User, secret: &str) -> String {
    text(user.ok(&["secret", "get-value", secret], b""))
}

fn secrets(user: &User) -> usize {
    let list: Value = serde_json::from_slice(&user.ok(&["secret", "list", "--json"], b"")).unwrap();
    list.as_array().unwrap().len()
}

/// The key slots that the volume's secret opens, from the image's header, guest or not.
fn tried(user: &User, path: &str) -> Value {
    let info = user.ok(&["volume", "info", path, "--try", "--json"], b"");
    serde_json::from_slice::<Value>(&info).unwrap()["secret-opens"].clone()
}

fn objects(guest: &Machine) -> Vec<String> {
    let list = guest.qmp("qom-list", &json!({ "path": "/objects" }));
    list.as_array().unwrap().iter().map(|o| o["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_disk_in_use_gets_a_new_key_and_goes_out_and_in_again() {
    if !has_qemu_img() {
        return;
    }
    let guest = machine();
    for (name, format) in [("a.luks", "raw"), ("b.qcow2", "qcow2")] {
        let user = &guest.user;
        let disk = disk(user, name, "sda", "scsi");
        let path = path(user, name);
        let old = value(user, &path);
        guest.attach(&disk);
        let before = objects(&guest);
        user.ok(&REKEY, b"");
        let new = value(user, &path);
        assert_ne!(old, new);
        assert_eq!(tried(user, &path), json!([1]), "{name}");
        // One that somebody chose, and costs QEMU time.
        user.ok(&[&REKEY[..], &["--stdin"]].concat(), b"chosen by somebody");
        assert_eq!(value(user, &path), "chosen by somebody");
        assert_eq!(tried(user, &path), json!([0]), "{name}");
        user.ok(&REKEY, b"");
        assert_eq!(objects(&guest), before, "a secret is left in QEMU");
        assert_eq!(secrets(user), if format == "raw" { 1 } else { 2 });
        user.ok(&["detach-device", "guest", "sda"], b"");
        assert_eq!(opens(&path, format, &value(user, &path)), Ok(()), "{name}");
        for gone in [old.as_str(), &new, "chosen by somebody"] {
            assert!(opens(&path, format, gone).is_err(), "{name}: an old value opens it");
        }
        guest.attach(&disk);
        user.ok(&["detach-device", "guest", "sda"], b"");
    }
    guest.end();
}

#[test]
fn a_guest_starts_with_what_it_was_given_while_it_ran_and_a_supervisor_that_comes_back_does_it_again() {
    if !has_qemu_img() {
        return;
    }
    for format in ["raw", "qcow2"] {
        let host = Host::new();
        let image = host.image("web", format, true);
        let guest = host.guest("web1", &bare::disk(&image, format, Some(SECRET)));
        let run = host.running(&guest);
        let rekey = ["volume", "rekey", "--domain", "web1", "vda"];
        host.user.ok(&rekey, b"");
        let first = value(&host.user, SECRET);
        assert_ne!(first, PASSPHRASE);
        // The supervisor goes, the guest stays, and another supervisor takes it back.
        run.signal(Signal::SIGKILL);
        run.ended();
        let run = host.running(&guest);
        host.user.ok(&rekey, b"");
        assert_ne!(value(&host.user, SECRET), first);
        host.user.ok(&["destroy", "web1"], b"");
        run.ends(0);
        let run = host.running(&guest);
        host.user.ok(&["destroy", "web1"], b"");
        run.ends(0);
        let image = image.to_str().unwrap();
        assert_eq!(opens(image, format, &value(&host.user, SECRET)), Ok(()));
        assert!(opens(image, format, PASSPHRASE).is_err());
        assert!(opens(image, format, &first).is_err());
    }
}

#[test]
fn the_command_killed_at_random_moments_leaves_what_opens() {
    if !has_qemu_img() {
        return;
    }
    let guest = machine();
    let user = &guest.user;
    for (name, rounds) in [("a.luks", 7), ("b.qcow2", 7)] {
        let disk = disk(user, name, "sda", "scsi");
        let path = path(user, name);
        guest.attach(&disk);
        let all = secrets(user);
        let start = Instant::now();
        user.ok(&REKEY, b"");
        let whole = start.elapsed();
        for n in 0..rounds {
            let old = value(user, &path);
            let mut child = user.start(&REKEY, b"");
            sleep(whole.mul_f64(f64::from(n) / f64::from(rounds)));
            let _ = child.kill();
            child.wait().unwrap();
            tried(user, &path);
            user.ok(&REKEY, b"");
            tried(user, &path);
            assert_ne!(value(user, &path), old, "{name} {n}");
            assert_eq!(secrets(user), all, "{name} {n}");
        }
        user.ok(&["detach-device", "guest", "sda"], b"");
        assert_eq!(opens(&path, if name == "a.luks" { "raw" } else { "qcow2" }, &value(user, &path)), Ok(()));
    }
    guest.end();
}

#[test]
fn who_can_set_values_and_read_none_changes_keys_through_the_supervisor() {
    let guest = machine();
    for name in ["a.luks", "b.qcow2"] {
        let user = &guest.user;
        let disk = disk(user, name, "sda", "scsi");
        let (path, all) = (path(user, name), secrets(user));
        guest.attach(&disk);
        let old = value(user, &path);
        // The same store and the same guests, without the key to the values.
        let other = User::new();
        let config = format!("keystore = 'file:{}'\n", user.store().display());
        fs::write(other.home.path().join("vmward.toml"), config).unwrap();
        let rekey = || {
            let mut command = other.command(&REKEY);
            command.env("VMWARD_RUNTIME_DIR", user.home.path().join("run"));
            command
        };
        other.fails(77, &["secret", "get-value", &path], b"");
        let output = rekey().output().unwrap();
        assert!(output.status.success(), "{}", text(output.stderr));
        let new = value(user, &path);
        assert_ne!(old, new);
        // A run that is cut off is given up by the next one, which does not know its value.
        let mut child = rekey().spawn().unwrap();
        user::wait_until("it has not begun", || secrets(user) > all || value(user, &path) != new);
        child.kill().unwrap();
        child.wait().unwrap();
        tried(user, &path);
        let output = rekey().output().unwrap();
        assert!(output.status.success(), "{}", text(output.stderr));
        tried(user, &path);
        let left = text(user.ok(&["secret", "list"], b""));
        assert_eq!(secrets(user), all, "{name}: {left}");
        let info = user.ok(&["volume", "info", &path, "--json"], b"");
        let info: Value = serde_json::from_slice(&info).unwrap();
        let slots = info["encryption"]["slots"].as_array().unwrap();
        assert_eq!(slots.iter().filter(|slot| slot["active"] == true).count(), 1, "{slots:?}");
        user.ok(&["detach-device", "guest", "sda"], b"");
    }
    guest.end();
}

/// A call that is refused, after which the volume is as it was.
fn refused(guest: &Machine, exit: i32, args: &[&str], path: &str) -> String {
    let before = fs::read(path).unwrap();
    let said = guest.user.fails(exit, args, b"");
    assert_eq!(fs::read(path).unwrap(), before, "{said}");
    said
}

#[test]
fn what_cannot_be_changed_is_said_and_stays() {
    let guest = machine();
    let user = &guest.user;
    for (name, exit) in [("a.luks", 77), ("b.qcow2", 77)] {
        guest.attach(&disk(user, name, "sda", "scsi"));
        let path = path(user, name);
        let right = value(user, &path);
        user.ok(&["secret", "set-value", &path], b"another one");
        let said = refused(&guest, exit, &REKEY, &path);
        assert!(said.contains("no key slot opens") && said.contains("set-value"), "{said}");
        assert!(!said.contains("another one"), "{said}");
        user.ok(&["secret", "set-value", &path], right.as_bytes());
        // The supervisor has other keystores than who asks.
        let elsewhere = format!("file:{}", user.home.path().join(format!("elsewhere-{name}")).display());
        let xml = user.ok(&["secret", "dumpxml", &path], b"");
        user.ok(&["--keystore", &elsewhere, "secret", "define", "-"], &xml);
        user.ok(&["--keystore", &elsewhere, "secret", "set-value", &path], right.as_bytes());
        let said = refused(&guest, 66, &[&["--keystore", &elsewhere], &REKEY[..]].concat(), &path);
        assert!(said.contains("is defined") && said.contains("the same again"), "{said}");
        // All slots in use.
        let image = File::options().read(true).write(true).open(&path).unwrap();
        let content = fs::read(&path).unwrap();
        let start = content.windows(6).position(|w| w == b"LUKS\xba\xbe").unwrap() as u64;
        let mut header = [0; 592];
        image.read_exact_at(&mut header, start).unwrap();
        for slot in 1..8 {
            let entry =
                [&0x00AC_71F3u32.to_be_bytes()[..], &1000u32.to_be_bytes(), &[slot as u8; 32]].concat();
            image.write_all_at(&entry, start + 208 + 48 * slot).unwrap();
        }
        let said = refused(&guest, 69, &REKEY, &path);
        assert!(said.contains("all key slots"), "{said}");
        image.write_all_at(&header, start).unwrap();
        // What is at the path is another file than the one that QEMU has open.
        let moved = format!("{path}.moved");
        fs::rename(&path, &moved).unwrap();
        fs::copy(&moved, &path).unwrap();
        let said = refused(&guest, 77, &REKEY, &path);
        assert!(said.contains("not the image that the guest runs from"), "{said}");
        fs::rename(&moved, &path).unwrap();
        user.ok(&REKEY, b"");
        user.ok(&["detach-device", "guest", "sda"], b"");
    }
    let said = user.fails(66, &REKEY, b"");
    assert!(said.contains("no disk 'sda'"), "{said}");
    let plain = path(user, "plain.img");
    File::create(&plain).unwrap().set_len(1 << 20).unwrap();
    guest.attach(&format!(
        "<disk type='file'><driver name='qemu' type='raw'/><source file='{plain}'/><target dev='sda' bus='scsi'/></disk>"
    ));
    let said = refused(&guest, 65, &REKEY, &plain);
    assert!(said.contains("no image that QEMU decrypts"), "{said}");
    guest.end();
}

#[test]
fn at_rest_means_that_no_guest_runs_from_it() {
    let guest = machine();
    let user = &guest.user;
    guest.attach(&disk(user, "a.luks", "sda", "scsi"));
    let path = path(user, "a.luks");
    let said = refused(&guest, 75, &["volume", "rekey", &path], &path);
    assert!(said.contains("in use") && said.contains("--domain"), "{said}");
    let said = refused(&guest, 64, &[&REKEY[..], &["--machine-key"]].concat(), &path);
    assert!(said.contains("shut the guest down"), "{said}");
    guest.end();
}

/// A connection that stays open, as a client that is in the middle of it has it.
struct Client(UnixStream);

impl Client {
    fn new(guest: &Machine) -> Self {
        let stream = UnixStream::connect(guest.lib_dir().join("control.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        Self(stream)
    }

    fn call(&mut self, method: &str, parameters: &Value) -> Value {
        let message = json!({ "method": format!("org.vmward.Domain.{method}"), "parameters": parameters });
        self.0.write_all(format!("{message}\0").as_bytes()).unwrap();
        let mut reply = Vec::new();
        BufReader::new(&self.0).read_until(0, &mut reply).unwrap();
        serde_json::from_slice(reply.strip_suffix(b"\0").unwrap()).unwrap()
    }
}

#[test]
fn one_client_at_a_time_and_the_last_slot_stays() {
    let guest = machine();
    let user = &guest.user;
    for name in ["a.luks", "b.qcow2"] {
        guest.attach(&disk(user, name, "sda", "scsi"));
        let path = path(user, name);
        let uuid = text(user.ok(&["secret", "dumpxml", &path], b""));
        let uuid = uuid.split("<uuid>").nth(1).unwrap().split('<').next().unwrap().to_owned();
        let mut client = Client::new(&guest);
        let slots = client.call("DiskKeySlots", &json!({ "target": "sda", "secret": uuid }));
        let opened = &slots["parameters"]["opened"];
        assert_eq!(
            (opened.as_array().unwrap().len(), &slots["parameters"]["free"]),
            (1, &json!(7)),
            "{slots}"
        );
        let said = refused(&guest, 75, &REKEY, &path);
        assert!(said.contains("somebody else"), "{said}");
        // Not even who has the right to change them removes the last one.
        let error =
            client.call("RemoveDiskKeys", &json!({ "target": "sda", "slots": opened, "keeper": uuid }));
        assert_eq!(error["error"], "org.vmward.Domain.Failed", "{error}");
        // A slot that there is no more is not the one that has its number now.
        let other = json!({ "target": "sda", "slots": ["0:0000000000000001"], "keeper": uuid });
        assert_eq!(client.call("RemoveDiskKeys", &other)["error"], Value::Null);
        for (method, parameters) in [
            ("DiskKeySlots", json!({ "target": "sda", "secret": "x" })),
            ("AddDiskKey", json!({ "target": "sda", "secret": uuid, "opener": uuid, "kdf": "none" })),
            ("RemoveDiskKeys", json!({ "target": "sda", "slots": ["0"], "keeper": uuid })),
        ] {
            let error = client.call(method, &parameters);
            assert_eq!(error["error"], "org.vmward.Domain.NotAllowed", "{error}");
        }
        let error = client.call("DiskKeySlots", &json!({ "target": "sdz", "secret": uuid }));
        assert_eq!(error["error"], "org.vmward.Domain.NoSuchDevice", "{error}");
        assert_eq!(tried(user, &path), json!([0]));
        drop(client);
        // Its end is seen a moment later.
        user::wait_until("the turn is not given back", || user.run(&REKEY, b"").status.success());
        user.ok(&["detach-device", "guest", "sda"], b"");
    }
    guest.end();
}

#[test]
fn a_guest_that_is_gone_midway_leaves_a_volume_that_opens() {
    if !has_qemu_img() {
        return;
    }
    let mut guest = Some(machine());
    for name in ["a.luks", "b.qcow2"] {
        let machine = guest.take().unwrap_or_else(machine);
        let user = &machine.user;
        let xml = disk(user, name, "sda", "scsi");
        let path = path(user, name);
        machine.attach(&xml);
        let process =
            |what: &str| Pid::from_raw(machine.status()[what].as_i64().unwrap().try_into().unwrap());
        let (supervisor, qemu) = (process("supervisor"), process("qemu"));
        let old = value(user, &path);
        let child = user.start(&REKEY, b"");
        // The new value is there, the rest is not; or it was faster than who looks.
        user::wait_until("it has not begun", || secrets(user) == 2 || value(user, &path) != old);
        kill(qemu, Signal::SIGKILL).unwrap();
        let _ = kill(supervisor, Signal::SIGKILL);
        let output = child.wait_with_output().unwrap();
        // It may have been faster.
        if !output.status.success() {
            let said = text(output.stderr);
            assert!([66, 69, 70, 75, 77].contains(&output.status.code().unwrap()), "{said}");
        }
        // QEMU's lock goes with it.
        user::wait_until("the image is not free", || {
            user.run(&["volume", "rekey", &path], b"").status.success()
        });
        assert_eq!(secrets(user), 1);
        let format = if name == "a.luks" { "raw" } else { "qcow2" };
        assert_eq!(opens(&path, format, &value(user, &path)), Ok(()), "{name}");
    }
}
