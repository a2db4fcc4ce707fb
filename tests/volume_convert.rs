//! `vmward volume resize` and `convert`, with the real qemu-img: what the guest sees before is what it sees after.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod images;
mod script;
mod user;

use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::process::Command;

use images::{Images, guest_with, image_options};
use serde_json::Value;

/// A disk's worth of bytes that are no zeros.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n / 512 + n % 251) as u8 | 1).collect()
}

/// The value of the secret of that usage.
fn value(images: &Images, usage: &str) -> String {
    String::from_utf8(images.user.ok(&["secret", "get-value", usage], b"")).unwrap()
}

/// What a guest sees of an image, by another program.
fn content(images: &Images, path: &str, format: &str) -> Vec<u8> {
    let out = images.path("content.tmp");
    let secret = format!("secret,id=s,data={}", value(images, path));
    images.qemu_img(&[
        "convert",
        "--object",
        &secret,
        "--image-opts",
        &image_options(path, format),
        "-O",
        "raw",
        &out,
    ]);
    let bytes = fs::read(&out).unwrap();
    fs::remove_file(out).unwrap();
    bytes
}

/// An encrypted volume with that content.
fn filled(images: &Images, name: &str, format: &str, bytes: &[u8]) -> String {
    let (plain, path) = (images.path("plain.tmp"), images.path(name));
    fs::write(&plain, bytes).unwrap();
    let args =
        ["volume", "convert", &plain, &path, "--source-format", "raw", "--format", format, "--generate"];
    images.user.ok(&args, b"");
    fs::remove_file(plain).unwrap();
    path
}

fn info(images: &Images, path: &str) -> Value {
    serde_json::from_slice(&images.user.ok(&["volume", "info", path, "--json"], b"")).unwrap()
}

#[test]
fn the_guest_gets_the_size_that_was_asked_for_and_keeps_its_data() {
    let Some(images) = Images::new() else { return };
    let data = pattern(1 << 20);
    for format in ["raw", "qcow2"] {
        let path = filled(&images, format, format, &data);
        images.user.ok(&["volume", "resize", &path, "3M"], b"");
        assert_eq!(info(&images, &path)["virtual-size"], 3 << 20);
        images.user.ok(&["volume", "resize", &path, "+1M"], b"");
        let grown = content(&images, &path, format);
        assert_eq!((grown.len(), &grown[..1 << 20]), (4 << 20, &data[..]));

        let said = images.user.fails(64, &["volume", "resize", &path, "1M"], b"");
        assert!(said.contains("would cut off its end") && said.contains("--shrink"), "{said}");
        assert_eq!(info(&images, &path)["virtual-size"], 4 << 20);
        images.user.ok(&["volume", "resize", &path, "1M", "--shrink"], b"");
        assert!(content(&images, &path, format) == data, "{format}");
    }
}

#[test]
fn plain_images_are_resized_where_their_format_is_said() {
    let Some(images) = Images::new() else { return };
    let (raw, qcow2) = (images.path("a.raw"), images.path("a.qcow2"));
    fs::write(&raw, pattern(4096)).unwrap();
    images.qemu_img(&["create", "-q", "-f", "qcow2", &qcow2, "1M"]);
    for (path, format) in [(&raw, "raw"), (&qcow2, "qcow2")] {
        let said = images.user.fails(64, &["volume", "resize", path, "2M"], b"");
        assert!(said.contains("not guessed") && said.contains("--source-format"), "{said}");
        images.user.ok(&["volume", "resize", path, "2M", "--source-format", format], b"");
        assert_eq!(info(&images, path)["virtual-size"], 2 << 20);
    }
    let said = images.user.fails(
        64,
        &["volume", "resize", &raw, "3M", "--source-format", "raw", "--secret", "x"],
        b"",
    );
    assert!(said.contains("not encrypted"), "{said}");
}

#[test]
fn a_wrong_secret_changes_nothing() {
    let Some(images) = Images::new() else { return };
    let wrong = images.secret("wrong");
    for format in ["raw", "qcow2"] {
        let path = filled(&images, format, format, &pattern(65536));
        let before = fs::read(&path).unwrap();
        for args in [
            &["volume", "resize", &path, "2M", "--secret", &wrong][..],
            &["volume", "convert", &path, &images.path("new"), "--source-secret", &wrong, "--to-plain"],
        ] {
            let said = images.user.fails(77, args, b"");
            assert!(said.contains("not the passphrase of") && said.contains(&path), "{said}");
        }
        assert_eq!(fs::read(&path).unwrap(), before);
    }
    assert_eq!(images.names(), ["qcow2", "raw"]);
}

