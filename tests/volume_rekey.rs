//! `vmward volume rekey` on images that nothing runs from: what opens them afterwards, by other programs' word, and every
//! way in which it is refused.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod images;
mod user;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use images::{Images, cryptsetup_format, opens};

fn info(images: &Images, path: &str) -> Value {
    serde_json::from_slice(&images.user.ok(&["volume", "info", path, "--json", "--try"], b"")).unwrap()
}

fn active(info: &Value) -> Vec<usize> {
    let slots = info["encryption"]["slots"].as_array().unwrap().iter().enumerate();
    slots.filter(|(_, slot)| slot["active"] == json!(true)).map(|(n, _)| n).collect()
}

#[test]
fn the_new_value_opens_it_and_the_old_one_does_not() {
    let Some(images) = Images::new() else { return };
    for format in ["raw", "qcow2"] {
        let path = images.create(format, format);
        let old = images.value(&path);
        let before = fs::read(&path).unwrap();
        images.user.ok(&["volume", "rekey", &path], b"");
        let new = images.value(&path);
        assert_ne!(old, new);
        assert_eq!(opens(&path, format, &new), Ok(()));
        assert!(opens(&path, format, &old).is_err());
        assert_eq!(images.secrets().len(), 1, "the new value is kept twice");
        let info = info(&images, &path);
        assert_eq!(active(&info), [1]);
        assert_eq!(info["secret-opens"], json!([1]));
        // The old material is gone, not just the slot.
        let after = fs::read(&path).unwrap();
        let start = before.windows(6).position(|w| w == b"LUKS\xba\xbe").unwrap();
        let material = start + 4096..start + 4096 + 64 * 4000;
        let same = before[material.clone()].iter().zip(&after[material]).filter(|(a, b)| a == b).count();
        assert!(same < 64 * 4000 / 100, "{same} bytes of the old key material are as before");
        // And once more, into the slot that is free now.
        images.user.ok(&["volume", "rekey", &path, "--json"], b"");
        assert_eq!(opens(&path, format, &images.value(&path)), Ok(()));
        assert!(opens(&path, format, &new).is_err());
        images.user.ok(&["volume", "delete", &path, "--yes", "--secret"], b"");
    }
}

#[test]
fn a_value_may_be_given_and_others_keep_their_slots() {
    let Some(images) = Images::new() else { return };
    let path = images.made_by_qemu("a.img", "raw", "the first one", 10);
    images::add_key(&path, "raw", "the first one", 5, "the one for recovery");
    images.user.ok(&["volume", "rekey", &path, "--stdin", "--kdf", "fast"], b"the second one");
    assert_eq!(images.value(&path), "the second one");
    for (passphrase, is_open) in
        [("the first one", false), ("the second one", true), ("the one for recovery", true)]
    {
        assert_eq!(opens(&path, "raw", passphrase).is_ok(), is_open, "{passphrase}");
    }
    // A slot that there is already is not made again.
    images.user.ok(&["volume", "rekey", &path, "--stdin"], b"the one for recovery");
    assert_eq!(active(&info(&images, &path)), [5]);
    let said = images.user.fails(65, &["volume", "rekey", &path, "--stdin"], b"the one for recovery");
    assert!(said.contains("old one"), "{said}");
    images.user.fails(65, &["volume", "rekey", &path, "--stdin"], b"no\0text");
    assert_eq!(opens(&path, "raw", "the one for recovery"), Ok(()));
    assert_eq!(images.secrets().len(), 1);
}

#[test]
fn every_slot_that_the_old_value_opens_goes() {
    let Some(images) = Images::new() else { return };
    let path = images.made_by_qemu("a.img", "qcow2", "the first one", 10);
    images::add_key(&path, "qcow2", "the first one", 3, "the first one");
    images.user.ok(&["volume", "rekey", &path], b"");
    assert_eq!(active(&info(&images, &path)), [1]);
    assert!(opens(&path, "qcow2", "the first one").is_err());
}

