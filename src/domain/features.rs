//! `<features>`: what of the platform is switched on or off.

use crate::keywords;
use crate::xml::{Diagnostics, Element, Span};

use super::hyperv::HyperV;
use super::size::{self, KIB, MIB};

keywords! {
    /// Who routes interrupts.
    pub enum IoApicDriver {
        /// The kernel.
        Kvm = "kvm",
        /// QEMU, with the local part in the kernel.
        Qemu = "qemu",
    }
}

/// `<features>`.
#[derive(Debug, Clone, Default)]
pub struct Features {
    /// `<acpi/>`: without it the guest has no ACPI.
    pub acpi: bool,
    /// `<apic eoi=...>`: paravirtual end of interrupt.
    pub apic_eoi: Option<bool>,
    /// `<vmport>`.
    pub vmport: Option<bool>,
    /// `<smm>`.
    pub smm: Option<bool>,
    /// `<tseg>` of `<smm>`: the size of the system management mode's memory, in bytes.
    pub tseg: Option<(u64, Span)>,
    /// `<hyperv>`.
    pub hyperv: HyperV,
    /// `<kvm>`.
    pub kvm: KvmFeatures,
    /// `<pmu>`.
    pub pmu: Option<bool>,
    /// `<pvspinlock>`.
    pub pvspinlock: Option<bool>,
    /// `<ioapic>`.
    pub ioapic: Option<IoApicDriver>,
    /// `<ps2>`: whether there is a controller for PS/2 keyboards and mice.
    pub ps2: Option<(bool, Span)>,
    /// `<vmcoreinfo>`.
    pub vmcoreinfo: bool,
    /// `<tb-cache>` of `<tcg>`, in bytes.
    pub tb_cache: Option<(u64, Span)>,
    /// `<async-teardown>`.
    pub async_teardown: Option<bool>,
}

/// `<kvm>`.
#[derive(Debug, Clone, Default)]
pub struct KvmFeatures {
    /// The guest does not see that KVM runs it.
    pub hidden: bool,
    /// The guest may rely on processors of its own.
    pub hint_dedicated: bool,
    /// The guest may switch polling of the host off.
    pub poll_control: bool,
    /// Paravirtual interrupts between processors; `None` is KVM's default.
    pub pv_ipi: Option<bool>,
    /// The size of the ring of dirty pages.
    pub dirty_ring: Option<u32>,
}

/// KVM's limits of the ring of dirty pages.
const DIRTY_RING: std::ops::RangeInclusive<u32> = 1024..=65536;

impl Features {
    /// Reads `<features>`.
    pub fn from_xml(root: &Element, diagnostics: &mut Diagnostics) -> Self {
        let Some(features) = root.only_child("features", diagnostics) else { return Self::default() };
        // x86_64 processors always have PAE.
        features.only_child("pae", diagnostics);
        of_others(features, diagnostics);
        let mut this = Self {
            acpi: features.only_child("acpi", diagnostics).is_some(),
            apic_eoi: features.only_child("apic", diagnostics).and_then(|a| a.on_off("eoi", diagnostics)),
            vmport: state(features, "vmport", diagnostics),
            smm: state(features, "smm", diagnostics),
            hyperv: HyperV::from_xml(features, diagnostics),
            kvm: KvmFeatures::from_xml(features, diagnostics),
            pmu: state(features, "pmu", diagnostics),
            pvspinlock: state(features, "pvspinlock", diagnostics),
            vmcoreinfo: state(features, "vmcoreinfo", diagnostics).unwrap_or_default(),
            ..Self::default()
        };
        this.ioapic =
            features.only_child("ioapic", diagnostics).and_then(|i| i.keyword("driver", diagnostics));
        this.ps2 = given_state(features, "ps2", diagnostics).zip(features.child("ps2").map(|e| e.span));
        this.async_teardown = features
            .only_child("async-teardown", diagnostics)
            .map(|e| e.yes_no("enabled", diagnostics).unwrap_or(true));
        this.read_tseg(features, diagnostics);
        this.read_tcg(features, diagnostics);
        this
    }

    fn read_tseg(&mut self, features: &Element, diagnostics: &mut Diagnostics) {
        let Some(tseg) = features.child("smm").and_then(|smm| smm.only_child("tseg", diagnostics)) else {
            return;
        };
        let Some(bytes) = size::of_element(tseg, MIB, diagnostics) else { return };
        if bytes == 0 || !bytes.is_multiple_of(MIB) || bytes > u64::from(u16::MAX) * MIB {
            diagnostics.error(tseg.text_place(), "the size of <tseg> is a number of whole MiB");
        }
        self.tseg = Some((bytes, tseg.span));
    }

    fn read_tcg(&mut self, features: &Element, diagnostics: &mut Diagnostics) {
        let tcg = features.only_child("tcg", diagnostics);
        let Some(cache) = tcg.and_then(|tcg| tcg.only_child("tb-cache", diagnostics)) else { return };
        if let Some(bytes) = size::of_element(cache, KIB, diagnostics) {
            if !bytes.is_multiple_of(MIB) {
                diagnostics.error(cache.text_place(), "the size of <tb-cache> is a number of whole MiB");
            }
            self.tb_cache = Some((bytes, cache.span));
        }
    }
}

impl KvmFeatures {
    fn from_xml(features: &Element, diagnostics: &mut Diagnostics) -> Self {
        let Some(kvm) = features.only_child("kvm", diagnostics) else { return Self::default() };
        let dirty_ring = kvm.only_child("dirty-ring", diagnostics).and_then(|ring| {
            let size: Option<u32> = ring.number("size", diagnostics);
            if ring.on_off("state", diagnostics) != Some(true) {
                return None;
            }
            if !size.is_some_and(|s| s.is_power_of_two() && DIRTY_RING.contains(&s)) {
                diagnostics.error(
                    ring.span,
                    format!(
                        "the size of the dirty ring is a power of two from {} to {}",
                        DIRTY_RING.start(),
                        DIRTY_RING.end()
                    ),
                );
            }
            size
        });
        Self {
            hidden: given_state(kvm, "hidden", diagnostics).unwrap_or_default(),
            hint_dedicated: given_state(kvm, "hint-dedicated", diagnostics).unwrap_or_default(),
            poll_control: given_state(kvm, "poll-control", diagnostics).unwrap_or_default(),
            pv_ipi: given_state(kvm, "pv-ipi", diagnostics),
            dirty_ring,
        }
    }
}

/// Features of hypervisors other than QEMU, which libvirt passes over as well.
fn of_others(features: &Element, diagnostics: &mut Diagnostics) {
    for name in ["capabilities", "hap", "msrs", "privnet", "viridian", "xen"] {
        if let Some(element) = features.only_child(name, diagnostics) {
            element.mark_read();
            diagnostics.warning(
                element.span,
                format!("<{name}> is for other hypervisors: it changes nothing in QEMU"),
            );
        }
    }
}

/// `state=` of a feature that says it.
pub(super) fn given_state(parent: &Element, name: &str, diagnostics: &mut Diagnostics) -> Option<bool> {
    let element = parent.only_child(name, diagnostics)?;
    element.require("state", diagnostics)?;
    element.on_off("state", diagnostics)
}

/// `state=` of a feature; a feature without it is on.
fn state(parent: &Element, name: &str, diagnostics: &mut Diagnostics) -> Option<bool> {
    let element = parent.only_child(name, diagnostics)?;
    Some(element.on_off("state", diagnostics).unwrap_or(true))
}
