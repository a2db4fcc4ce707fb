//! What it takes to open disks with qemu-img's usual costs, by QEMU's own means and by vmward's, by turns in the same run: a
//! table with the ratios and what is aimed at. `cargo bench --bench unlock`, with another number of turns behind `--`;
//! `VMWARD_TEST_GUEST` names the directory of the guest whose console is listened to.
#![allow(clippy::unwrap_used, reason = "this is a bench")]

#[path = "host/bare.rs"]
mod bare;
mod host;

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bare::{Bare, value_in};
use host::{DEADLINE, Host, median};

/// Turns of each, if nothing else is said. Those of eight disks are fewer: one takes twenty seconds.
const TURNS: usize = 5;
const TURNS_OF_EIGHT: usize = 3;

/// What is aimed at.
enum Aim {
    /// At most so many milliseconds.
    Within(f64),
    /// At most so many times QEMU's own time.
    Times(f64),
}

fn main() {
    // cargo has options of its own here.
    let turns: usize = env::args().find_map(|word| word.parse().ok()).unwrap_or(TURNS);
    let host = Host::new();
    let image = host.path("0.luks");
    let uuid = host.output(&["secret", "generate", "--usage-volume", &image]);
    let slow = ["volume", "create", &image, "--format", "raw", "--size", "64M", "--kdf", "slow"];
    host.output(&[&slow[..], &["--secret", &uuid]].concat());
    for n in 1..8 {
        fs::copy(&image, host.path(&format!("{n}.luks"))).expect("a copy");
    }
    let processors = thread::available_parallelism().map_or(1, usize::from);
    println!("disks as qemu-img makes them, {processors} processors, median of {turns}:");
    println!("{:<47}{:>12}{:>12}{:>9}  aim", "", "QEMU's own", "vmward", "ratio");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let opened = runtime.block_on(opened(&host, turns));
    let [raw, qcow2] = opened;
    report("QEMU's part of opening one disk", raw, Aim::Within(10.0));
    for (count, turns, aim) in [(1, turns, 0.5), (8, turns.min(TURNS_OF_EIGHT), 0.25)] {
        let disks: Vec<_> = (0..count).map(|n| disk(&host, n, &uuid)).collect();
        host.guest(&disks.concat());
        let what = match count {
            1 => "exec to running, one disk".to_owned(),
            _ => format!("exec to running, {count} disks (of {turns})"),
        };
        report(&what, starts(&host, turns), Aim::Times(aim));
    }
    let plugged = host.path("disk.xml");
    fs::write(&plugged, disk(&host, 0, &uuid)).expect("a disk");
    match guest_files() {
        Some(files) => {
            let [monitor, console] = silences(&host, &files, &plugged, turns);
            report("longest silence of QMP while one is plugged in", monitor, Aim::Within(50.0));
            report("longest silence of the guest's console", console, Aim::Within(50.0));
        }
        None => println!(
            "skipped: there is no guest, whose console could fall silent; integration/guest.sh makes it"
        ),
    }
    report("qcow2, and with a machine key", qcow2, Aim::Within(50.0));
}

/// Both in milliseconds: QEMU's own, and vmward's.
fn report(what: &str, (qemu, vmward): (f64, f64), aim: Aim) {
    let (aim, met) = match aim {
        Aim::Within(most) => (format!("{most:.0} ms"), vmward <= most),
        Aim::Times(most) => (format!("{most} times"), vmward <= most * qemu),
    };
    let met = if met { "met" } else { "NOT MET" };
    println!("{what:<47}{qemu:>9.1} ms{vmward:>9.1} ms{:>9.3}  {aim}: {met}", vmward / qemu);
}

fn disk(host: &Host, n: u8, uuid: &str) -> String {
    format!(
        "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{}'>\
         <encryption format='luks'><secret type='passphrase' uuid='{uuid}'/></encryption></source>\
         <target dev='vd{}' bus='virtio'/></disk>",
        host.path(&format!("{n}.luks")),
        char::from(b'a' + n)
    )
}

/// How long `blockdev-add` takes: a raw image with its own header and with one of vmward's, a qcow2 image before and after
/// it got a machine key.
async fn opened(host: &Host, turns: usize) -> [(f64, f64); 2] {
    let home = host.home();
    let qemu = Bare::start(home).await;
    let value = |path: &str| value_in(home, host.output(&["secret", "get-value", path]).as_bytes());
    let raw = host.path("0.luks");
    let secret = value(&raw);
    let (mut own, mut with_header) = (Vec::new(), Vec::new());
    for _ in 0..turns {
        own.push(qemu.open(&secret, &raw, "raw").await);
        with_header.push(qemu.open_with_header(&secret, &raw).await);
    }
    let qcow2 = host.path("a.qcow2");
    let slow =
        ["volume", "create", &qcow2, "--size", "16M", "--format", "qcow2", "--generate", "--kdf", "slow"];
    host.output(&slow);
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let secret = value(&qcow2);
    for _ in 0..turns {
        before.push(qemu.open(&secret, &qcow2, "qcow2").await);
    }
    host.output(&["volume", "rekey", &qcow2, "--machine-key"]);
    let secret = value(&qcow2);
    for _ in 0..turns {
        after.push(qemu.open(&secret, &qcow2, "qcow2").await);
    }
    fs::remove_file(secret).expect("the value");
    [(median(own), median(with_header)), (median(before), median(after))]
}