#[test]
fn a_machine_key_is_in_front_and_cheap() {
    let Some(images) = Images::new() else { return };
    for format in ["raw", "qcow2"] {
        let path = images.made_by_qemu(format, format, "the first one", 300);
        images::add_key(&path, format, "the first one", 2, "the one for recovery");
        // Somebody's own key is in front of the one that goes.
        let first = info(&images, &path)["encryption"]["digest-iterations"].as_u64().unwrap();
        images.user.ok(&["volume", "rekey", &path, "--stdin"], b"the one for recovery");
        assert_eq!(active(&info(&images, &path)), [2]);
        images::add_key(&path, format, "the one for recovery", 0, "somebody's own");
        images.user.ok(&["volume", "rekey", &path, "--machine-key"], b"");
        let info = info(&images, &path);
        let slots = active(&info);
        assert_eq!((slots.len(), slots[0]), (2, 0), "{slots:?}");
        assert_eq!(info["secret-opens"], json!([0]));
        assert_eq!(info["encryption"]["slots"][0]["iterations"], 1000);
        assert_eq!(info["encryption"]["digest-iterations"], 1000);
        assert!(first > 1000, "{first}");
        assert_eq!(opens(&path, format, &images.value(&path)), Ok(()));
        assert_eq!(opens(&path, format, "somebody's own"), Ok(()), "what was moved behind");
        assert!(opens(&path, format, "the one for recovery").is_err());
        // The copy of the header has served its time.
        let start = fs::read(&path).unwrap().windows(6).filter(|w| *w == b"LUKS\xba\xbe").count();
        assert_eq!(start, 1);
    }
}

#[test]
fn a_header_whose_digest_was_cut_off_is_taken_back() {
    let Some(images) = Images::new() else { return };
    let path = images.create("a.img", "raw");
    let image = File::options().read(true).write(true).open(&path).unwrap();
    let mut header = [0; 592];
    image.read_exact_at(&mut header, 0).unwrap();
    // As if the power had gone between the two halves of the new digest.
    image.write_all_at(&header, 2048).unwrap();
    image.write_all_at(&[0x55; 30], 112).unwrap();
    assert!(opens(&path, "raw", &images.value(&path)).is_err());
    images.user.ok(&["volume", "rekey", &path, "--machine-key"], b"");
    assert_eq!(opens(&path, "raw", &images.value(&path)), Ok(()));
}

#[test]
fn a_wrong_value_changes_nothing() {
    let Some(images) = Images::new() else { return };
    for format in ["raw", "qcow2"] {
        let path = images.create(format, format);
        let right = images.value(&path);
        images.user.ok(&["secret", "set-value", &path], b"another one");
        let before = fs::read(&path).unwrap();
        for options in [&[][..], &["--machine-key"]] {
            let args = [&["volume", "rekey", &path], options].concat();
            let said = images.user.fails(77, &args, b"");
            assert!(said.contains("no key slot opens") && said.contains("set-value"), "{said}");
            assert!(!said.contains("another one"), "{said}");
        }
        let said = images.user.fails(77, &["volume", "info", &path, "--try"], b"");
        assert!(said.contains("no key slot opens"), "{said}");
        assert_eq!(fs::read(&path).unwrap(), before);
        assert_eq!(images.value(&path), "another one");
        assert_eq!(opens(&path, format, &right), Ok(()));
        images.user.ok(&["volume", "delete", &path, "--yes", "--secret"], b"");
    }
    assert!(images.secrets().is_empty());
}

#[test]
fn a_volume_without_a_free_slot_stays_as_it_is() {
    let Some(images) = Images::new() else { return };
    let path = images.made_by_qemu("a.img", "raw", "the first one", 10);
    let image = File::options().write(true).open(&path).unwrap();
    for slot in 1..8 {
        // In use, with some iterations and a salt; what opens it nobody knows.
        let entry = [&0x00AC_71F3u32.to_be_bytes()[..], &1000u32.to_be_bytes(), &[slot as u8; 32]].concat();
        image.write_all_at(&entry, 208 + 48 * slot).unwrap();
    }
    let before = fs::read(&path).unwrap();
    let said = images.user.fails(69, &["volume", "rekey", &path], b"");
    assert!(said.contains("all key slots") && said.contains("luksKillSlot"), "{said}");
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(images.value(&path), "the first one");
    assert_eq!(images.secrets().len(), 1);
}

