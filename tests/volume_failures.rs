//! What `vmward volume` leaves behind when it is disturbed, and what others see of it meanwhile.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod images;
mod script;
mod user;

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use images::{Images, guest_with, opens};

const PASSPHRASE: &str = "nobody may see this passphrase 4711";

/// Starts making a volume with the slow derivation, and waits for its qemu-img.
fn start_slowly(images: &Images, path: &str, secret: &[&str]) -> (Child, i32) {
    let args = [&["volume", "create", path, "--size", "1M", "--kdf", "slow"], secret].concat();
    let mut vmward = images.user.start(&args, b"");
    let children = format!("/proc/{0}/task/{0}/children", vmward.id());
    let mut qemu_img = None;
    while qemu_img.is_none() {
        sleep(Duration::from_millis(1));
        assert_eq!(vmward.try_wait().unwrap(), None, "vmward ended before it ran qemu-img");
        let children = fs::read_to_string(&children).unwrap();
        let child = children.split_whitespace().next().map(|pid| pid.parse().unwrap());
        qemu_img = child.filter(|pid| is_qemu_img(*pid));
    }
    (vmward, qemu_img.unwrap())
}

fn is_qemu_img(pid: i32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| contains(&c, b"key-secret="))
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|w| w == needle)
}

#[test]
fn nobody_sees_the_passphrase_while_a_volume_is_made() {
    let Some(images) = Images::new() else { return };
    let secret = images.secret(PASSPHRASE);
    let path = images.path("a.img");
    let (vmward, qemu_img) = start_slowly(&images, &path, &["--secret", &secret]);
    let arguments = fs::read(format!("/proc/{qemu_img}/cmdline")).unwrap();
    assert!(contains(&arguments, b"file=/dev/fd/"), "{}", String::from_utf8_lossy(&arguments));
    assert_eq!(fs::read(format!("/proc/{qemu_img}/environ")).unwrap(), b"LC_ALL=C\0");
    let limits = fs::read_to_string(format!("/proc/{qemu_img}/limits")).unwrap();
    let core = limits.lines().find(|l| l.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    for process in fs::read_dir("/proc").unwrap() {
        let process = process.unwrap().path();
        for file in ["cmdline", "environ"] {
            // Most of /proc is no process, and processes end.
            let seen = fs::read(process.join(file)).unwrap_or_default();
            assert!(!contains(&seen, PASSPHRASE.as_bytes()), "{}/{file}", process.display());
        }
    }
    assert!(images.names().is_empty(), "the image has a name before it is complete");
    let output = vmward.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(!contains(&[output.stdout, output.stderr].concat(), PASSPHRASE.as_bytes()));
    assert!(!contains(&fs::read(&path).unwrap(), PASSPHRASE.as_bytes()));
}

#[test]
fn a_signal_ends_it_and_nothing_stays() {
    let Some(images) = Images::new() else { return };
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let (vmward, qemu_img) = start_slowly(&images, &images.path("a.img"), &["--generate"]);
        kill(Pid::from_raw(vmward.id() as i32), signal).unwrap();
        let output = vmward.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(128 + signal as i32), "{said}");
        assert!(said.contains(signal.as_str()), "{said}");
        assert!(!is_qemu_img(qemu_img), "qemu-img runs on");
        assert!(images.names().is_empty());
        assert!(images.secrets().is_empty());
    }
}

#[test]
fn killed_outright_it_leaves_no_image() {
    let Some(images) = Images::new() else { return };
    let (mut vmward, qemu_img) = start_slowly(&images, &images.path("a.img"), &["--generate"]);
    vmward.kill().unwrap();
    vmward.wait().unwrap();
    // Nobody is left to end qemu-img early: it writes into a file that has no name, and goes.
    while is_qemu_img(qemu_img) {
        sleep(Duration::from_millis(10));
    }
    assert!(images.names().is_empty());
}

