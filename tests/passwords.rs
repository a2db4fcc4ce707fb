//! The passwords of displays, tried by a client that logs in: from a secret, from the XML, changed, expired, removed.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod bare;
mod user;
mod vnc;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use bare::{Host, Run, objects};
use vnc::{Login, login};

/// The secret of the display.
const SECRET: &str = "0a7c5e52-0000-4000-8000-0000000000d1";
/// A time that is over.
const PAST: &str = "2009-02-13T23:31:30";
/// One that this test does not see.
const FUTURE: &str = "2105-01-01T00:00:00";

fn socket(host: &Host) -> PathBuf {
    host.path("vnc.sock")
}

/// A guest with a VNC display.
fn guest(host: &Host, attributes: &str, inside: &str) -> PathBuf {
    let display = format!(
        "<graphics type='vnc' {attributes}><listen type='socket' socket='{}'/>{inside}</graphics>",
        socket(host).display()
    );
    host.guest("guest", &display)
}

fn with_secret() -> String {
    format!("<secret type='passphrase' uuid='{SECRET}'/>")
}

/// Whether that password, and none of some others, lets a client in.
fn only(host: &Host, password: &str) {
    assert_eq!(login(&socket(host), password), Login::In, "{password}");
    for other in ["", "wrong", "hunter3"] {
        assert_eq!(login(&socket(host), other), Login::Out, "{other}");
    }
}

fn nobody(host: &Host, passwords: &[&str]) {
    for password in passwords.iter().chain(&[""]) {
        assert_eq!(login(&socket(host), password), Login::Out, "{password}");
    }
}

fn set(host: &Host, options: &[&str], value: &[u8]) {
    host.user.ok(&[&["set-password", "guest", "vnc"], options].concat(), value);
}

fn destroyed(host: &Host, run: Run) -> String {
    host.user.ok(&["destroy", "guest"], b"");
    run.ends(0)
}

#[test]
fn a_password_from_a_keystore() {
    let host = Host::new();
    host.secret(SECRET, "hunter2");
    let xml = guest(&host, "", &with_secret());
    let run = host.running(&xml);
    only(&host, "hunter2");
    assert_eq!(objects(&host), ["masterKey0"]);
    let argv = host.user.ok(&["argv", xml.to_str().unwrap()], b"");
    let argv = String::from_utf8(argv).unwrap();
    assert!(argv.contains("password-secret=vnc-password-secret0") && !argv.contains("hunter2"), "{argv}");
    let live = String::from_utf8(host.user.ok(&["dumpxml", "guest"], b"")).unwrap();
    assert!(live.contains(SECRET), "{live}");
    destroyed(&host, run);
}

