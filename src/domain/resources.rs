//! `<cputune>`, `<memtune>`, `<blkiotune>`, `<resource>`, `<seclabel>`: what the host gives to QEMU, and what it keeps from it.
//!
//! vmward pins threads to processors itself. What libvirt does through control groups is the service manager's
//! work here: the unit that runs vmward sets it (`CPUWeight=`, `CPUQuota=`, `MemoryMax=`, `IOWeight=`).

use crate::xml::{Diagnostics, Element, Span};

use super::id_set::IdSet;

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
        let Some(cputune) = root.only_child("cputune", diagnostics) else { return Self::default() };
        for name in [
            "shares",
            "period",
            "quota",
            "global_period",
            "global_quota",
            "emulator_period",
            "emulator_quota",
            "iothread_period",
            "iothread_quota",
        ] {
            if let Some(element) = cputune.only_child(name, diagnostics) {
                element.mark_read();
                diagnostics.outside_qemu(element.span, format!("vmward does not honour <{name}>")).hint(
                    "the unit that runs vmward can: CPUWeight= and CPUQuota= of systemd.resource-control(5)",
                );
            }
        }
        let emulator = cputune.only_child("emulatorpin", diagnostics);
        Self {
            vcpus: pins(cputune, "vcpupin", "vcpu", diagnostics),
            iothreads: pins(cputune, "iothreadpin", "iothread", diagnostics),
            emulator: emulator.and_then(|e| IdSet::from_attribute(e, "cpuset", diagnostics)),
            span: cputune.span,
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
    for limit in ["hard_limit", "soft_limit", "swap_hard_limit", "min_guarantee"] {
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
    let Some(partition) =
        root.only_child("resource", diagnostics).and_then(|r| r.only_child("partition", diagnostics))
    else {
        return;
    };
    if partition.text() != DEFAULT_PARTITION {
        diagnostics
            .outside_qemu(partition.span, "vmward puts no guest into a control group")
            .hint("the unit that runs vmward can: Slice= of systemd.resource-control(5)");
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
