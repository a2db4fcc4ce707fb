//! What vmward adds to a guest: the time from its exec to the running guest, beside QEMU alone with the same
//! arguments, by turns in the same run; the supervisor's memory; and how often it wakes up while nothing happens.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod host;

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use nix::unistd::geteuid;

use host::{Host, median, peers};

/// Turns of each. Enough for a median that a busy machine does not move much.
const TURNS: usize = 61;
/// Of what else starts guests, which differs by more.
const PEER_TURNS: usize = 11;
/// How long the supervisor is watched while nothing happens.
const IDLE: Duration = Duration::from_secs(10);

/// An encrypted disk with a generated key; returns its XML.
fn disk(host: &Host, target: &str) -> String {
    let path = host.path(&format!("{target}.qcow2"));
    let uuid = host.output(&["secret", "generate", "--usage-volume", &path]);
    host.output(&["volume", "create", &path, "--format", "qcow2", "--size", "64M", "--secret", &uuid]);
    format!(
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{path}'>\
         <encryption format='luks'><secret type='passphrase' uuid='{uuid}'/></encryption></source>\
         <target dev='{target}' bus='virtio'/></disk>"
    )
}

/// A figure of /proc/PID/FILE, by its name.
fn figure(pid: u32, file: &str, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().find_map(|word| word.parse().ok()).unwrap_or_default()
}

/// How often all threads of a process have given up the processor of their own accord.
fn wake_ups(pid: u32) -> u64 {
    let tasks = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task")).expect("the process");
    tasks
        .map(|task| {
            let task = task.expect("a thread").file_name().into_string().expect("a number");
            figure(pid, &format!("task/{task}/status"), "voluntary_ctxt_switches:")
        })
        .sum()
}

fn main() {
    let bench = Host::new();
    // QEMU alone runs as this user as well. A root without the user `vmward-qemu` would search the host's databases for it.
    let options: &[&str] = if geteuid().is_root() { &["--user", "root"] } else { &[] };
    bench.guest(&["vda", "vdb"].map(|target| disk(&bench, target)).concat());
    let arguments = bench.qemu_arguments(options);
    let (mut with, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let (child, time) = bench.start(options);
        with.push(time);
        bench.stop(child);
        let (mut child, time) = bench.start_bare(&arguments);
        bare.push(time);
        child.kill().expect("QEMU");
        child.wait().expect("QEMU");
    }
    // Not between the others: their daemon is still at work when a guest has gone.
    let by_peers = peers::medians(&bench, PEER_TURNS);
    let (with, bare) = (median(with), median(bare));
    println!("exec to running, two encrypted disks, median of {TURNS}:");
    println!("  QEMU          {bare:7.1} ms   with the same arguments");
    println!("  vmward        {with:7.1} ms   {:.2} times, {:.1} ms more", with / bare, with - bare);
    for (name, time) in by_peers {
        println!("  {name:13} {time:7.1} ms   {:.2} times, {:.1} ms more", time / bare, time - bare);
    }

    let (child, _) = bench.start(options);
    let pid = child.id();
    sleep(Duration::from_secs(1));
    let before = wake_ups(pid);
    sleep(IDLE);
    let woken = wake_ups(pid) - before;
    println!("supervisor of a running guest:");
    println!("  RSS      {:7} KiB", figure(pid, "status", "VmRSS:"));
    println!("  PSS      {:7} KiB", figure(pid, "smaps_rollup", "Pss:"));
    println!("  locked   {:7} KiB", figure(pid, "status", "VmLck:"));
    println!("  wake-ups {woken:7}      in {} s", IDLE.as_secs());
    bench.stop(child);
}
