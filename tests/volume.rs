//! `vmward volume`, as a user has it, with the real qemu-img.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod images;
mod user;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use images::{Images, opens, qemu_img_info};
use serde_json::Value;
use user::User;

/// `volume info --json` as a value.
fn info(user: &User, path: &str) -> Value {
    serde_json::from_slice(&user.ok(&["volume", "info", path, "--json"], b"")).unwrap()
}

#[test]
fn both_formats_open_with_their_secret_and_no_other() {
    let Some(images) = Images::new() else { return };
    for (format, kdf) in [("raw", "fast"), ("qcow2", "fast"), ("raw", "slow")] {
        let path = images.path(&format!("{format}-{kdf}"));
        let uuid = images.secret("correct horse battery staple");
        let args =
            ["volume", "create", &path, "--size", "1M", "--format", format, "--secret", &uuid, "--kdf", kdf];
        assert!(images.user.ok(&args, b"").is_empty());
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
        assert_eq!(metadata.nlink(), 1);
        opens(&path, format, "correct horse battery staple").unwrap();
        let e = opens(&path, format, "correct horse battery stable").unwrap_err();
        assert!(e.contains("Invalid password"), "{e}");

        let ours = info(&images.user, &path);
        assert_eq!(ours["virtual-size"], 1 << 20);
        let seconds = ours["encryption"]["opening-seconds"].as_f64().unwrap();
        assert_eq!(seconds > 0.3, kdf == "slow", "{seconds}");
    }
}

#[test]
fn generated_keys_are_cheap_to_derive_and_typed_ones_are_not() {
    let Some(images) = Images::new() else { return };
    let generated = images.path("generated.img");
    let uuid = images.user.uuid(&["volume", "create", &generated, "--size", "1M", "--generate"], b"");
    let value = images.user.ok(&["secret", "get-value", &uuid], b"");
    opens(&generated, "qcow2", std::str::from_utf8(&value).unwrap()).unwrap();
    let seen = info(&images.user, &generated);
    assert_eq!(seen["secret"], uuid.as_str());
    assert!(seen["encryption"]["opening-seconds"].as_f64().unwrap() < 0.3);

    let typed = images.path("typed.img");
    let secret = images.secret("a passphrase that somebody typed");
    images.user.ok(&["volume", "create", &typed, "--size", "1M", "--secret", &secret], b"");
    assert!(info(&images.user, &typed)["encryption"]["opening-seconds"].as_f64().unwrap() > 0.3);
}

#[test]
fn info_sees_what_qemu_img_sees() {
    let Some(images) = Images::new() else { return };
    for format in ["raw", "qcow2"] {
        let path = images.create(format, format);
        let ours = info(&images.user, &path);
        let theirs = qemu_img_info(&path);
        let data = &theirs["format-specific"]["data"];
        let luks = if format == "raw" { data } else { &data["encrypt"] };
        assert_eq!(ours["format"], format);
        assert_eq!(ours["virtual-size"], theirs["virtual-size"]);
        assert_eq!(ours["encryption"]["uuid"], luks["uuid"]);
        assert_eq!(ours["encryption"]["hash"], luks["hash-alg"]);
        assert_eq!(ours["encryption"]["digest-iterations"], luks["master-key-iters"]);
        assert_eq!(ours["encryption"]["payload-offset"], luks["payload-offset"]);
        for n in 0..8 {
            let (ours, theirs) = (&ours["encryption"]["slots"][n], &luks["slots"][n]);
            assert_eq!(ours["active"], theirs["active"]);
            assert_eq!(ours["iterations"], theirs["iters"]);
        }
    }
}

#[test]
fn the_cipher_is_the_one_that_was_asked_for() {
    let Some(images) = Images::new() else { return };
    let path = images.path("serpent.img");
    let uuid = images.secret("x");
    let cipher = ["--cipher", "serpent-256-cbc-essiv:sha256", "--hash", "sha512", "--kdf", "fast"];
    let args = [&["volume", "create", &path, "--size", "1M", "--secret", &uuid][..], &cipher].concat();
    images.user.ok(&args, b"");
    let luks = &info(&images.user, &path)["encryption"];
    assert_eq!(luks["cipher"], "serpent");
    assert_eq!(luks["mode"], "cbc-essiv:sha256");
    assert_eq!(luks["hash"], "sha512");
    opens(&path, "qcow2", "x").unwrap();
}