fn starts(host: &Host, turns: usize) -> (f64, f64) {
    let arguments = host.qemu_arguments(&["--unlock=qemu"]);
    let (mut with, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..turns {
        let (child, time) = host.start(&["--unlock=auto"]);
        with.push(time);
        host.stop(child);
        let (mut child, time) = host.start_bare(&arguments);
        bare.push(time);
        child.kill().expect("QEMU");
        child.wait().expect("QEMU");
    }
    (median(bare), median(with))
}

/// Where the guest's kernel is.
fn guest_files() -> Option<PathBuf> {
    let dir = env::var_os("VMWARD_TEST_GUEST")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guest"), PathBuf::from);
    dir.join("initramfs.gz").exists().then_some(dir)
}

/// The longest silences of the monitor and of the console of a guest that prints all the time.
fn silences(host: &Host, files: &Path, xml: &str, turns: usize) -> [(f64, f64); 2] {
    let serial = host.path("serial.sock");
    let os = format!(
        "<kernel>{0}/vmlinuz</kernel><initrd>{0}/initramfs.gz</initrd><cmdline>console=ttyS0 quiet</cmdline>",
        files.display()
    );
    host.guest_with(&os, &format!("<serial type='unix'><source mode='bind' path='{serial}'/></serial>"));
    let [qemu, vmward] = ["--unlock=qemu", "--unlock=auto"].map(|how| {
        let (child, _) = host.start(&[how]);
        let console = UnixStream::connect(&serial).expect("the console");
        console.set_read_timeout(Some(DEADLINE)).expect("a deadline");
        let mut console = BufReader::new(console);
        while !line(&mut console).contains("guest: ready") {}
        console.get_mut().write_all(b"while :; do echo here; usleep 1000; done\n").expect("the console");
        while !line(&mut console).contains("here") {}
        let mut monitor = Asked::connect(host);
        let (mut of_monitor, mut of_console) = (Vec::new(), Vec::new());
        for _ in 0..turns {
            let turn = Turn::default();
            thread::scope(|scope| {
                scope.spawn(|| of_console.push(turn.longest(|| drop(line(&mut console)))));
                scope.spawn(|| {
                    of_monitor.push(turn.longest(|| {
                        monitor.ask();
                        thread::sleep(Duration::from_millis(1));
                    }));
                });
                // What the console has said while nobody listened is heard first.
                thread::sleep(Duration::from_millis(500));
                turn.begun.store(true, Ordering::Release);
                let attached = host.vmward(&["attach-device", "bench", xml]).status();
                turn.over.store(true, Ordering::Release);
                assert!(attached.expect("vmward").success());
            });
            host.output(&["detach-device", "bench", "vda"]);
        }
        host.stop(child);
        [median(of_monitor), median(of_console)]
    });
    [(qemu[0], vmward[0]), (qemu[1], vmward[1])]
}

/// A disk that is plugged in.
#[derive(Default)]
struct Turn {
    begun: AtomicBool,
    over: AtomicBool,
}

impl Turn {
    /// Does something again and again; the longest time that it took while the disk was plugged in.
    fn longest(&self, mut again: impl FnMut()) -> Duration {
        let mut longest = Duration::ZERO;
        while !self.over.load(Ordering::Acquire) {
            let start = Instant::now();
            again();
            if self.begun.load(Ordering::Acquire) {
                longest = longest.max(start.elapsed());
            }
        }
        longest
    }
}

fn line(console: &mut BufReader<UnixStream>) -> String {
    let mut line = Vec::new();
    assert!(console.read_until(b'\n', &mut line).expect("the console") > 0, "the guest has ended");
    String::from_utf8_lossy(&line).into_owned()
}

/// QEMU, asked how it is.
struct Asked(BufReader<UnixStream>);

impl Asked {
    fn connect(host: &Host) -> Self {
        let stream = UnixStream::connect(host.path("run/bench/control.sock")).expect("the control socket");
        stream.set_read_timeout(Some(DEADLINE)).expect("a deadline");
        Self(BufReader::new(stream))
    }

    fn ask(&mut self) {
        let call = r#"{"method":"org.vmward.Domain.Qmp","parameters":{"command":"query-status"}}"#;
        self.0.get_mut().write_all(format!("{call}\0").as_bytes()).expect("the control socket");
        let mut reply = Vec::new();
        self.0.read_until(0, &mut reply).expect("an answer");
        assert!(!reply.is_empty(), "the supervisor has ended");
    }
}
