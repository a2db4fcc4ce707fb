//! `vmward secret`, as a user has it: the program itself, its exit codes, and what it leaves on disk.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod user;

use std::fs::{self, Permissions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use command_fds::{CommandFdExt, FdMapping};
use nix::pty::openpty;
use uuid::Uuid;

use user::User;

/// Every file below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

fn contains(path: &Path, needle: &[u8]) -> bool {
    fs::read(path).unwrap().windows(needle.len()).any(|w| w == needle)
}

#[test]
fn a_value_goes_in_and_comes_out_and_is_in_no_file() {
    let user = User::new();
    let uuid = user.define("<usage type='volume'><volume>/images/a.qcow2</volume></usage>");
    let value = b"correct horse battery staple 4711";
    user.ok(&["secret", "set-value", &uuid], value);
    assert_eq!(user.ok(&["secret", "get-value", &uuid], b""), value);
    assert_eq!(user.ok(&["secret", "get-value", "/images/a.qcow2"], b""), value);
    let base64 = STANDARD.encode(value);
    assert_eq!(user.ok(&["secret", "get-value", "--base64", &uuid], b""), format!("{base64}\n").into_bytes());
    let hex: String = value.iter().map(|b| format!("{b:02x}")).collect();
    for path in files(user.home.path()) {
        for needle in [&value[..], base64.as_bytes(), hex.as_bytes(), &value[..12]] {
            assert!(!contains(&path, needle), "{} shows the value", path.display());
        }
        if path.starts_with(user.store()) || path == user.key() {
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600, "{}", path.display());
        }
    }
    assert_eq!(fs::metadata(user.store()).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn the_value_is_read_from_where_it_is_said_to_be() {
    let user = User::new();
    let uuid = user.define("");
    let file = user.home.path().join("value");
    fs::write(&file, [0, 159, 10, 255]).unwrap();
    user.ok(&["secret", "set-value", &uuid, "--file", file.to_str().unwrap()], b"not this");
    assert_eq!(user.ok(&["secret", "get-value", &uuid], b""), [0, 159, 10, 255]);
    // Descriptor 0 is one that every process has, 9 one that was opened for it.
    user.ok(&["secret", "set-value", &uuid, "--fd", "0"], b"by descriptor");
    assert_eq!(user.ok(&["secret", "get-value", &uuid], b""), b"by descriptor");
    let parent_fd = fs::File::open(&file).unwrap().into();
    let mut command = user.command(&["secret", "set-value", &uuid, "--fd", "9"]);
    command.fd_mappings(vec![FdMapping { parent_fd, child_fd: 9 }]).unwrap();
    assert!(command.status().unwrap().success());
    assert_eq!(user.ok(&["secret", "get-value", &uuid], b""), [0, 159, 10, 255]);
    user.ok(&["secret", "set-value", &uuid, "--base64"], b"aGVs\nbG8=\n");
    assert_eq!(user.ok(&["secret", "get-value", &uuid], b""), b"hello");
    assert!(user.fails(65, &["secret", "set-value", &uuid, "--base64"], b"hunter2!").contains("not base64"));
    user.fails(66, &["secret", "set-value", &uuid, "--file", "/nowhere"], b"");
    user.fails(66, &["secret", "set-value", &uuid, "--fd", "250"], b"");
    assert!(user.fails(65, &["secret", "set-value", &uuid], b"").contains("empty"));
    assert!(user.fails(65, &["secret", "set-value", &uuid], &vec![b'x'; (1 << 20) + 1]).contains("longer"));
    assert_eq!(user.ok(&["secret", "get-value", &uuid], b""), b"hello");
    // A value is never an argument.
    user.fails(64, &["secret", "set-value", &uuid, "hunter2"], b"");
}

#[test]
fn a_newline_at_the_end_takes_a_word() {
    let user = User::new();
    let uuid = user.define("");
    let said = user.fails(65, &["secret", "set-value", &uuid], b"hunter2\n");
    assert!(said.contains("--strip-newline") && !said.contains("hunter2"), "{said}");
    assert!(user.fails(66, &["secret", "get-value", &uuid], b"").contains("set-value"));
    user.ok(&["secret", "set-value", &uuid, "--strip-newline"], b"hunter2\n\n");
    assert_eq!(user.ok(&["secret", "get-value", &uuid], b""), b"hunter2\n");
    user.ok(&["secret", "set-value", &uuid, "--keep-newline"], b"hunter2\n");
    assert_eq!(user.ok(&["secret", "get-value", &uuid], b""), b"hunter2\n");
}

#[test]
fn on_a_terminal_the_value_is_asked_for_and_not_shown() {
    let user = User::new();
    let uuid = user.define("");
    let typed = |first: &[u8], second: &[u8]| {
        let pty = openpty(None, None).unwrap();
        let mut child = user
            .command(&["secret", "set-value", &uuid])
            .stdin(pty.slave.try_clone().unwrap())
            .spawn()
            .unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let mut said = Vec::new();
        for (question, answer) in [("Value: ", first), ("Again: ", second)] {
            while !said.ends_with(question.as_bytes()) {
                let mut byte = [0];
                assert_eq!(stderr.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&said));
                said.push(byte[0]);
            }
            nix::unistd::write(pty.master.as_fd(), answer).unwrap();
        }
        let status = child.wait().unwrap();
        // Read back what the terminal has shown: of a line that is not echoed, nothing.
        nix::unistd::write(pty.slave.as_fd(), b"end").unwrap();
        let mut shown = [0; 256];
        let len = nix::unistd::read(pty.master.as_fd(), &mut shown).unwrap();
        assert_eq!(&shown[..len], b"end");
        status.code()
    };
    assert_eq!(typed(b"open sesame\n", b"open sesame\n"), Some(0));
    assert_eq!(user.ok(&["secret", "get-value", &uuid], b""), b"open sesame");
    assert_eq!(typed(b"one\n", b"two\n"), Some(65));
    assert_eq!(user.ok(&["secret", "get-value", &uuid], b""), b"open sesame");
}

#[test]
fn a_generated_value_is_a_passphrase_of_256_bits() {
    let user = User::new();
    let uuid = user.uuid(&["secret", "generate", "--usage-volume", "/a", "--description", "the first"], b"");
    let value = user.ok(&["secret", "get-value", "/a"], b"");
    assert_eq!(STANDARD.decode(&value).unwrap().len(), 32);
    let made: serde_json::Value =
        serde_json::from_slice(&user.ok(&["secret", "generate", "--usage-tls", "web", "--json"], b""))
            .unwrap();
    assert_eq!(made["usage"], serde_json::json!({ "type": "tls", "id": "web" }));
    assert_ne!(user.ok(&["secret", "get-value", "web"], b""), value);
    assert!(user.fails(65, &["secret", "generate", "--usage-volume", "/a"], b"").contains(&uuid));
    assert!(user.fails(65, &["secret", "generate", "--uuid", &uuid], b"").contains("already"));
    assert_eq!(user.ok(&["secret", "get-value", "/a"], b""), value);
    user.fails(64, &["secret", "generate", "--usage-volume", "/b", "--usage-ceph", "b"], b"");
    user.fails(65, &["secret", "generate", "--usage-volume", "/b\x1b[2J"], b"");
    user.fails(65, &["secret", "generate", "--usage-volume", ""], b"");
}

#[test]
fn definitions_are_listed_shown_changed_and_removed() {
    let user = User::new();
    let xml = "<uuid>c5d7b1b4-1f5e-4f0e-9d2a-2f6c3a1b0e11</uuid>";
    let usage = "<usage type='ceph'><name>client.a</name></usage>";
    let uuid = user.define(&format!("{xml}{usage}"));
    user.define(&format!("{xml}<description>for the pool</description>{usage}"));
    let shown = String::from_utf8(user.ok(&["secret", "dumpxml", "client.a"], b"")).unwrap();
    assert!(shown.contains("for the pool") && shown.contains(&uuid), "{shown}");
    let list: serde_json::Value =
        serde_json::from_slice(&user.ok(&["secret", "list", "--json"], b"")).unwrap();
    let row = list.as_array().unwrap().iter().find(|row| row["uuid"] == uuid.as_str()).unwrap();
    assert_eq!(row["has-value"], false);
    assert_eq!(row["description"], "for the pool");
    let table = String::from_utf8(user.ok(&["secret", "list"], b"")).unwrap();
    assert!(table.contains(&format!("{uuid}  ceph client.a")), "{table}");

    let other = format!("<secret>{xml}<usage type='ceph'><name>client.b</name></usage></secret>");
    assert!(user.fails(65, &["secret", "define", "-"], other.as_bytes()).contains("another usage"));
    let twin = format!("<secret>{usage}</secret>");
    assert!(user.fails(65, &["secret", "define", "-"], twin.as_bytes()).contains(&uuid));
    let ephemeral = format!("<secret ephemeral='yes'>{xml}{usage}</secret>");
    assert!(user.fails(65, &["secret", "define", "-"], ephemeral.as_bytes()).contains("ephemeral"));
    let private = format!("<secret private='yes'>{xml}{usage}</secret>");
    user.ok(&["secret", "define", "-"], private.as_bytes());
    let public = format!("<secret>{xml}{usage}</secret>");
    assert!(user.fails(65, &["secret", "define", "-"], public.as_bytes()).contains("private"));

    user.ok(&["secret", "set-value", &uuid], b"hunter2");
    let said = user.fails(77, &["secret", "get-value", &uuid], b"");
    assert!(said.contains("private") && !said.contains("hunter2"), "{said}");
    user.ok(&["secret", "undefine", "client.a"], b"");
    for command in ["get-value", "dumpxml", "undefine", "set-value"] {
        assert!(user.fails(66, &["secret", command, &uuid], b"x").contains("vmward secret list"));
    }
    assert!(!files(&user.store()).iter().any(|f| f.display().to_string().contains(&uuid)));
}

#[test]
fn one_usage_id_of_two_kinds_is_named_by_its_uuid() {
    let user = User::new();
    let tls = user.define("<usage type='tls'><name>a</name></usage>");
    let ceph = user.define("<usage type='ceph'><name>a</name></usage>");
    let said = user.fails(64, &["secret", "dumpxml", "a"], b"");
    assert!(said.contains(&tls) && said.contains(&ceph), "{said}");
}

#[test]
fn without_the_right_key_a_value_is_refused_and_nothing_is_lost() {
    let user = User::new();
    let uuid = user.uuid(&["secret", "generate"], b"");
    let value = user.ok(&["secret", "get-value", &uuid], b"");
    let aside = user.home.path().join("aside");
    fs::rename(user.key(), &aside).unwrap();
    assert!(user.fails(77, &["secret", "get-value", &uuid], b"").contains("keystore.key"));
    assert!(String::from_utf8(user.ok(&["secret", "list"], b"")).unwrap().contains(&uuid));

    // Another user's key.
    let other = User::new();
    other.ok(&["secret", "generate"], b"");
    fs::copy(other.key(), user.key()).unwrap();
    assert!(user.fails(77, &["secret", "get-value", &uuid], b"").contains("another key"));

    fs::copy(&aside, user.key()).unwrap();
    fs::set_permissions(user.key(), Permissions::from_mode(0o644)).unwrap();
    assert!(user.fails(77, &["secret", "get-value", &uuid], b"").contains("others may read"));
    fs::write(user.key(), "AGE-SECRET-KEY-1NONSENSE\n").unwrap();
    fs::set_permissions(user.key(), Permissions::from_mode(0o600)).unwrap();
    let said = user.fails(65, &["secret", "get-value", &uuid], b"");
    assert!(said.contains("not an age identity") && !said.contains("NONSENSE"), "{said}");

    // systemd's credential goes first.
    let credentials = user.home.path().join("credentials");
    fs::create_dir(&credentials).unwrap();
    fs::rename(&aside, credentials.join("vmward-keystore")).unwrap();
    fs::remove_file(user.key()).unwrap();
    let output = user
        .command(&["secret", "get-value", &uuid])
        .env("CREDENTIALS_DIRECTORY", &credentials)
        .output()
        .unwrap();
    assert_eq!(output.stdout, value, "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_damaged_secret_hides_no_other() {
    let user = User::new();
    let (good, bad) = (user.uuid(&["secret", "generate"], b""), user.uuid(&["secret", "generate"], b""));
    let file = user.store().join(format!("{bad}.age"));
    let mut content = fs::read(&file).unwrap();
    *content.last_mut().unwrap() ^= 1;
    fs::write(&file, content).unwrap();
    user.fails(65, &["secret", "get-value", &bad], b"");
    fs::write(&file, "age-encryption.org/v1\n").unwrap();
    assert!(user.fails(65, &["secret", "get-value", &bad], b"").contains("damaged"));
    fs::write(user.store().join(format!("{bad}.xml")), "<secret>").unwrap();
    let output = user.run(&["secret", "list"], b"");
    assert_eq!(output.status.code(), Some(65));
    assert!(String::from_utf8(output.stdout).unwrap().contains(&good));
    assert!(String::from_utf8(output.stderr).unwrap().contains(&bad));
    assert_eq!(user.ok(&["secret", "get-value", &good], b"").len(), 44);
    user.fails(65, &["secret", "get-value", &bad], b"");
    user.ok(&["secret", "undefine", &bad], b"");
    user.ok(&["secret", "list"], b"");
}

#[test]
fn writers_at_the_same_time_do_not_disturb_each_other() {
    let user = User::new();
    let shared = user.define("<usage type='volume'><volume>/shared</volume></usage>");
    let value = |n: u8| vec![b'a' + n; 5000];
    let children: Vec<_> = (0..8)
        .flat_map(|n| {
            [
                user.start(&["secret", "generate", "--usage-volume", &format!("/own/{n}")], b""),
                user.start(&["secret", "set-value", &shared], &value(n)),
                user.start(&["secret", "generate", "--usage-volume", "/one"], b""),
            ]
        })
        .collect();
    let done: Vec<_> = children.into_iter().map(|c| c.wait_with_output().unwrap()).collect();
    for pair in done.chunks(3) {
        assert!(pair[0].status.success() && pair[1].status.success());
    }
    let winners = done.chunks(3).filter(|c| c[2].status.success()).count();
    assert_eq!(winners, 1, "one usage was given to {winners} secrets");
    let left = user.ok(&["secret", "get-value", &shared], b"");
    assert!((0..8).any(|n| value(n) == left));
    for n in 0..8 {
        assert_eq!(user.ok(&["secret", "get-value", &format!("/own/{n}")], b"").len(), 44);
    }
}

#[test]
fn a_writer_that_is_killed_leaves_a_store_that_works() {
    let user = User::new();
    let kept = user.uuid(&["secret", "generate"], b"");
    for n in 0..25 {
        let mut child = user.start(&["secret", "generate", "--usage-volume", &format!("/{n}")], b"");
        std::thread::sleep(Duration::from_micros(n * 900));
        let _ = child.kill();
        child.wait().unwrap();
    }
    // What a writer leaves that is killed between writing and renaming.
    fs::write(user.store().join(".tmp-half"), "half a file").unwrap();
    let list: serde_json::Value =
        serde_json::from_slice(&user.ok(&["secret", "list", "--json"], b"")).unwrap();
    let in_store = |row: &&serde_json::Value| row["keystore"].as_str().unwrap().starts_with("file:");
    let mut found = 0;
    for row in list.as_array().unwrap().iter().filter(in_store) {
        found += 1;
        if row["has-value"] == true {
            let value = user.ok(&["secret", "get-value", row["uuid"].as_str().unwrap()], b"");
            assert_eq!(STANDARD.decode(value).unwrap().len(), 32);
        }
    }
    println!("{found} of 26 secrets are there");
    assert_eq!(user.ok(&["secret", "get-value", &kept], b"").len(), 44);
    user.ok(&["secret", "generate"], b"");
    let left: Vec<_> = files(&user.store())
        .into_iter()
        .filter(|f| f.file_name().unwrap().to_str().unwrap().starts_with(".tmp"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn an_ephemeral_secret_is_never_on_disk() {
    let user = User::new();
    let usage = format!("/test/{}", Uuid::new_v4());
    let output = user.run(&["secret", "generate", "--ephemeral", "--usage-volume", &usage], b"");
    if output.status.code() == Some(69) {
        println!("not tested: {}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let value = user.ok(&["secret", "get-value", &usage], b"");
    assert_eq!(value.len(), 44);
    assert!(!user.store().exists() && !user.key().exists());
    assert!(
        user.fails(65, &["secret", "generate", "--ephemeral", "--usage-volume", &usage], b"")
            .contains("taken")
    );
    assert!(user.fails(65, &["secret", "generate", "--usage-volume", &usage], b"").contains("taken"));
    user.ok(&["secret", "undefine", &usage], b"");
    user.fails(66, &["secret", "get-value", &usage], b"");
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused() {
    let user = User::new();
    for (text, said) in [
        ("keystore = 'file:'", "file:"),
        ("keystore = ['ftp:/x']", "ftp:/x"),
        ("keystores = 'file:x'", "keystores"),
        ("keystore = 1", "vmward.toml"),
    ] {
        fs::write(user.home.path().join("vmward.toml"), text).unwrap();
        let message = user.fails(78, &["secret", "list"], b"");
        assert!(message.contains(said), "{message}");
    }
    fs::remove_file(user.home.path().join("vmward.toml")).unwrap();
    let dir = format!("file:{}", user.home.path().join("elsewhere").display());
    user.ok(&["secret", "generate", "--keystore", &dir], b"");
    assert!(user.home.path().join("elsewhere/recipients.txt").exists());
    assert!(
        user.fails(69, &["secret", "generate", "--keystore", "file:/proc/secrets"], b"")
            .contains("/proc/secrets")
    );
    assert!(user.fails(78, &["secret", "generate", "--keystore", "keyring:"], b"").contains("next boot"));
}

#[test]
fn secrets_of_libvirt_are_moved_over() {
    let user = User::new();
    let dir = user.home.path().join("libvirt");
    fs::create_dir(&dir).unwrap();
    let uuid = "c5d7b1b4-1f5e-4f0e-9d2a-2f6c3a1b0e11";
    let xml = format!(
        "<secret ephemeral='no' private='no'>\n  <uuid>{uuid}</uuid>\n  <usage type='volume'>\n    \
         <volume>/images/a.qcow2</volume>\n  </usage>\n</secret>\n"
    );
    fs::write(dir.join(format!("{uuid}.xml")), &xml).unwrap();
    fs::write(dir.join(format!("{uuid}.base64")), STANDARD.encode("of libvirt")).unwrap();
    let from = format!("libvirt:{}", dir.display());
    let import = |more: &[&str]| user.run(&[&["secret", "import", "--from", &from], more].concat(), b"");
    let said = |output: &std::process::Output| String::from_utf8(output.stdout.clone()).unwrap();
    let line = |what: &str| format!("{uuid}  volume /images/a.qcow2: {what}\n");
    assert_eq!(said(&import(&["--dry-run"])), line("would be imported"));
    assert!(!user.store().exists());
    assert_eq!(said(&import(&[])), line("imported"));
    assert_eq!(user.ok(&["secret", "get-value", uuid], b""), b"of libvirt");
    assert_eq!(user.ok(&["secret", "dumpxml", uuid], b""), xml.as_bytes());
    assert_eq!(said(&import(&["/images/a.qcow2"])), line("is there already"));
    user.ok(&["secret", "set-value", uuid], b"set here");
    let import_one = ["secret", "import", "--from", &from, uuid];
    assert!(user.fails(65, &import_one, b"").contains("--force"));
    assert_eq!(user.ok(&["secret", "get-value", uuid], b""), b"set here");
    assert_eq!(said(&import(&["--force"])), line("replaced"));
    assert_eq!(user.ok(&["secret", "get-value", uuid], b""), b"of libvirt");
    assert!(user.fails(66, &["secret", "import", "--from", &from, "/images/b"], b"").contains("/images/b"));
    fs::remove_dir_all(&dir).unwrap();
    let nothing = import(&[]);
    assert!(nothing.status.success() && String::from_utf8_lossy(&nothing.stderr).contains("no secrets in"));
}
