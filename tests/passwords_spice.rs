//! The password of a SPICE display, tried by a client that links (spice-protocol, "Link").
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod bare;
mod user;

use std::env;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use bare::{Host, Run};

/// The secret of the display.
const SECRET: &str = "0a7c5e52-0000-4000-8000-0000000000d2";
/// A time that is over.
const PAST: &str = "2009-02-13T23:31:30";

/// A host with a guest that has a SPICE display; `None`, and a word why, where QEMU has none.
fn running(attributes: &str, inside: &str) -> Option<(Host, Run)> {
    let emulator = env::var("VMWARD_TEST_EMULATOR").unwrap_or_else(|_| "qemu-system-x86_64".to_owned());
    let help = Command::new(emulator).args(["-spice", "help"]).output().unwrap();
    // QEMU 7.2 tells of them, and fails.
    if !String::from_utf8_lossy(&help.stdout).contains("ticketing") {
        println!("skipped: this QEMU has no SPICE (Debian's package qemu-system-modules-spice)");
        return None;
    }
    if Command::new("openssl").arg("version").output().is_err() {
        println!("skipped: there is no openssl, which encrypts the password for SPICE");
        return None;
    }
    let host = Host::new();
    host.secret(SECRET, "a password of SPICE");
    let display = format!(
        "<graphics type='spice' {attributes}><listen type='socket' socket='{}'/>{inside}</graphics>",
        socket(&host).display()
    );
    let run = host.running(&host.guest("guest", &display));
    Some((host, run))
}

fn socket(host: &Host) -> PathBuf {
    host.path("spice.sock")
}

/// Whether a client with that password is let in.
fn links(host: &Host, password: &str) -> bool {
    const MAGIC: &[u8] = b"REDQ";
    const MAIN_CHANNEL: u8 = 1;
    let word = |n: u32| n.to_le_bytes();
    // Session 0, the main channel, number 0, no capabilities, which would begin after 18 bytes.
    let message = [&word(0)[..], &[MAIN_CHANNEL, 0], &word(0), &word(0), &word(18)].concat();
    let header = [MAGIC, &word(2), &word(2), &word(18)].concat();
    let mut stream = UnixStream::connect(socket(host)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(&[header, message].concat()).unwrap();
    let answer: [u8; 16] = read(&mut stream);
    assert_eq!(&answer[..4], MAGIC);
    let size = u32::from_le_bytes(answer[12..].try_into().unwrap());
    let mut reply = vec![0; size as usize];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..4], word(0), "the server takes no link");
    stream.write_all(&ticket(host, &reply[4..4 + 162], password)).unwrap();
    u32::from_le_bytes(read(&mut stream)) == 0
}

/// The password for the server's key.
fn ticket(host: &Host, key: &[u8], password: &str) -> Vec<u8> {
    let path = |name: &str| host.path(name).display().to_string();
    fs::write(path("spice.der"), key).unwrap();
    fs::write(path("ticket"), [password.as_bytes(), b"\0"].concat()).unwrap();
    let output = Command::new("openssl")
        .args(["pkeyutl", "-encrypt", "-pubin", "-keyform", "DER", "-inkey", &path("spice.der")])
        .args(["-pkeyopt", "rsa_padding_mode:oaep", "-in", &path("ticket")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn read<const N: usize>(stream: &mut UnixStream) -> [u8; N] {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

fn set(host: &Host, options: &[&str], value: &[u8]) {
    host.user.ok(&[&["set-password", "guest", "spice"], options].concat(), value);
}

/// What has expired may pass for a second: SPICE counts whole ones.
fn locked_out(host: &Host, password: &str) {
    let start = Instant::now();
    while links(host, password) {
        assert!(start.elapsed() < Duration::from_secs(60), "{password} still lets in");
        sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_password_is_changed_expires_and_goes() {
    let secret = format!("<secret type='passphrase' uuid='{SECRET}'/>");
    let Some((host, run)) = running("", &secret) else { return };
    assert!(links(&host, "a password of SPICE") && !links(&host, "wrong") && !links(&host, ""));
    set(&host, &[], b"another");
    assert!(links(&host, "another") && !links(&host, "a password of SPICE"));
    set(&host, &["--expires", PAST], b"over");
    locked_out(&host, "over");
    assert!(!links(&host, "another"));
    set(&host, &["--secret", SECRET], b"");
    assert!(links(&host, "a password of SPICE"));
    set(&host, &["--remove"], b"");
    locked_out(&host, "a password of SPICE");
    assert!(!links(&host, ""));
    let said = host.user.fails(65, &["set-password", "guest", "spice"], &[b'x'; 61]);
    assert!(said.contains("60 bytes at most"), "{said}");
    host.user.ok(&["destroy", "guest"], b"");
    run.ends(0);
}

#[test]
fn without_a_password_yet_nobody_gets_in() {
    let Some((host, run)) = running("passwd=''", "") else { return };
    assert!(!links(&host, "") && !links(&host, "x"));
    set(&host, &[], b"x");
    assert!(links(&host, "x"));
    host.user.ok(&["destroy", "guest"], b"");
    run.ends(0);
}

#[test]
fn a_password_of_the_start_expires() {
    let secret = format!("<secret type='passphrase' uuid='{SECRET}'/>");
    let Some((host, run)) = running(&format!("passwdValidTo='{PAST}'"), &secret) else { return };
    locked_out(&host, "a password of SPICE");
    host.user.ok(&["destroy", "guest"], b"");
    run.ends(0);
}
