//! `vmward doctor` and `vmward completions`.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod user;

use std::fs;

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

#[test]
fn a_keystore_that_cannot_be_used_is_found() {
    let user = User::new();
    let store = |user: &User| findings(user, "keystore").swap_remove(0);
    assert_eq!(store(&user).0, "ok");
    let uuid = user.uuid(&["secret", "generate"], b"");
    let (state, message) = store(&user);
    assert!(state == "ok" && message.contains("has 1 secret "), "{state} {message}");
    fs::rename(user.key(), user.home.path().join("away")).unwrap();
    let (state, message) = store(&user);
    assert!(state == "error" && message.contains(&uuid), "{state} {message}");
    fs::rename(user.home.path().join("away"), user.key()).unwrap();
    fs::write(user.store().join(format!("{uuid}.xml")), "<secret").unwrap();
    let (state, message) = store(&user);
    assert!(state == "error" && message.contains("damaged"), "{state} {message}");
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
