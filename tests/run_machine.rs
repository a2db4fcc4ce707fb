//! What of the machine is the supervisor's to do: vCPUs that are plugged in, pinned threads, memory that is a file, a
//! firmware's variables.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod bare;
mod user;

use std::fs;
use std::path::{Path, PathBuf};

use bare::{Host, nothing_left};
use nix::sys::signal::Signal;

/// A guest of the helper's with more in it.
fn guest(host: &Host, name: &str, inside: &str) -> PathBuf {
    let path = host.guest(name, "");
    let mut xml = fs::read_to_string(&path).unwrap().replacen("</domain>", &format!("{inside}</domain>"), 1);
    if inside.contains("<vcpu ") {
        xml = xml.replacen("<vcpu>1</vcpu>", "", 1);
    }
    fs::write(&path, xml).unwrap();
    path
}

/// The processors that each thread of a process may use, by the thread's name; the main one, whose name is that of
/// whatever loaded the program, is "main".
fn threads(pid: i32) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|t| t.unwrap().path());
    let read = |task: &Path, file: &str| fs::read_to_string(task.join(file)).unwrap_or_default();
    tasks
        .map(|task| {
            let status = read(&task, "status");
            let cpus = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
            let main = task.ends_with(pid.to_string());
            let name = if main { "main".to_owned() } else { read(&task, "comm").trim().to_owned() };
            (name, cpus.trim().to_owned())
        })
        .collect()
}

#[test]
fn threads_are_pinned() {
    let host = Host::new();
    let inside =
        "<iothreads>1</iothreads><cputune><emulatorpin cpuset='0'/><vcpupin vcpu='0' cpuset='1'/></cputune>";
    if std::thread::available_parallelism().unwrap().get() < 2 {
        println!("skipped: there is one processor");
        return;
    }
    let run = host.running(&guest(&host, "pinned", inside));
    let threads = threads(run.qemu());
    let of = |name: &str| threads.iter().find(|(n, _)| n.starts_with(name)).map(|(_, cpus)| cpus.as_str());
    assert_eq!(of("main"), Some("0"), "{threads:?}");
    assert_eq!(of("CPU 0"), Some("1"), "{threads:?}");
    run.signal(Signal::SIGINT);
    run.ended();
}

#[test]
fn processors_are_plugged_in_and_pinned() {
    let host = Host::new();
    let inside = "<vcpu current='2'>4</vcpu><vcpus>\
        <vcpu id='0' enabled='yes' hotpluggable='no'/><vcpu id='3' enabled='yes' hotpluggable='yes'/></vcpus>\
        <cpu><topology sockets='2' cores='2' threads='1'/></cpu><cputune><vcpupin vcpu='3' cpuset='0'/></cputune>\
        <q:deprecation xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0' behavior='reject'/>";
    let run = host.running(&guest(&host, "plugged", inside));
    let threads = threads(run.qemu());
    let of = |name: &str| threads.iter().find(|(n, _)| n.starts_with(name)).map(|(_, cpus)| cpus.as_str());
    assert_eq!(of("CPU 3"), Some("0"), "{threads:?}");
    assert!(of("CPU 0").is_some() && of("CPU 1").is_none() && of("CPU 2").is_none(), "{threads:?}");
    run.signal(Signal::SIGINT);
    run.ended();
}

#[test]
fn processors_that_this_qemu_does_not_know_are_refused_at_their_line() {
    let host = Host::new();
    let said = host.fails(65, &guest(&host, "unknown", "<cpu><model>NoSuchProcessor</model></cpu>"));
    assert!(said.contains("does not know the CPU model 'NoSuchProcessor'"), "{said}");
    nothing_left(&host.lib_dir("unknown"));
}

#[test]
fn processors_that_are_not_there_start_nothing() {
    let host = Host::new();
    let said =
        host.fails(65, &guest(&host, "nowhere", "<cputune><vcpupin vcpu='0' cpuset='900'/></cputune>"));
    assert!(said.contains("vCPU 0 cannot run on the processors"), "{said}");
    nothing_left(&host.lib_dir("nowhere"));
}

#[test]
fn memory_that_is_a_file_goes_with_the_guest() {
    let host = Host::new();
    let inside = "<memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>";
    let run = host.running(&guest(&host, "shared", inside));
    let lib_dir = run.lib_dir().to_owned();
    assert!(lib_dir.join("memory/pc.ram").exists());
    run.signal(Signal::SIGINT);
    run.ended();
    nothing_left(&lib_dir);
}
