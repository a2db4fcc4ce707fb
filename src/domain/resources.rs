//! `<cputune>`, `<memtune>`, `<blkiotune>`, `<resource>`, `<seclabel>`: what the host gives to QEMU, and what it keeps from it.
//!
//! vmward pins threads to processors itself. What libvirt does through control groups is the service manager's
//! work here: the unit that runs vmward sets it (`CPUWeight=`, `CPUQuota=`, `MemoryMax=`, `IOWeight=`).

use crate::keywords;
use crate::xml::{Diagnostics, Element, Span};

use super::id_set::IdSet;

/// A control group's shortest and longest period, in microseconds.
const PERIOD: std::ops::RangeInclusive<i64> = 1000..=1_000_000;
/// A value of `<memtune>` that means no limit: libvirt prints it for limits that are not set, in KiB.
const UNLIMITED_KIB: u64 = 9_007_199_254_740_991;
/// The control group that libvirt puts guests into by default.
const DEFAULT_PARTITION: &str = "/machine";

/// Threads of QEMU with the host's processors that they may use.
#[derive(Debug, Clone, Default)]
pub struct Pinning {
    /// `<vcpupin>`: by the number of the vCPU.
    pub vcpus: Vec<(u32, IdSet)>,
    /// `<iothreadpin>`: by the number of the I/O thread.
    pub iothreads: Vec<(u32, IdSet)>,
    /// `<emulatorpin>`: all other threads.
    pub emulator: Option<IdSet>,
    /// The vCPUs of `<vcpusched>`.
    pub scheduled_vcpus: IdSet,
    /// The I/O threads of `<iothreadsched>`.
    pub scheduled_iothreads: IdSet,
    /// Where it stands.
    pub span: Span,
}

impl Pinning {
    /// Reads the pins of `<cputune>`, and what else there is about resources, all of which is refused but
    /// where it changes nothing.
    pub fn from_xml(root: &Element, diagnostics: &mut Diagnostics) -> Self {
        memtune(root, diagnostics);
        partition(root, diagnostics);
        labels(root, diagnostics);
        if let Some(blkiotune) = root.only_child("blkiotune", diagnostics) {
            blkiotune.mark_read();
            diagnostics.outside_qemu(blkiotune.span, "vmward does not honour <blkiotune>").hint(
                "the unit that runs vmward can: IOWeight= of systemd.resource-control(5); QEMU can: <iotune>",
            );
        }
        if let Some(idmap) = root.only_child("idmap", diagnostics) {
            idmap.mark_read();
            diagnostics
                .warning(idmap.span, "<idmap> is for containers: it changes nothing in a guest of QEMU");
        }
        performance_events(root, diagnostics);
        let Some(cputune) = root.only_child("cputune", diagnostics) else { return Self::default() };
        shares(cputune, diagnostics);
        schedulers(cputune, "emulatorsched", None, diagnostics);
        for name in ["cachetune", "memorytune"] {
            for element in cputune.children(name) {
                element.mark_read();
                diagnostics.outside_qemu(element.span, format!("vmward does not honour <{name}>")).hint(
                    "the kernel's resctrl file system takes the vCPUs' threads, which `vmward qmp` lists",
                );
            }
        }
        let emulator = cputune.only_child("emulatorpin", diagnostics);
        Self {
            vcpus: pins(cputune, "vcpupin", "vcpu", diagnostics),
            iothreads: pins(cputune, "iothreadpin", "iothread", diagnostics),
            scheduled_vcpus: schedulers(cputune, "vcpusched", Some("vcpus"), diagnostics),
            scheduled_iothreads: schedulers(cputune, "iothreadsched", Some("iothreads"), diagnostics),
            emulator: emulator.and_then(|e| IdSet::from_attribute(e, "cpuset", diagnostics)),
            span: cputune.span,
        }
    }
}

/// What a control group does to processors.
fn shares(cputune: &Element, diagnostics: &mut Diagnostics) {
    let limits = ["", "global_", "emulator_", "iothread_"];
    let names = limits.iter().flat_map(|of| [format!("{of}period"), format!("{of}quota")]);
    for name in std::iter::once("shares".to_owned()).chain(names) {
        let Some(element) = cputune.only_child(&name, diagnostics) else { continue };
        let number = element.text().parse::<i64>();
        let fits = match number {
            Ok(n) if name == "shares" => n >= 0,
            Ok(n) if name.ends_with("period") => PERIOD.contains(&n),
            // A negative quota is none.
            Ok(n) => n < 0 || n >= *PERIOD.start(),
            Err(_) => false,
        };
        if !fits {
            diagnostics.error(element.text_place(), format!("'{}' is no value of <{name}>", element.text()));
        }
        if number.is_ok_and(|n| n < 0) {
            continue;
        }
        diagnostics
            .outside_qemu(element.span, format!("vmward does not honour <{name}>"))
            .hint("the unit that runs vmward can: CPUWeight= and CPUQuota= of systemd.resource-control(5)");
    }
}