#[test]
fn what_has_no_luks1_header_of_its_own_is_refused() {
    let Some(images) = Images::new() else { return };
    let secret = images.secret("x");
    let refused = |exit, path: &str, said: &str| {
        let before = fs::read(path).ok();
        let all = images.user.fails(exit, &["volume", "rekey", path, "--secret", &secret], b"");
        assert!(all.contains(said), "{all}");
        assert_eq!(fs::read(path).ok(), before);
    };
    refused(66, &images.path("nothing"), "there is no file");
    let plain = images.path("plain.qcow2");
    images.qemu_img(&["create", "-q", "-f", "qcow2", &plain, "1M"]);
    refused(65, &plain, "not an encrypted volume");
    fs::write(images.path("text"), "text").unwrap();
    refused(65, &images.path("text"), "not an encrypted volume");
    refused(64, "/dev/null", "not a regular file");
    // The old AES: its number in the header is what says so (no QEMU makes such an image any more).
    let aes = images.path("aes.qcow2");
    images.qemu_img(&["create", "-q", "-f", "qcow2", &aes, "1M"]);
    File::options().write(true).open(&aes).unwrap().write_all_at(&1u32.to_be_bytes(), 32).unwrap();
    refused(65, &aes, "old AES");
    let volume = images.made_by_qemu("a.img", "raw", "x", 10);
    let header = fs::read(&volume).unwrap();
    // A header beside its data: its offset is 0, or it is all there is.
    let detached = images.path("detached");
    fs::write(&detached, &header[..2_068_480]).unwrap();
    refused(65, &detached, "detached");
    let mut inconsistent = header.clone();
    // The second slot's material lies upon the first one's.
    inconsistent[208 + 48 + 40..208 + 48 + 44].copy_from_slice(&9u32.to_be_bytes());
    let path = images.path("inconsistent");
    fs::write(&path, &inconsistent).unwrap();
    refused(65, &path, "overlap");
    let mut damaged = header;
    damaged[208] = 7;
    let path = images.path("damaged");
    fs::write(&path, &damaged).unwrap();
    refused(65, &path, "damaged");
    let luks2 = images.path("luks2");
    if cryptsetup_format(&luks2, "luks2") {
        refused(65, &luks2, "LUKS2");
    }
    // A volume, and nothing says which secret is its own.
    let other = images.path("b.img");
    images.user.ok(&["volume", "create", &other, "--size", "1M", "--secret", &secret], b"");
    let said = images.user.fails(66, &["volume", "rekey", &other], b"");
    assert!(said.contains("--secret"), "{said}");
}

#[test]
fn a_container_of_cryptsetup_gets_a_new_key_as_well() {
    let Some(images) = Images::new() else { return };
    let path = images.path("a.luks");
    if !cryptsetup_format(&path, "luks1") {
        return;
    }
    let secret = images.secret("x");
    images.user.ok(&["volume", "rekey", &path, "--secret", &secret, "--machine-key"], b"");
    let test = |value: &str| {
        let mut child = Command::new("cryptsetup")
            .args(["open", "--test-passphrase", "--key-file", "-", &path])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(value.as_bytes()).unwrap();
        child.wait().unwrap().success()
    };
    assert!(test(&images.value(&secret)));
    assert!(!test("x"));
}

#[test]
fn a_secret_that_others_use_is_not_changed_unless_that_is_meant() {
    let Some(images) = Images::new() else { return };
    let (first, second) = (images.create("a.img", "raw"), images.path("b.img"));
    images
        .user
        .ok(&["volume", "create", &second, "--size", "1M", "--format", "raw", "--secret", &first], b"");
    // The secret is the first one's, by its usage.
    let said = images.user.fails(64, &["volume", "rekey", &second, "--secret", &first], b"");
    assert!(said.contains(&first) && said.contains("--force"), "{said}");
    let old = images.value(&first);
    images.user.ok(&["volume", "rekey", &second, "--secret", &first, "--force"], b"");
    assert_eq!(opens(&second, "raw", &images.value(&first)), Ok(()));
    assert_eq!(opens(&first, "raw", &old), Ok(()));
    // And so is one that a guest uses for another disk.
    let (third, fourth) = (images.create("c.img", "raw"), images.path("d.img"));
    let guests = images.user.home.path().join("guests");
    fs::create_dir(&guests).unwrap();
    let disk = |path: &str, target: &str| {
        format!(
            "<disk type='file'><driver name='qemu' type='raw'/><source file='{path}'><encryption format='luks'>\
             <secret type='passphrase' usage='{third}'/></encryption></source><target dev='{target}' bus='virtio'/></disk>"
        )
    };
    let guest = |disks: &str| {
        let xml = format!(
            "<domain type='qemu'><name>web1</name><memory unit='MiB'>64</memory><os><type arch='x86_64' machine='q35'>\
             hvm</type></os><devices>{disks}</devices></domain>"
        );
        fs::write(guests.join("web1.xml"), xml).unwrap();
    };
    guest(&(disk(&third, "vda") + &disk(&fourth, "vdb")));
    let said = images.user.fails(64, &["volume", "rekey", &third], b"");
    assert!(said.contains("the guest web1"), "{said}");
    guest(&disk(&third, "vda"));
    images.user.ok(&["volume", "rekey", &third], b"");
    assert_eq!(opens(&third, "raw", &images.value(&third)), Ok(()));
}