#[test]
fn a_volume_that_a_guest_runs_from_is_not_resized() {
    let Some(images) = Images::new() else { return };
    let path = filled(&images, "raw", "raw", &pattern(65536));
    let Some(mut holder) = guest_with(&images, &path, "raw") else { return };
    let resized = images.user.run(&["volume", "resize", &path, "2M"], b"");
    let converted = images.user.run(&["volume", "convert", &path, &images.path("new"), "--to-plain"], b"");
    holder.kill().unwrap();
    holder.wait().unwrap();
    for output in [resized, converted] {
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(75), "{said}");
        assert!(said.contains("in use by another process"), "{said}");
    }
    assert_eq!(info(&images, &path)["virtual-size"], 65536);
    assert_eq!(images.names(), ["raw"]);
}

#[test]
fn between_formats_and_keys_the_data_stays_the_same() {
    let Some(images) = Images::new() else { return };
    let data = pattern((1 << 20) + 512);
    let first = filled(&images, "first", "raw", &data);
    let second = images.path("second");
    let cipher = ["--cipher", "serpent-256-xts-plain64", "--generate", "--json"];
    let args = [&["volume", "convert", &first, &second, "--format", "qcow2"][..], &cipher].concat();
    let told: Value = serde_json::from_slice(&images.user.ok(&args, b"")).unwrap();
    assert_eq!((&told["path"], &told["size"]), (&second.as_str().into(), &data.len().into()));
    assert_eq!(info(&images, &second)["encryption"]["cipher"], "serpent");
    assert_ne!(value(&images, &first), value(&images, &second));
    assert!(content(&images, &second, "qcow2") == data);

    // Another key, the same format; and without encryption only where that is said.
    let third = images.path("third");
    let said = images.user.fails(64, &["volume", "convert", &second, &third], b"");
    assert!(said.contains("--generate") && said.contains("--to-plain"), "{said}");
    assert!(!images.names().contains(&"third".to_owned()));
    let said =
        images.user.fails(64, &["volume", "convert", &second, &third, "--to-plain", "--generate"], b"");
    assert!(said.contains("--to-plain"), "{said}");
    images.user.ok(&["volume", "convert", &second, &third, "--to-plain", "--format", "raw"], b"");
    assert!(fs::read(&third).unwrap() == data);
    assert!(info(&images, &third)["encryption"].is_null());
}

#[test]
fn a_chain_becomes_one_volume() {
    let Some(images) = Images::new() else { return };
    let data = pattern(1 << 20);
    filled(&images, "base", "raw", &data);
    let (middle, top, flat) = (images.path("middle"), images.path("top"), images.path("flat"));
    images.user.ok(
        &["volume", "create", &middle, "--backing", "base", "--backing-format", "raw", "--generate"],
        b"",
    );
    images.user.ok(
        &[
            "volume",
            "create",
            &top,
            "--backing",
            "middle",
            "--backing-format",
            "qcow2",
            "--generate",
            "--size",
            "2M",
        ],
        b"",
    );
    images.user.ok(&["volume", "convert", &top, &flat, "--generate", "--format", "raw"], b"");
    let seen = content(&images, &flat, "raw");
    assert!(seen.len() == 2 << 20 && seen[..1 << 20] == data && seen[1 << 20..].iter().all(|b| *b == 0));
    // Growing the top does not need to read what it stands on, but opens it.
    images.user.ok(&["volume", "resize", &top, "3M"], b"");
    assert_eq!(info(&images, &top)["virtual-size"], 3 << 20);
    // A key that is missing in the middle is said, and nothing is made.
    images.user.ok(&["secret", "undefine", &middle], b"");
    let said = images.user.fails(66, &["volume", "convert", &top, &images.path("x"), "--to-plain"], b"");
    assert!(said.contains(&middle), "{said}");
    assert!(!images.names().contains(&"x".to_owned()));
}

#[test]
fn a_header_that_a_guest_wrote_opens_no_file() {
    let Some(images) = Images::new() else { return };
    let (stolen, disk) = (images.path("stolen"), images.path("disk.raw"));
    fs::write(&stolen, pattern(1 << 20)).unwrap();
    images.qemu_img(&["create", "-q", "-f", "qcow2", "-b", &stolen, "-F", "raw", &disk]);
    let before = fs::read(&disk).unwrap();
    let new = images.path("new");
    let convert = ["volume", "convert", &disk, &new, "--generate"];
    let said = images.user.fails(64, &convert, b"");
    assert!(said.contains("not guessed"), "{said}");
    images.user.ok(&[&convert[..], &["--format", "raw", "--source-format", "raw"]].concat(), b"");
    assert!(content(&images, &new, "raw")[..before.len()] == before, "the guest's bytes are data");
    let said = images.user.fails(65, &["volume", "resize", &new, "9M", "--source-format", "qcow2"], b"");
    assert!(said.contains("is LUKS, not qcow2"), "{said}");
    // An image that stands on itself ends.
    images.qemu_img(&["rebase", "-u", "-b", &disk, "-F", "qcow2", "-f", "qcow2", &disk]);
    let said = images.user.fails(
        64,
        &["volume", "convert", &disk, &images.path("y"), "--to-plain", "--source-format", "qcow2"],
        b"",
    );
    assert!(said.contains("more than 200 images"), "{said}");
    images.qemu_img(&["rebase", "-u", "-b", "nbd:localhost:1", "-F", "raw", "-f", "qcow2", &disk]);
    let said = images.user.fails(
        64,
        &["volume", "convert", &disk, &images.path("y"), "--to-plain", "--source-format", "qcow2"],
        b"",
    );
    assert!(said.contains("which is no file"), "{said}");
}