#[test]
fn a_password_in_the_xml_is_warned_of_and_shown_nowhere() {
    let host = Host::new();
    let xml = guest(&host, "passwd='hunter2'", "");
    let checked = host.user.run(&["check", xml.to_str().unwrap()], b"");
    let warned = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(checked.status.success() && warned.contains("warning") && warned.contains("<secret"), "{warned}");
    assert!(!warned.contains("hunter2"), "{warned}");
    let mut run = host.running(&xml);
    only(&host, "hunter2");
    // A supervisor that comes back has no use for it.
    run.signal(Signal::SIGKILL);
    run.ended();
    run = host.running(&xml);
    only(&host, "hunter2");
    let argv = host.user.ok(&["argv", xml.to_str().unwrap()], b"");
    let live = host.user.ok(&["dumpxml", "guest"], b"");
    let status = host.user.ok(&["status", "--json", "guest"], b"");
    let state = fs::read(run.lib_dir().join("state.json")).unwrap();
    for shown in [argv, live.clone(), status, state] {
        let shown = String::from_utf8(shown).unwrap();
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    let said = destroyed(&host, run);
    assert!(!said.contains("hunter2"), "{said}");
    // It does not start with what stands in the place of the password.
    let again = host.path("again.xml");
    fs::write(&again, live).unwrap();
    let said = host.fails(65, &again);
    assert!(said.contains("does not show the password"), "{said}");
}

#[test]
fn a_running_guests_password_is_changed_and_removed() {
    let host = Host::new();
    host.secret(SECRET, "hunter2");
    let run = host.running(&guest(&host, "", &with_secret()));
    set(&host, &[], b"stdin");
    only(&host, "stdin");
    nobody(&host, &["hunter2"]);
    let file = host.path("password");
    fs::write(&file, "file\n").unwrap();
    set(&host, &["--file", file.to_str().unwrap(), "--strip-newline"], b"");
    only(&host, "file");
    let other = host.user.define("<usage type='iscsi'><target>console</target></usage>");
    host.user.ok(&["secret", "set-value", &other], b"stored");
    set(&host, &["--secret", "console"], b"");
    only(&host, "stored");
    set(&host, &["--secret", &other], b"");
    set(&host, &["--remove"], b"");
    nobody(&host, &["stored", "hunter2"]);
    set(&host, &["--secret", SECRET], b"");
    only(&host, "hunter2");
    assert_eq!(objects(&host), ["masterKey0"]);
    destroyed(&host, run);
}

#[test]
fn a_password_comes_by_descriptor() {
    let host = Host::new();
    let run = host.running(&guest(&host, "passwd=''", ""));
    let file = host.path("password");
    fs::write(&file, "by-fd").unwrap();
    let mut command = host.user.command(&["set-password", "guest", "vnc", "--fd", "0"]);
    let output = command.stdin(fs::File::open(&file).unwrap()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    only(&host, "by-fd");
    destroyed(&host, run);
}

#[test]
fn passwords_expire() {
    let host = Host::new();
    host.secret(SECRET, "hunter2");
    let run = host.running(&guest(&host, &format!("passwdValidTo='{PAST}'"), &with_secret()));
    nobody(&host, &["hunter2"]);
    set(&host, &["--expires", FUTURE], b"later");
    only(&host, "later");
    set(&host, &["--expires", PAST], b"over");
    nobody(&host, &["over", "later"]);
    set(&host, &[], b"for-ever");
    only(&host, "for-ever");
    set(&host, &["--expires", "+3"], b"short");
    let start = Instant::now();
    while login(&socket(&host), "short") == Login::In {
        assert!(start.elapsed() < Duration::from_secs(60), "the password does not expire");
        std::thread::sleep(Duration::from_millis(100));
    }
    destroyed(&host, run);
}

#[test]
fn a_password_that_is_valid_lets_in_until_then() {
    let host = Host::new();
    host.secret(SECRET, "hunter2");
    let run = host.running(&guest(&host, &format!("passwdValidTo='{FUTURE}'"), &with_secret()));
    only(&host, "hunter2");
    destroyed(&host, run);
}

#[test]
fn without_a_password_yet_nobody_gets_in() {
    let host = Host::new();
    let run = host.running(&guest(&host, "passwd=''", ""));
    nobody(&host, &["hunter2"]);
    set(&host, &[], b"hunter2");
    only(&host, "hunter2");
    destroyed(&host, run);
}

#[test]
fn what_is_no_password_changes_nothing() {
    let host = Host::new();
    host.secret(SECRET, "hunter2");
    let run = host.running(&guest(&host, "", &with_secret()));
    let fails = |exit: i32, options: &[&str], value: &[u8]| {
        let said = host.user.fails(exit, &[&["set-password", "guest", "vnc"], options].concat(), value);
        only(&host, "hunter2");
        said
    };
    assert!(fails(65, &[], b"123456789").contains("8 bytes at most"));
    fails(65, &[], b"");
    assert!(fails(65, &[], b"\xff").contains("cannot be a password"));
    assert!(fails(66, &["--secret", "nowhere"], b"").contains("secret"));
    let long = host.user.define("");
    host.user.ok(&["secret", "set-value", &long], b"123456789");
    assert!(fails(65, &["--secret", &long], b"").contains("8 bytes at most"));
    let volume = host.user.define("<usage type='volume'><volume>/x</volume></usage>");
    host.user.ok(&["secret", "set-value", &volume], b"x");
    assert!(fails(65, &["--secret", &volume], b"").contains("volume"));
    fails(64, &["--expires", "tomorrow"], b"x");
    fails(64, &["--remove", "--expires", FUTURE], b"x");
    let said = host.user.fails(66, &["set-password", "guest", "spice"], b"x");
    assert!(said.contains("no display of type 'spice'"), "{said}");
    host.user.fails(66, &["set-password", "nobody", "vnc"], b"x");
    host.user.fails(64, &["set-password", "guest", "sdl"], b"x");
    let clear = "{\"execute\":\"set_password\",\"arguments\":{\"protocol\":\"vnc\",\"password\":\"clear\"}}";
    let said = host.user.fails(77, &["qmp", "guest", clear], b"");
    assert!(said.contains("vmward set-password"), "{said}");
    only(&host, "hunter2");
    destroyed(&host, run);
}

#[test]
fn a_display_without_passwords_gets_none() {
    let host = Host::new();
    let run = host.running(&guest(&host, "", ""));
    assert_eq!(login(&socket(&host), ""), Login::Unasked);
    let said = host.user.fails(69, &["set-password", "guest", "vnc"], b"x");
    assert!(said.contains("without passwords") && said.contains("passwd=''"), "{said}");
    destroyed(&host, run);
}

#[test]
fn a_start_without_its_password_fails() {
    let host = Host::new();
    let xml = guest(&host, "", &with_secret());
    let said = host.fails(66, &xml);
    assert!(said.contains(SECRET), "{said}");
    host.secret(SECRET, "123456789");
    let said = host.fails(65, &xml);
    assert!(said.contains("8 bytes at most") && !said.contains("123456789"), "{said}");
    assert!(!Path::new(&socket(&host)).exists());
}
