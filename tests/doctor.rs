//! `vmward doctor` and `vmward completions`.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod user;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use serde_json::Value;
use user::User;

/// The state and message of each finding about something.
fn findings(user: &User, about: &str) -> Vec<(String, String)> {
    let output = user.run(&["doctor", "--json"], b"");
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    let all = all.as_array().unwrap();
    let failed = all.iter().any(|f| f["state"] == "error");
    assert_eq!(output.status.code(), Some(if failed { 69 } else { 0 }), "{all:?}");
    let text = |f: &Value, key: &str| f[key].as_str().unwrap().to_owned();
    let wanted = all.iter().filter(|f| f["about"] == about);
    wanted.map(|f| (text(f, "state"), text(f, "message"))).collect()
}

/// Whether something of that state says that about something.
fn says(user: &User, about: &str, state: &str, text: &str) -> bool {
    findings(user, about).iter().any(|(s, message)| s == state && message.contains(text))
}

#[test]
fn a_keystore_that_cannot_be_used_is_found() {
    let user = User::new();
    assert!(says(&user, "keystore", "ok", "answers a lookup in"));
    let uuid = user.uuid(&["secret", "generate"], b"");
    assert!(says(&user, "keystore", "ok", "has 1 secret") && says(&user, "key", "ok", "keystore.key"));
    let away = user.home.path().join("away");
    fs::rename(user.key(), &away).unwrap();
    assert!(says(&user, "keystore", "error", &uuid) && says(&user, "key", "ok", "and not read"));
    fs::rename(&away, user.key()).unwrap();
    // Another key than that of the values to come.
    let other = User::new();
    other.ok(&["secret", "generate"], b"");
    let recipients = user.store().join("recipients.txt");
    fs::rename(&recipients, &away).unwrap();
    fs::copy(other.store().join("recipients.txt"), &recipients).unwrap();
    assert!(says(&user, "key", "warning", "cannot be read with the key"));
    fs::rename(&away, &recipients).unwrap();
    assert!(says(&user, "files", "ok", "as they should be"));
    let value = user.store().join(format!("{uuid}.age"));
    fs::set_permissions(&value, Permissions::from_mode(0o666)).unwrap();
    assert!(says(&user, "files", "warning", &format!("{uuid}.age (0666")));
    assert!(says(&user, "keystore", "error", "others may write"));
    fs::set_permissions(&value, Permissions::from_mode(0o600)).unwrap();
    fs::write(user.store().join(format!("{uuid}.xml")), "<secret").unwrap();
    assert!(says(&user, "keystore", "error", "damaged"));
}

#[test]
fn a_keystore_that_hangs_hides_nothing() {
    let user = User::new();
    user.ok(&["secret", "generate"], b"");
    let toml = "keystore = ['file:secrets', 'file:other']\nkeystore-timeout = 1\n";
    fs::write(user.home.path().join("vmward.toml"), toml).unwrap();
    // A key that does not come: a pipe that nobody writes.
    fs::remove_file(user.key()).unwrap();
    nix::unistd::mkfifo(&user.key(), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let started = Instant::now();
    let found = findings(&user, "keystore");
    assert!(started.elapsed() < Duration::from_secs(120), "{:?}", started.elapsed());
    let of = |name: &str| found.iter().filter(|(_, m)| m.contains(&format!("/{name} "))).collect::<Vec<_>>();
    let late = of("secrets");
    assert!(
        late[0].1.contains("answers") && late.iter().any(|(s, m)| s == "warning" && m.contains("within 1 s")),
        "{found:?}"
    );
    assert!(of("other").iter().any(|(s, m)| s == "ok" && m.contains("has 0 secrets")), "{found:?}");
}

#[test]
fn where_memory_could_go_and_what_qemu_can_do_is_said() {
    let user = User::new();
    for about in ["runtime directory", "locked memory", "swap", "core dumps"] {
        assert_eq!(findings(&user, about).len(), 1, "{about}");
    }
    let program = |name: &str| std::process::Command::new(name).arg("--version").output().is_ok();
    if !program("/usr/bin/qemu-system-x86_64") || !program("qemu-img") {
        println!("skipped: there is no QEMU");
        return;
    }
    assert!(says(&user, "qemu-img", "ok", "encrypted volumes"));
    for ability in ["sandbox", "encrypted disks", "LUKS headers"] {
        assert!(findings(&user, "QEMU").iter().any(|(_, m)| m.contains(ability)), "{ability}");
    }
}

#[test]
fn what_a_dead_supervisor_left_is_found() {
    let user = User::new();
    let left = |user: &User| findings(user, "left-overs").swap_remove(0);
    assert_eq!(left(&user).0, "ok");
    let dir = user.home.path().join("run/web1");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("state.json"), "{}").unwrap();
    let (state, message) = left(&user);
    assert!(state == "warning" && message.contains("web1"), "{state} {message}");
    // A QEMU of it, as far as can be told from its arguments.
    let key = format!("{}/master-key.aes", dir.display());
    let mut orphan = std::process::Command::new("sh")
        .args(["-c", "read line", &key])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let (state, message) = left(&user);
    orphan.kill().unwrap();
    orphan.wait().unwrap();
    let expected = format!("a QEMU that runs (process {})", orphan.id());
    assert!(state == "warning" && message.contains(&expected), "{state} {message}");
    // A supervisor that lives holds a lock on its directory.
    let held = fs::File::open(&dir).unwrap();
    held.lock().unwrap();
    assert_eq!(left(&user).0, "ok");
}

#[test]
fn completions_and_the_manual_know_the_commands() {
    let user = User::new();
    for format in ["bash", "zsh", "fish", "elvish", "man"] {
        let text = String::from_utf8(user.ok(&["completions", format], b"")).unwrap();
        assert!(text.contains("secret"), "{format}");
    }
}