#[test]
fn qemu_img_that_is_killed_leaves_nothing() {
    let Some(images) = Images::new() else { return };
    let (vmward, qemu_img) = start_slowly(&images, &images.path("a.img"), &["--generate"]);
    kill(Pid::from_raw(qemu_img), Signal::SIGKILL).unwrap();
    let output = vmward.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains("qemu-img create failed (signal: 9"), "{said}");
    assert!(images.names().is_empty());
    assert!(images.secrets().is_empty());
}

#[test]
fn a_full_disk_is_said_and_nothing_stays() {
    let Some(images) = Images::new() else { return };
    let full = images.dir().join("full");
    fs::create_dir(&full).unwrap();
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(&full).status();
    if !mount.is_ok_and(|s| s.success()) {
        println!("skipped: a small file system cannot be mounted here");
        return;
    }
    let umount = || assert!(Command::new("umount").arg(&full).status().unwrap().success());
    for (format, preallocation) in [("raw", "falloc"), ("raw", "full"), ("qcow2", "full")] {
        let path = images.path("full/a.img");
        let args = ["volume", "create", &path, "--size", "64M", "--generate", "--format", format];
        let args = [&args[..], &["--preallocation", preallocation]].concat();
        let output = images.user.run(&args, b"");
        let said = String::from_utf8(output.stderr).unwrap();
        let names = fs::read_dir(&full).unwrap().count();
        if output.status.code() != Some(69) || !said.contains("No space left") || names != 0 {
            umount();
            panic!("{format} {preallocation}: {names} files, {:?}: {said}", output.status);
        }
    }
    umount();
    assert!(images.secrets().is_empty());
}

/// Puts a script in front of the real qemu-img.
fn with_wrapper(images: &Images, script: &str) -> String {
    let path = env::var("PATH").unwrap();
    let real = env::split_paths(&path).map(|d| d.join("qemu-img")).find(|p| p.exists()).unwrap();
    let dir = images.user.home.path().join("bin");
    fs::create_dir(&dir).unwrap();
    let state = dir.join("state");
    let script = script.replace("REAL", real.to_str().unwrap()).replace("STATE", state.to_str().unwrap());
    script::write(&dir.join("qemu-img"), &format!("PATH=/usr/bin:/bin\n{script}"));
    format!("{}:{path}", dir.display())
}

fn create_with_path(images: &Images, path: &str) -> (Option<i32>, String) {
    let image = images.path("a.img");
    let mut command =
        images.user.command(&["volume", "create", &image, "--size", "1M", "--format", "raw", "--generate"]);
    let output = command.env("PATH", path).stdin(Stdio::null()).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_volume_that_came_out_plain_is_thrown_away() {
    let Some(images) = Images::new() else { return };
    let path = with_wrapper(&images, "truncate -s 1M /dev/fd/4");
    let (code, said) = create_with_path(&images, &path);
    assert_eq!(code, Some(70), "{said}");
    assert!(said.contains("is not encrypted"), "{said}");
    assert!(images.names().is_empty());
    assert!(images.secrets().is_empty());
}

#[test]
fn the_old_fault_of_measuring_the_derivation_is_got_over() {
    let Some(images) = Images::new() else { return };
    let script = "echo x >>STATE\n[ $(wc -l <STATE) -gt 3 ] || { cat /dev/fd/4 >/dev/null\n\
                  echo 'qemu-img: /dev/fd/3: Unable to get accurate CPU usage' >&2; exit 1; }\nexec REAL \"$@\"";
    let path = with_wrapper(&images, script);
    let (code, said) = create_with_path(&images, &path);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(images.names(), ["a.img"]);
}

#[test]
fn without_qemu_img_it_says_what_to_install() {
    let Some(images) = Images::new() else { return };
    let (code, said) = create_with_path(&images, "/nonexistent");
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("qemu-utils"), "{said}");
    assert!(images.secrets().is_empty());
}