#[test]
fn what_is_there_is_replaced_only_with_force() {
    let Some(images) = Images::new() else { return };
    let path = images.path("a.img");
    fs::write(&path, "precious").unwrap();
    let said = images.user.fails(64, &["volume", "create", &path, "--size", "1M", "--generate"], b"");
    assert!(said.contains("exists already") && said.contains("--force"), "{said}");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    assert!(images.secrets().is_empty());
    images.user.ok(&["volume", "create", &path, "--size", "1M", "--generate", "--force"], b"");
    assert_eq!(info(&images.user, &path)["format"], "qcow2");
    assert_eq!(images.names(), ["a.img"]);
}

#[test]
fn requests_that_make_no_sense_make_nothing() {
    let Some(images) = Images::new() else { return };
    let path = images.path("a.img");
    let missing_dir = images.path("no/a.img");
    for (args, said) in [
        (&[&path[..], "--size", "1Q"][..], "whole number with a unit"),
        (&[&path, "--size", "0"], "cannot be empty"),
        (&[&path], "needs a size"),
        (&[&path, "--size", "1M", "--format", "vmdk"], "qcow2, raw, luks or luks2"),
        (&[&path, "--size", "1M", "--format", "raw", "--preallocation", "metadata"], "no metadata"),
        (&[&path, "--size", "1M", "--cipher", "des-56-ecb"], "not a cipher"),
        (
            &[&path, "--size", "1M", "--backing", "b", "--backing-format", "raw", "--format", "raw"],
            "qcow2 can",
        ),
        (&[&path, "--size", "1M", "--backing", "b"], "--backing-format"),
    ] {
        let args = [&["volume", "create", "--generate"], args].concat();
        let e = images.user.fails(64, &args, b"");
        assert!(e.contains(said), "{args:?}: {e}");
    }
    let e = images.user.fails(64, &["volume", "create", &path, "--size", "1M"], b"");
    assert!(e.contains("--secret") && e.contains("--generate"), "{e}");
    images.user.fails(66, &["volume", "create", &missing_dir, "--size", "1M", "--generate"], b"");
    assert!(images.names().is_empty());
    assert!(images.secrets().is_empty(), "a generated secret stays behind");
}

#[test]
fn a_secret_that_cannot_serve_is_named() {
    let Some(images) = Images::new() else { return };
    let path = images.path("a.img");
    let create = |secret: &str, exit| {
        images.user.fails(exit, &["volume", "create", &path, "--size", "1M", "--secret", secret], b"")
    };
    assert!(create("/no/such/usage", 66).contains("/no/such/usage"));
    assert!(create("2f3e4d5c-0000-4000-8000-000000000000", 66).contains("2f3e4d5c"));
    let no_value = images.user.define("");
    assert!(create(&no_value, 66).contains("no value"));
    let other = images.user.uuid(&["secret", "generate", "--usage-ceph", "client.admin"], b"");
    assert!(create(&other, 65).contains("is for ceph"));
    let binary = images.user.define("");
    images.user.ok(&["secret", "set-value", &binary], b"\xff\xfe\0");
    assert!(create(&binary, 65).contains("UTF-8"));
    let long = images.user.define("");
    images.user.ok(&["secret", "set-value", &long], &[b'x'; 5000]);
    assert!(create(&long, 65).contains("too long"));
    assert!(images.names().is_empty());
}

#[test]
fn private_secrets_are_used() {
    let Some(images) = Images::new() else { return };
    let uuid = images.user.uuid(&["secret", "generate", "--private"], b"");
    let path = images.path("a.img");
    images.user.ok(&["volume", "create", &path, "--size", "1M", "--secret", &uuid], b"");
    images.user.fails(77, &["secret", "get-value", &uuid], b"");
}

#[test]
fn an_overlay_of_an_encrypted_volume_is_encrypted() {
    let Some(images) = Images::new() else { return };
    images.create("base.qcow2", "qcow2");
    images.create("base.luks", "raw");
    for (base, format) in [("base.qcow2", "qcow2"), ("base.luks", "raw")] {
        let path = images.path("top.img");
        let backing = ["--generate", "--backing", base, "--backing-format", format, "--force"];
        // A second secret of that usage is refused: the first one's is used.
        if base == "base.qcow2" {
            images.user.ok(&[&["volume", "create", &path][..], &backing].concat(), b"");
        } else {
            let args = [&["volume", "create", &path, "--secret", &path][..], &backing[1..]].concat();
            images.user.ok(&args, b"");
        }
        let seen = info(&images.user, &path);
        assert_eq!(seen["virtual-size"], 1 << 20, "the size of the backing image");
        assert_eq!(seen["backing"]["path"], base);
        assert_eq!(seen["encryption"]["version"], 1);
    }
    let e = images.user.fails(
        65,
        &[
            "volume",
            "create",
            &images.path("x"),
            "--generate",
            "--backing",
            "base.luks",
            "--backing-format",
            "qcow2",
        ],
        b"",
    );
    assert!(e.contains("is raw, not qcow2"), "{e}");
}

