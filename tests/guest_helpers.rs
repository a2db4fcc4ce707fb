//! What programs beside QEMU give to a real guest.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod guest;
mod port;
mod user;

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use guest::{Description, Guest};
use port::free_port;
use user::User;

const SHARED_MEMORY: &str = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>";

/// Every virtiofsd that is here: QEMU's old one, the distribution's, and the one that the test scripts made.
fn all_virtiofsd() -> Vec<PathBuf> {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/virtiofsd/bin/virtiofsd");
    let places = ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"].map(PathBuf::from);
    let named = env::var_os("VMWARD_TEST_VIRTIOFSD").map(PathBuf::from);
    let there: Vec<_> = places.into_iter().chain([made]).chain(named).filter(|path| path.exists()).collect();
    if there.is_empty() {
        println!("skipped: there is no virtiofsd");
    }
    there
}

fn installed(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let there = env::split_paths(&path).any(|dir| dir.join(program).is_file());
    if !there {
        println!("skipped: there is no {program}");
    }
    there
}

fn helper(guest: &Guest) -> Option<i32> {
    guest.status()["helpers"][0]["process"].as_i64().map(|pid| pid.try_into().unwrap())
}

#[test]
fn a_directory_of_the_host_is_the_guests() {
    let Some(files) = guest::files() else { return };
    for program in all_virtiofsd() {
        let user = User::new();
        let shared = user.home.path().join("shared");
        fs::create_dir(&shared).unwrap();
        fs::write(shared.join("greeting"), "from the host\n").unwrap();
        // Only root's virtiofsd has the rights for the others.
        let sandbox = if geteuid().is_root() { "<sandbox mode='chroot'/>" } else { "" };
        let devices = format!(
            "<filesystem type='mount'><driver type='virtiofs' queue='1024'/>\
             <binary path='{}' xattr='on'><cache mode='always'/>{sandbox}</binary>\
             <source dir='{}'/><target dir='shared'/></filesystem>",
            program.display(),
            shared.display()
        );
        let description = Description { domain: SHARED_MEMORY, devices: &devices, ..Description::default() };
        let mut guest = Guest::boot(user, &files, &description);
        guest.sh("mount -t virtiofs shared /mnt");
        assert_eq!(guest.sh("cat /mnt/greeting"), "from the host", "{}", program.display());
        guest.sh("echo 'from the guest' >/mnt/answer && sync");
        assert_eq!(fs::read_to_string(shared.join("answer")).unwrap(), "from the guest\n");
        guest.sh("umount /mnt");
        guest.user.ok(&["shutdown", "guest"], b"");
        let (status, said) = guest.ended();
        assert_eq!(status.code(), Some(0), "{said}");
        assert!(!said.contains("virtiofsd, which gave"), "{said}");
    }
}

#[test]
fn a_guest_whose_directory_is_gone_is_told_of() {
    let Some(files) = guest::files() else { return };
    let Some(program) = all_virtiofsd().pop() else { return };
    let user = User::new();
    let devices = format!(
        "<filesystem type='mount'><driver type='virtiofs'/><binary path='{}'/><source dir='{}'/>\
         <target dir='shared'/></filesystem>",
        program.display(),
        user.home.path().display()
    );
    let description = Description { domain: SHARED_MEMORY, devices: &devices, ..Description::default() };
    let mut guest = Guest::boot(user, &files, &description);
    kill(Pid::from_raw(helper(&guest).unwrap()), Signal::SIGKILL).unwrap();
    let start = Instant::now();
    while helper(&guest).is_some() {
        assert!(start.elapsed() < Duration::from_secs(60));
        sleep(Duration::from_millis(50));
    }
    assert_eq!(guest.sh("echo alive"), "alive");
    guest.user.ok(&["destroy", "guest"], b"");
    let (status, said) = guest.ended();
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(said.contains("virtiofsd, which gave the guest the directory"), "{said}");
    assert!(said.contains("cannot reach the directory until it is started anew"), "{said}");
}

#[test]
fn memory_that_virtiofsd_cannot_see_is_refused_at_its_line() {
    let user = User::new();
    let xml = "<domain type='qemu'><name>guest</name><memory unit='MiB'>32</memory>\n\
               <os><type arch='x86_64'>hvm</type></os><devices>\n\
               <filesystem type='mount'><driver type='virtiofs'/><source dir='/'/><target dir='s'/></filesystem>\n\
               </devices></domain>";
    let said = user.fails(65, &["check", "--assume-latest", "-"], xml.as_bytes());
    assert!(said.contains("<stdin>:3:") && said.contains("which is not shared"), "{said}");
}