#[test]
fn a_volume_in_use_is_neither_destroyed_nor_replaced() {
    let Some(images) = Images::new() else { return };
    for format in ["raw", "qcow2"] {
        let path = images.create(format, format);
        let before = fs::read(&path).unwrap();
        let Some(mut guest) = guest_with(&images, &path, format) else { return };
        let delete = images.user.run(&["volume", "delete", &path, "--yes", "--secret"], b"");
        let replace = ["volume", "create", &path, "--size", "1M", "--secret", &path, "--force"];
        let replace = images.user.run(&replace, b"");
        guest.kill().unwrap();
        guest.wait().unwrap();
        for output in [delete, replace] {
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(75), "{said}");
            assert!(said.contains("in use"), "{said}");
        }
        assert_eq!(fs::read(&path).unwrap(), before);
        images.user.ok(&["secret", "get-value", &path], b"");
        images.user.ok(&["volume", "delete", &path, "--yes", "--secret"], b"");
    }
    assert!(images.names().is_empty());
    assert!(images.secrets().is_empty());
}

#[test]
fn what_is_deleted_cannot_be_opened_again() {
    let Some(images) = Images::new() else { return };
    for format in ["raw", "qcow2"] {
        let path = images.create("a.img", format);
        let value = images.user.ok(&["secret", "get-value", &path], b"");
        let value = String::from_utf8(value).unwrap();
        // A second name keeps the file, as a thief's copy of the disk would.
        let kept = images.path("kept");
        fs::hard_link(&path, &kept).unwrap();
        opens(&kept, format, &value).unwrap();
        let header = fs::read(&kept).unwrap();
        images.user.ok(&["volume", "delete", &path, "--yes"], b"");
        assert_eq!(images.names(), ["kept"]);
        opens(&kept, format, &value).unwrap_err();
        // The key material is gone, not just the header in front of it.
        let start = header.windows(6).position(|w| w == b"LUKS\xba\xbe").unwrap();
        let after = fs::read(&kept).unwrap();
        let material = start + 4096..start + 4096 + 64 * 4000;
        let same =
            header[material.clone()].iter().zip(&after[material.clone()]).filter(|(a, b)| a == b).count();
        assert!(same < material.len() / 100, "{same} of {} bytes are as before", material.len());
        images.user.ok(&["secret", "undefine", &path], b"");
        fs::remove_file(&kept).unwrap();
    }
}

#[test]
fn delete_destroys_encrypted_volumes_and_nothing_else() {
    let Some(images) = Images::new() else { return };
    let precious = images.path("letter.txt");
    fs::write(&precious, "precious").unwrap();
    assert!(
        images.user.fails(65, &["volume", "delete", &precious, "--yes"], b"").contains("not an encrypted")
    );
    let plain = images.path("plain.qcow2");
    images.qemu_img(&["create", "-q", "-f", "qcow2", &plain, "1M"]);
    images.user.fails(65, &["volume", "delete", &plain, "--yes"], b"");
    let volume = images.create("a.img", "qcow2");
    let link = images.path("link");
    symlink(&volume, &link).unwrap();
    assert!(images.user.fails(64, &["volume", "delete", &link, "--yes"], b"").contains("symbolic link"));
    images.user.fails(64, &["volume", "delete", images.dir().to_str().unwrap(), "--yes"], b"");
    images.user.fails(66, &["volume", "delete", &images.path("nothing"), "--yes"], b"");
    assert!(images.user.fails(64, &["volume", "delete", &volume], b"").contains("--yes"));
    let other = images.path("other.img");
    images.user.ok(&["volume", "create", &other, "--size", "1M", "--secret", &volume], b"");
    let e = images.user.fails(66, &["volume", "delete", &other, "--yes", "--secret"], b"");
    assert!(e.contains("leave --secret out"), "{e}");
    assert_eq!(images.names(), ["a.img", "letter.txt", "link", "other.img", "plain.qcow2"]);
    assert!(Path::new(&precious).exists());
}
