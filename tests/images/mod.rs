//! A directory for images, and other programs' view of them.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "this is a test")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::user::User;

/// The UUID of the containers that cryptsetup makes here.
pub const CRYPTSETUP_UUID: &str = "3e0c7a52-5f43-4c3a-9b8e-1d2f6a7b8c9d";

/// A user and his directory of images.
pub struct Images {
    /// Who makes them.
    pub user: User,
    dir: PathBuf,
}

impl Images {
    /// An empty directory; `None`, and a word why, where there is no qemu-img.
    pub fn new() -> Option<Self> {
        if Command::new("qemu-img").arg("--version").output().is_err() {
            println!("skipped: there is no qemu-img in PATH");
            return None;
        }
        let user = User::new();
        let dir = user.home.path().join("images");
        fs::create_dir(&dir).unwrap();
        Some(Self { user, dir })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of a file in it.
    pub fn path(&self, name: &str) -> String {
        self.dir.join(name).to_str().unwrap().to_owned()
    }

    /// What is in it.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.dir).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The UUIDs of all secrets.
    pub fn secrets(&self) -> Vec<String> {
        let list: Value = serde_json::from_slice(&self.user.ok(&["secret", "list", "--json"], b"")).unwrap();
        list.as_array().unwrap().iter().map(|s| s["uuid"].as_str().unwrap().to_owned()).collect()
    }

    /// A secret with that value; returns its UUID.
    pub fn secret(&self, value: &str) -> String {
        let uuid = self.user.define("");
        self.user.ok(&["secret", "set-value", &uuid], value.as_bytes());
        uuid
    }

    /// A volume of 1 MiB with a generated secret; returns its path.
    pub fn create(&self, name: &str, format: &str) -> String {
        let path = self.path(name);
        self.user.ok(&["volume", "create", &path, "--size", "1M", "--format", format, "--generate"], b"");
        path
    }

    /// A secret's value.
    pub fn value(&self, secret: &str) -> String {
        String::from_utf8(self.user.ok(&["secret", "get-value", secret], b"")).unwrap()
    }

    /// A volume with a passphrase that somebody chose, whose slot costs that many milliseconds, and its secret.
    pub fn made_by_qemu(&self, name: &str, format: &str, passphrase: &str, milliseconds: u32) -> String {
        let path = self.path(name);
        let (driver, prefix) = if format == "raw" { ("luks", "") } else { ("qcow2", "encrypt.") };
        loop {
            let mut command = Command::new("qemu-img");
            command.args(["create", "-q", "-f", driver, "--object", "secret,id=s,file=/dev/fd/0"]);
            if driver == "qcow2" {
                command.args(["-o", "encrypt.format=luks"]);
            }
            let options = format!("{prefix}key-secret=s,{prefix}iter-time={milliseconds}");
            let mut child = command
                .args(["-o", &options, &path, "4M"])
                .stdin(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(passphrase.as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            // See volume/qemu_img.rs: QEMU up to 9.1 fails at times.
            if output.status.success() {
                break;
            }
            assert!(said.contains("Unable to get accurate CPU usage"), "{said}");
        }
        let secret = format!("<usage type='volume'><volume>{path}</volume></usage>");
        let uuid = self.user.define(&secret);
        self.user.ok(&["secret", "set-value", &uuid], passphrase.as_bytes());
        path
    }

    /// Runs qemu-img, which must succeed.
    pub fn qemu_img(&self, args: &[&str]) {
        assert!(Command::new("qemu-img").args(args).status().unwrap().success(), "{args:?}");
    }
}

/// The options under which QEMU opens an image with the secret object `s`.
pub fn image_options(path: &str, format: &str) -> String {
    match format {
        "raw" => format!("driver=luks,key-secret=s,file.driver=file,file.filename={path}"),
        _ => format!(
            "driver=qcow2,encrypt.format=luks,encrypt.key-secret=s,file.driver=file,file.filename={path}"
        ),
    }
}

/// A QEMU with the volume as its disk.
pub fn guest_with(images: &Images, path: &str, format: &str) -> Option<Child> {
    let value = images.user.home.path().join("value");
    fs::write(&value, images.user.ok(&["secret", "get-value", path], b"")).unwrap();
    let child = Command::new("qemu-system-x86_64")
        .args(["-M", "q35", "-S", "-nodefaults", "-display", "none", "-qmp", "stdio", "-object"])
        .arg(format!("secret,id=s,file={}", value.display()))
        .args(["-blockdev", &format!("node-name=d,{}", image_options(path, format))])
        .args(["-device", "virtio-blk-pci,drive=d"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        println!("skipped: there is no qemu-system-x86_64 in PATH");
        return None;
    };
    // QEMU greets when its disks are open.
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("QMP"), "{line}");
    Some(child)
}

/// Reads a whole image with a passphrase, which the other program gets from its stdin.
pub fn opens(path: &str, format: &str, passphrase: &str) -> Result<(), String> {
    let options = image_options(path, format);
    let out = tempfile::NamedTempFile::new().unwrap();
    let mut child = Command::new("qemu-img")
        .args(["convert", "--object", "secret,id=s,file=/dev/fd/0", "--image-opts", &options])
        .args(["-O", "raw"])
        .arg(out.path())
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(passphrase.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8(output.stderr).unwrap()) }
}

/// Has qemu-img give an image another key, in a slot, which the first value opens.
pub fn add_key(path: &str, format: &str, opener: &str, slot: usize, value: &str) {
    let file = |content: &str| {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), content).unwrap();
        file
    };
    let (old, new) = (file(opener), file(value));
    let prefix = if format == "raw" { "" } else { "encrypt." };
    let options =
        format!("{prefix}state=active,{prefix}new-secret=n,{prefix}keyslot={slot},{prefix}iter-time=10");
    loop {
        let output = Command::new("qemu-img")
            .args(["amend", "--object", &format!("secret,id=s,file={}", old.path().display())])
            .args(["--object", &format!("secret,id=n,file={}", new.path().display())])
            .args(["--image-opts", &image_options(path, format), "-o", &options])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            return;
        }
        assert!(said.contains("Unable to get accurate CPU usage"), "{said}");
    }
}

/// `qemu-img info` as a value.
pub fn qemu_img_info(path: &str) -> Value {
    let output = Command::new("qemu-img").args(["info", "--output=json", path]).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Has cryptsetup make a container, if it is there.
pub fn cryptsetup_format(path: &str, version: &str) -> bool {
    File::create(path).unwrap().set_len(32 << 20).unwrap();
    let child = Command::new("cryptsetup")
        .args(["luksFormat", "--batch-mode", "--type", version, "--uuid", CRYPTSETUP_UUID])
        .args(["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", "-", path])
        .stdin(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        println!("skipped: there is no cryptsetup in PATH");
        return false;
    };
    child.stdin.take().unwrap().write_all(b"x").unwrap();
    assert!(child.wait().unwrap().success());
    true
}