#[test]
fn a_volume_that_another_program_runs_from_is_left_alone() {
    let Some(images) = Images::new() else { return };
    let path = images.create("a.img", "qcow2");
    let before = fs::read(&path).unwrap();
    let value_file = images.user.home.path().join("value");
    fs::write(&value_file, images.value(&path)).unwrap();
    let child = Command::new("qemu-io")
        .args(["--object", &format!("secret,id=s,file={}", value_file.display())])
        .args(["--image-opts", &images::image_options(&path, "qcow2")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut other) = child else {
        println!("skipped: there is no qemu-io in PATH");
        return;
    };
    // It asks for a command when the image is open.
    let mut prompt = [0; 1];
    std::io::Read::read_exact(other.stdout.as_mut().unwrap(), &mut prompt).unwrap();
    let said = images.user.fails(75, &["volume", "rekey", &path], b"");
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(said.contains("in use") && said.contains("--domain"), "{said}");
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(images.secrets().len(), 1);
}

#[test]
fn a_store_that_can_only_be_read_is_said_and_the_volume_opens() {
    let Some(images) = Images::new() else { return };
    let path = images.create("a.img", "raw");
    let before = fs::read(&path).unwrap();
    let old = images.value(&path);
    let uuid = images.secrets().remove(0);
    // systemd's credentials are read only: the secret with its value is there as well.
    let credentials = images.user.home.path().join("credentials");
    fs::create_dir(&credentials).unwrap();
    fs::write(credentials.join(&uuid), &old).unwrap();
    let output = images
        .user
        .command(&["volume", "rekey", &path, "--secret", &uuid, "--keystore", "credentials:"])
        .env("CREDENTIALS_DIRECTORY", &credentials)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains("credentials:") && said.contains("only be read"), "{said}");
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(opens(&path, "raw", &old), Ok(()));
}

#[test]
fn info_warns_of_a_volume_that_is_slow_to_open() {
    let Some(images) = Images::new() else { return };
    let slow = images.made_by_qemu("slow.img", "qcow2", "the first one", 2000);
    let said =
        |path: &str| String::from_utf8(images.user.run(&["volume", "info", path], b"").stderr).unwrap();
    assert!(said(&slow).contains("--machine-key"), "{}", said(&slow));
    images.user.ok(&["volume", "rekey", &slow, "--machine-key"], b"");
    assert_eq!(said(&slow), "");
    let said = images.user.fails(66, &["volume", "info", &images.path("nothing"), "--try"], b"");
    assert!(said.contains("there is no file"), "{said}");
}

#[test]
fn what_makes_no_sense_together_is_said() {
    let Some(images) = Images::new() else { return };
    let path = images.create("a.img", "raw");
    images.user.fails(64, &["volume", "rekey", &path, "--machine-key", "--stdin"], b"x");
    let said = images.user.fails(64, &["volume", "rekey", "vda", "--domain", "web1", "--machine-key"], b"");
    assert!(said.contains("while a guest runs"), "{said}");
    let said = images.user.fails(66, &["volume", "rekey", "vda", "--domain", "web1"], b"");
    assert!(said.contains("no guest named"), "{said}");
    assert_eq!(opens(&path, "raw", &images.value(&path)), Ok(()));
}

#[test]
fn who_asks_is_told_of_each_step() {
    let Some(images) = Images::new() else { return };
    let path = images.create("a.img", "raw");
    let told = images.user.home.path().join("told");
    let vmward = env!("CARGO_BIN_EXE_vmward");
    // A descriptor is given by a shell.
    let output = Command::new("sh")
        .arg("-c")
        .arg(format!("exec {vmward} volume rekey {path} --progress-fd 3 3>{}", told.display()))
        .env("VMWARD_CONFIG", images.user.home.path().join("vmward.toml"))
        .env("VMWARD_RUNTIME_DIR", images.user.home.path().join("run"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let steps: Vec<String> = fs::read_to_string(&told)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line.get("done").is_none())
        .map(|line| line["step"].as_str().unwrap().to_owned())
        .collect();
    let all = ["remember", "write-material", "activate-slot", "prove", "set-value"];
    let then = ["deactivate-slot", "overwrite-material", "forget"];
    assert_eq!(steps, [&all[..], &then[..]].concat());
    let said = images.user.fails(64, &["volume", "rekey", &path, "--progress-fd", "77"], b"");
    assert!(said.contains("--progress-fd"), "{said}");
    assert_eq!(opens(&path, "raw", &images.value(&path)), Ok(()));
}

#[test]
fn a_secret_that_is_in_memory_only_gets_its_new_value_there() {
    let Some(images) = Images::new() else { return };
    let path = images.path("a.img");
    let args = ["volume", "create", &path, "--size", "1M", "--format", "raw", "--generate", "--ephemeral"];
    let output = images.user.run(&args, b"");
    if output.status.code() == Some(69) {
        println!("skipped: no kernel keyring: {}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let old = images.value(&path);
    images.user.ok(&["volume", "rekey", &path], b"");
    let new = images.value(&path);
    assert_eq!(opens(&path, "raw", &new), Ok(()));
    assert!(opens(&path, "raw", &old).is_err());
    assert!(!images.user.store().exists(), "something of it is on disk");
    images.user.ok(&["secret", "undefine", &path], b"");
}