keywords! {
    /// Linux's schedulers.
    pub enum Scheduler {
        /// For work that can wait.
        Batch = "batch",
        /// For work that can wait long.
        Idle = "idle",
        /// First in, first out.
        Fifo = "fifo",
        /// Round robin.
        RoundRobin = "rr",
    }
}

/// Reads schedulers of threads, which an attribute lists; those threads.
fn schedulers(cputune: &Element, name: &str, threads: Option<&str>, diagnostics: &mut Diagnostics) -> IdSet {
    let mut all = IdSet::default();
    for element in cputune.children(name) {
        let scheduler = element.require_keyword("scheduler", diagnostics);
        let priority: Option<u8> = element.number("priority", diagnostics);
        if matches!(scheduler, Some(Scheduler::Fifo | Scheduler::RoundRobin)) && priority.is_none() {
            diagnostics.error(element.span, "real-time schedulers have a priority");
        }
        if let Some(threads) = threads {
            element.require(threads, diagnostics);
            let set = IdSet::from_attribute(element, threads, diagnostics).unwrap_or_default();
            if let Some(id) = all.common(&set) {
                diagnostics.error(element.span, format!("there are two <{name}> of {id}"));
            }
            all = all.with(&set);
        }
        diagnostics
            .outside_qemu(element.span, format!("vmward does not honour <{name}>"))
            .hint("chrt(1) sets the scheduler of a thread, `vmward qmp` lists them");
    }
    all
}

/// `<perf>`: events that libvirt would count for who asks it.
fn performance_events(root: &Element, diagnostics: &mut Diagnostics) {
    let Some(perf) = root.only_child("perf", diagnostics) else { return };
    for event in perf.children("event") {
        event.require("name", diagnostics);
        if event.yes_no("enabled", diagnostics) == Some(true) {
            diagnostics
                .outside_qemu(event.span, "vmward counts no events of the host's processors")
                .hint("perf(1) can: perf stat -p, with the process that `vmward status` names");
        }
    }
}

fn pins(cputune: &Element, name: &str, id: &str, diagnostics: &mut Diagnostics) -> Vec<(u32, IdSet)> {
    let mut list: Vec<(u32, IdSet)> = Vec::new();
    for element in cputune.children(name) {
        if element.require(id, diagnostics).is_none() || element.require("cpuset", diagnostics).is_none() {
            continue;
        }
        let number = element.number(id, diagnostics);
        let Some((number, set)) = number.zip(IdSet::from_attribute(element, "cpuset", diagnostics)) else {
            continue;
        };
        if list.iter().any(|(other, _)| *other == number) {
            diagnostics.error(element.span, format!("there are two <{name}> of {number}"));
        }
        list.push((number, set));
    }
    list
}

fn memtune(root: &Element, diagnostics: &mut Diagnostics) {
    let Some(memtune) = root.only_child("memtune", diagnostics) else { return };
    if let Some(element) = memtune.only_child("min_guarantee", diagnostics) {
        element.mark_read();
        diagnostics.error(element.span, "QEMU guarantees no memory (<min_guarantee>)");
    }
    for limit in ["hard_limit", "soft_limit", "swap_hard_limit"] {
        let Some(element) = memtune.only_child(limit, diagnostics) else { continue };
        let kib =
            super::size::of_element(element, super::size::KIB, diagnostics).map(|b| b / super::size::KIB);
        if kib.is_some_and(|kib| kib < UNLIMITED_KIB) {
            diagnostics.outside_qemu(element.span, format!("vmward does not honour <{limit}>")).hint(
                "the unit that runs vmward can: MemoryMax= and MemoryHigh= of systemd.resource-control(5)",
            );
        }
    }
}

fn partition(root: &Element, diagnostics: &mut Diagnostics) {
    let Some(resource) = root.only_child("resource", diagnostics) else { return };
    if let Some(partition) = resource.only_child("partition", diagnostics) {
        if !partition.text().starts_with('/') {
            diagnostics.error(partition.text_place(), "the path of a partition starts with '/'");
        } else if partition.text() != DEFAULT_PARTITION {
            diagnostics
                .outside_qemu(partition.span, "vmward puts no guest into a control group")
                .hint("the unit that runs vmward can: Slice= of systemd.resource-control(5)");
        }
    }
    if let Some(channel) = resource.only_child("fibrechannel", diagnostics) {
        channel.require("appid", diagnostics);
        diagnostics.outside_qemu(channel.span, "vmward does not tell the storage network who a guest is");
    }
}

/// A guest that asks not to be confined gets what it asks for; any other label is a confinement that vmward
/// does not give.
fn labels(root: &Element, diagnostics: &mut Diagnostics) {
    for label in root.children("seclabel") {
        if label.get("type") == Some("none") {
            label.attribute("model");
            if label.yes_no("relabel", diagnostics) == Some(true) {
                diagnostics.error(label.span, "without a label there is nothing to relabel");
            }
            continue;
        }
        label.mark_read();
        diagnostics.outside_qemu(label.span, "vmward does not label QEMU or its files (<seclabel>)").hint(
            "QEMU runs in its own sandbox, and as an unprivileged user: --user; leave the <seclabel> out",
        );
    }
}
