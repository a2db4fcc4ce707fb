//! Raw LUKS disks with qemu-img's usual costs, unlocked by QEMU and by vmward, by turns in the same run: the time from exec
//! to the running guest, beside QEMU alone with the same arguments, and how long a running guest's monitor is silent while
//! one is plugged in. `cargo bench --bench unlock`, with another number of turns behind `--`.

mod host;

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use host::{Host, median};

/// Turns of each, if nothing else is said.
const TURNS: usize = 5;

fn main() {
    // cargo has options of its own here.
    let turns = env::args().find_map(|word| word.parse().ok()).unwrap_or(TURNS);
    let host = Host::new();
    let image = host.path("0.luks");
    let uuid = host.output(&["secret", "generate", "--usage-volume", &image]);
    let slow = ["volume", "create", &image, "--format", "raw", "--size", "64M", "--kdf", "slow"];
    host.output(&[&slow[..], &["--secret", &uuid]].concat());
    for n in 1..8 {
        fs::copy(&image, host.path(&format!("{n}.luks"))).expect("a copy");
    }
    println!("exec to running, disks as qemu-img makes them, median of {turns}:");
    for count in [1, 8] {
        let disks: Vec<_> = (0..count).map(|n| disk(&host, n, &uuid)).collect();
        host.guest(&disks.concat());
        starts(&host, count, turns);
    }
    println!("longest silence of the monitor while a disk is plugged in, median of {turns}:");
    host.guest("");
    let xml = host.path("disk.xml");
    fs::write(&xml, disk(&host, 0, &uuid)).expect("a disk");
    let silences = |how: &str| median((0..turns).map(|_| silence(&host, how, &xml)).collect());
    report(silences("--unlock=qemu"), silences("--unlock=auto"));
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

fn starts(host: &Host, count: u8, turns: usize) {
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
    println!("  {count} on {} processors", thread::available_parallelism().map_or(1, usize::from));
    report(median(bare), median(with));
}

fn report(qemu: f64, vmward: f64) {
    println!("    QEMU     {qemu:8.1} ms");
    println!("    vmward   {vmward:8.1} ms   ({:.3} times)", vmward / qemu);
}

/// Asks QEMU how it is, again and again, while a disk is plugged in; the longest time until it has answered.
fn silence(host: &Host, how: &str, xml: &str) -> Duration {
    let (child, _) = host.start(&[how]);
    let stream = UnixStream::connect(host.path("run/bench/control.sock")).expect("the control socket");
    stream.set_read_timeout(Some(host::DEADLINE)).expect("a deadline");
    let mut control = BufReader::new(stream);
    let mut ask = || {
        let asked = Instant::now();
        let call = r#"{"method":"org.vmward.Domain.Qmp","parameters":{"command":"query-status"}}"#;
        control.get_mut().write_all(format!("{call}\0").as_bytes()).expect("the control socket");
        let mut reply = Vec::new();
        control.read_until(0, &mut reply).expect("an answer");
        assert!(!reply.is_empty(), "the supervisor has ended");
        asked.elapsed()
    };
    let plugged = AtomicBool::new(false);
    let longest = thread::scope(|scope| {
        scope.spawn(|| {
            let attached = host.vmward(&["attach-device", "bench", xml]).stderr(Stdio::inherit()).status();
            plugged.store(true, Ordering::Release);
            assert!(attached.expect("vmward").success());
        });
        let mut longest = Duration::ZERO;
        while !plugged.load(Ordering::Acquire) {
            longest = longest.max(ask());
            thread::sleep(Duration::from_millis(1));
        }
        longest
    });
    host.stop(child);
    longest
}