#[test]
fn a_guest_has_a_tpm() {
    let Some(files) = guest::files() else { return };
    if !installed("swtpm") || !installed("swtpm_setup") {
        return;
    }
    for (model, version, major) in [("tpm-crb", "2.0", "2"), ("tpm-tis", "2.0", "2"), ("tpm-tis", "1.2", "1")]
    {
        let user = User::new();
        let devices = format!(
            "<tpm model='{model}'><backend type='emulator' version='{version}'><source type='dir' path='{}'/></backend></tpm>",
            user.home.path().join("tpm").display()
        );
        let description = Description { devices: &devices, ..Description::default() };
        let mut guest = Guest::boot(user, &files, &description);
        assert_eq!(guest.sh("cat /sys/class/tpm/tpm0/tpm_version_major"), major, "{model} {version}");
        guest.user.ok(&["shutdown", "guest"], b"");
        let (status, said) = guest.ended();
        assert_eq!(status.code(), Some(0), "{said}");
    }
}

/// Whether the host has a network that passt could give to a guest.
fn has_network() -> bool {
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let default = routes.lines().skip(1).any(|line| line.split_whitespace().nth(1) == Some("00000000"));
    if !default {
        println!("skipped: this host has no network to hand on");
    }
    default
}

/// An answer from a port of the host; passt takes connections before the guest answers.
fn answer_from(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(b"hello\n").ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    Some(line.trim().to_owned())
}

fn reached(guest: &mut Guest, port: u16, words: &str) {
    guest.sh(&format!("(while :; do echo '{words}' | nc -l -p 80; done) >/dev/null 2>&1 & echo $! >/server"));
    let start = Instant::now();
    while answer_from(port).as_deref() != Some(words) {
        assert!(start.elapsed() < Duration::from_secs(60), "the guest is not reached");
        // passt has to have seen a packet of the guest's to know its hardware address.
        guest.sh("ping -c 1 -W 1 172.17.2.1 >/dev/null; true");
    }
    guest.sh("kill $(cat /server); killall nc 2>/dev/null; true");
}

#[test]
fn a_guest_has_a_network_without_rights() {
    let Some(files) = guest::files() else { return };
    if !installed("passt") || !has_network() {
        return;
    }
    let user = User::new();
    // QEMU's user has to get to the lib dir.
    fs::set_permissions(user.home.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let options: &[&str] = if geteuid().is_root() { &["--user", "nobody"] } else { &[] };
    let port = free_port();
    let devices = format!(
        "<interface type='user'><backend type='passt'/><mac address='52:54:00:00:00:07'/><model type='virtio'/>\
         <ip family='ipv4' address='172.17.2.4' prefix='24'/>\
         <portForward proto='tcp' address='127.0.0.1'><range start='{port}' to='80'/></portForward></interface>"
    );
    let description = Description { devices: &devices, options, ..Description::default() };
    let mut guest = Guest::boot(user, &files, &description);
    // passt tells the guest its address.
    guest.sh("echo 'ip addr add $ip/24 dev $interface; echo leased $ip' >/lease; chmod 755 /lease; \
              sed -i '1i#!/bin/sh\\n[ $1 = bound ] || exit 0' /lease; ip link set eth0 up");
    let leased = guest.sh("udhcpc -i eth0 -n -q -s /lease 2>/dev/null | grep leased");
    assert_eq!(leased, "leased 172.17.2.4");
    guest.sh("ip route add default dev eth0");
    reached(&mut guest, port, "hello yourself");

    let status: serde_json::Value =
        serde_json::from_slice(&guest.user.ok(&["status", "--json", "guest"], b"")).unwrap();
    if status["version"].as_str().unwrap().starts_with("7.") {
        println!("skipped: QEMU before 8.0 does not connect again to a passt that was lost");
        guest.user.ok(&["shutdown", "guest"], b"");
        assert_eq!(guest.ended().0.code(), Some(0));
        return;
    }
    // It comes back, and QEMU finds it again.
    let first = helper(&guest).unwrap();
    sleep(Duration::from_secs(6));
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    let start = Instant::now();
    while helper(&guest).is_none_or(|pid| pid == first) {
        assert!(start.elapsed() < Duration::from_secs(60));
        sleep(Duration::from_millis(50));
    }
    reached(&mut guest, port, "again");
    guest.user.ok(&["shutdown", "guest"], b"");
    let (status, said) = guest.ended();
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(
        said.contains("passt, which gave the guest a network, was killed by SIGKILL: it is started again"),
        "{said}"
    );
}

#[test]
fn passt_does_not_run_as_root() {
    if !geteuid().is_root() || !installed("passt") {
        return;
    }
    let user = User::new();
    let xml = "<domain type='qemu'><name>guest</name><memory unit='MiB'>32</memory>\n\
               <os><type arch='x86_64'>hvm</type></os><devices>\n\
               <interface type='user'><backend type='passt'/></interface>\n</devices></domain>";
    // The user that QEMU runs as by default is none.
    let said = user.fails(77, &["run", "--user", "root", "-"], xml.as_bytes());
    assert!(said.contains("<stdin>:3:") && said.contains("--user names one"), "{said}");
}
