//! What a real QEMU is asked, and that it is asked once.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod script;

use std::fs;
use std::path::{Path, PathBuf};

use vmward::qemu::{Capabilities, ProbeError};

/// The QEMU of this host, or of another place.
fn qemu() -> Option<PathBuf> {
    let path =
        std::env::var_os("VMWARD_TEST_EMULATOR").map_or("/usr/bin/qemu-system-x86_64".into(), PathBuf::from);
    if !path.exists() {
        println!("skipped: there is no QEMU at {}", path.display());
        return None;
    }
    Some(path)
}

/// A program that counts how often it is started, and is QEMU otherwise.
fn counting(dir: &Path, qemu: &Path) -> (PathBuf, PathBuf) {
    let (program, count) = (dir.join("qemu"), dir.join("count"));
    script::write(&program, &counted(&count, qemu));
    (program, count)
}

fn counted(count: &Path, qemu: &Path) -> String {
    format!("echo x >> {}\nexec {} \"$@\"", count.display(), qemu.display())
}

fn lines(path: &Path) -> usize {
    fs::read_to_string(path).unwrap_or_default().lines().count()
}

fn entry(cache: &Path) -> PathBuf {
    fs::read_dir(cache).unwrap().next().unwrap().unwrap().path()
}

#[test]
fn qemu_is_asked_once() {
    let Some(qemu) = qemu() else { return };
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let (program, count) = counting(dir.path(), &qemu);
    let first = Capabilities::of_program(&program, &cache).unwrap();
    assert!(first.at_least(7, 2) && first.has_object("secret") && first.has_device("virtio-blk-pci"));
    assert!(first.has_machine("q35") && first.has_machine("pc") && !first.has_machine("virt"));
    assert!(!first.has_device("no-such-device"));
    assert!(first.has_processor("Haswell") && !first.has_processor("NoSuchProcessor"));
    let second = Capabilities::of_program(&program, &cache).unwrap();
    assert_eq!(first.version, second.version);
    assert!(second.has_device("virtio-blk-pci") && !second.has_device("no-such-device"));
    assert_eq!(lines(&count), 1);
    assert!(fs::metadata(entry(&cache)).unwrap().len() < 32 << 10, "what is kept is small");

    // Another program at the same place is asked anew.
    script::write(&program, &(counted(&count, &qemu) + "\n# changed"));
    Capabilities::of_program(&program, &cache).unwrap();
    assert_eq!(lines(&count), 2);
}

#[test]
fn a_damaged_cache_is_made_anew() {
    let Some(qemu) = qemu() else { return };
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let (program, count) = counting(dir.path(), &qemu);
    Capabilities::of_program(&program, &cache).unwrap();
    for damage in ["", "{", "{\"identity\":1}"] {
        fs::write(entry(&cache), damage).unwrap();
        Capabilities::of_program(&program, &cache).unwrap();
    }
    assert_eq!(lines(&count), 4);
    Capabilities::of_program(&program, &cache).unwrap();
    assert_eq!(lines(&count), 4);
}

#[test]
fn a_cache_that_cannot_be_written_only_costs_time() {
    let Some(qemu) = qemu() else { return };
    let dir = tempfile::tempdir().unwrap();
    let no_directory = dir.path().join("file");
    fs::write(&no_directory, "").unwrap();
    assert!(Capabilities::of_program(&qemu, &no_directory).is_ok());
}

#[test]
fn what_is_no_qemu_is_said_to_be_none() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Capabilities::of_program(&dir.path().join("none"), dir.path()).unwrap_err();
    assert!(matches!(missing, ProbeError::Missing(_)), "{missing:?}");
    let silent = Capabilities::of_program(Path::new("/bin/true"), dir.path()).unwrap_err();
    assert!(matches!(silent, ProbeError::NoAnswer { .. }), "{silent:?}");
    let program = dir.path().join("old");
    let greeting =
        r#"{"QMP":{"version":{"qemu":{"major":6,"minor":2,"micro":0},"package":""},"capabilities":[]}}"#;
    let answers = format!("echo '{greeting}'\nwhile read line; do echo '{{\"return\":[]}}'; done");
    script::write(&program, &answers);
    let old = Capabilities::of_program(&program, dir.path()).unwrap_err();
    assert!(matches!(old, ProbeError::TooOld { version: (6, 2, 0), .. }), "{old:?}");
    assert!(old.to_string().contains("7.2 or later"), "{old}");
    let talkative = dir.path().join("talkative");
    script::write(&talkative, "echo no such option >&2\nexit 1");
    let said = Capabilities::of_program(&talkative, dir.path()).unwrap_err();
    assert!(said.to_string().contains("no such option"), "{said}");
}