#[test]
fn info_tells_plain_from_encrypted_and_needs_no_key() {
    let Some(images) = Images::new() else { return };
    let plain = images.path("plain.qcow2");
    images.qemu_img(&["create", "-q", "-f", "qcow2", &plain, "3M"]);
    let seen = info(&images.user, &plain);
    assert_eq!((&seen["format"], &seen["virtual-size"]), (&"qcow2".into(), &(3 << 20).into()));
    assert!(seen["encryption"].is_null());
    let raw = images.path("plain.raw");
    fs::write(&raw, vec![0; 4096]).unwrap();
    assert_eq!(info(&images.user, &raw)["format"], "raw");

    for version in ["luks1", "luks2"] {
        let path = images.path(version);
        if !images::cryptsetup_format(&path, version) {
            continue;
        }
        let seen = info(&images.user, &path);
        let luks = &seen["encryption"];
        assert_eq!(luks["version"], if version == "luks1" { 1 } else { 2 });
        assert_eq!(luks["uuid"], images::CRYPTSETUP_UUID);
        if version == "luks1" {
            assert_eq!(luks["slots"][0]["iterations"], 1000);
            assert_eq!(luks["mode"], "xts-plain64");
        }
        let text = String::from_utf8(images.user.ok(&["volume", "info", &path], b"")).unwrap();
        assert!(text.contains("Encryption:") && text.contains("none in the keystores"), "{text}");
    }
    images.user.fails(66, &["volume", "info", &images.path("nothing")], b"");
    images.user.fails(64, &["volume", "info", images.dir().to_str().unwrap()], b"");
    let broken = images.path("broken");
    fs::write(&broken, b"LUKS\xba\xbe\0\x01").unwrap();
    assert!(images.user.fails(65, &["volume", "info", &broken], b"").contains("cut off"));
}

#[test]
fn a_volume_is_made_from_libvirts_xml() {
    let Some(images) = Images::new() else { return };
    let path = images.path("v.qcow2");
    let xml = |secret: &str| {
        format!(
            "<volume>\n<name>v.qcow2</name>\n<capacity unit='MiB'>2</capacity>\n<target>\n<path>{path}</path>\n\
             <format type='qcow2'/>\n<permissions><mode>0640</mode></permissions>\n\
             <encryption format='luks'>\n{secret}\n</encryption>\n</target>\n</volume>\n"
        )
    };
    let create = ["volume", "create", "--volume-xml", "-"];
    let e = images.user.fails(66, &create, xml("<secret type='passphrase' usage='nobody'/>").as_bytes());
    assert!(e.contains("<stdin>:9:1") && e.contains("nobody"), "{e}");
    let e = images.user.fails(65, &create, xml("<secret type='passphrase'/><x/>").as_bytes());
    assert!(e.contains("<stdin>:9:28") && e.contains("<x>"), "{e}");
    assert!(images.names().is_empty() && images.secrets().is_empty());

    let printed = images.user.ok(&create, xml("<secret type='passphrase'/>").as_bytes());
    let printed = String::from_utf8(printed).unwrap();
    let secrets = images.secrets();
    assert_eq!(secrets.len(), 1);
    assert!(printed.contains(&format!("<secret type='passphrase' uuid='{}'/>", secrets[0])), "{printed}");
    assert_eq!(info(&images.user, &path)["virtual-size"], 2 << 20);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
    // What was printed describes the same volume again, now with its secret.
    let again = [&create[..], &["--force"]].concat();
    assert!(images.user.ok(&again, printed.as_bytes()).is_empty());
}

#[test]
fn the_file_is_given_to_who_is_to_run_it() {
    let Some(images) = Images::new() else { return };
    let path = images.path("a.img");
    let create = ["volume", "create", &path, "--size", "1M", "--generate", "--owner"];
    let said = images.user.fails(64, &[&create[..], &["no-such-user-4711"]].concat(), b"");
    assert!(said.contains("no user 'no-such-user-4711'"), "{said}");
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root gives files away");
        return;
    }
    images.user.ok(&[&create[..], &["daemon:4711"]].concat(), b"");
    let metadata = fs::metadata(&path).unwrap();
    let daemon = nix::unistd::User::from_name("daemon").unwrap().unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (daemon.uid.as_raw(), 4711));
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
}