#[test]
fn images_of_other_hypervisors_come_in() {
    let Some(images) = Images::new() else { return };
    let (plain, data) = (images.path("plain"), pattern(1 << 20));
    fs::write(&plain, &data).unwrap();
    for format in ["vmdk", "vdi", "vhdx"] {
        let (foreign, path) = (images.path(&format!("foreign.{format}")), images.path(format));
        images.qemu_img(&["convert", "-f", "raw", "-O", format, &plain, &foreign]);
        images.user.ok(&["volume", "convert", &foreign, &path, "--source-format", format, "--generate"], b"");
        assert!(content(&images, &path, "qcow2")[..data.len()] == data, "{format}");
        let said =
            images.user.fails(64, &["volume", "resize", &foreign, "9M", "--source-format", format], b"");
        assert!(said.contains("convert it"), "{said}");
    }
    let said = images.user.fails(
        69,
        &["volume", "convert", &plain, &images.path("x"), "--source-format", "vdi", "--to-plain"],
        b"",
    );
    assert!(said.contains("qemu-img convert failed"), "{said}");
    let uuids = images.secrets().len();
    assert_eq!(uuids, 3, "the secret of what was not made");
}

#[test]
fn a_program_is_told_how_far_it_is() {
    let Some(images) = Images::new() else { return };
    let path = filled(&images, "a", "raw", &pattern(8 << 20));
    let (mut reader, writer) = std::io::pipe().unwrap();
    let number = writer.as_raw_fd();
    let args =
        ["volume", "convert", &path, &images.path("b"), "--generate", "--kdf", "slow", "--progress-fd", "9"]
            .map(str::to_owned);
    let program = env!("CARGO_BIN_EXE_vmward");
    // The shell gives the descriptor its number.
    let mut command = images.user.command(&[]);
    let environment: Vec<_> =
        command.get_envs().map(|(k, v)| (k.to_owned(), v.map(ToOwned::to_owned))).collect();
    command = Command::new("/bin/sh");
    command.env_clear();
    for (name, value) in environment {
        command.env(name, value.unwrap_or_default());
    }
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let mut child = command
        .args(["-c", &format!("exec \"$0\" \"$@\" 9>&{number} {number}>&-"), program])
        .args(&args)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    drop(writer);
    let mut told = String::new();
    reader.read_to_string(&mut told).unwrap();
    assert!(child.wait().unwrap().success());
    let lines: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let shares: Vec<f64> = lines.iter().filter_map(|line| line["share"].as_f64()).collect();
    assert!(shares.is_sorted() && shares.iter().all(|s| (0.0..=1.0).contains(s)), "{told}");
    assert_eq!(lines.last().unwrap()["done"], true, "{told}");
    let said = images.user.fails(
        64,
        &["volume", "create", &images.path("c"), "--size", "1M", "--generate", "--progress-fd", "77"],
        b"",
    );
    assert!(said.contains("descriptor 77"), "{said}");
    assert!(!images.names().contains(&"c".to_owned()));
}

#[test]
fn qemu_img_that_fails_leaves_the_source_and_no_copy() {
    let Some(images) = Images::new() else { return };
    let path = filled(&images, "a", "raw", &pattern(65536));
    let before = fs::read(&path).unwrap();
    let bin = images.path("bin");
    fs::create_dir(&bin).unwrap();
    script::write(&std::path::Path::new(&bin).join("qemu-img"), "echo broken >&2; exit 3");
    for args in [
        &["volume", "convert", &path, &images.path("b"), "--generate"][..],
        &["volume", "resize", &path, "2M"],
    ] {
        let output = images.user.command(args).env("PATH", &bin).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(69), "{said}");
        assert!(said.contains("broken"), "{said}");
    }
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(images.names(), ["a", "bin"]);
    assert_eq!(images.secrets().len(), 1);
    // One that does nothing and says that all is well is not believed.
    script::write(&std::path::Path::new(&bin).join("qemu-img"), "exit 0");
    let resized = images.user.command(&["volume", "resize", &path, "2M"]).env("PATH", &bin).output().unwrap();
    assert_eq!(resized.status.code(), Some(70), "{resized:?}");
    let args = ["volume", "convert", &path, &images.path("b"), "--generate"];
    let converted = images.user.command(&args).env("PATH", &bin).output().unwrap();
    assert_eq!(converted.status.code(), Some(70), "{converted:?}");
    assert_eq!(images.names(), ["a", "bin"]);
}
