//! `<hyperv>`: what a Windows guest is offered of Microsoft's hypervisor interface.

use crate::keywords;
use crate::xml::{Diagnostics, Element};

use super::features::given_state;

keywords! {
    /// How the enlightenments are chosen.
    pub enum HyperVMode {
        /// One by one.
        Custom = "custom",
        /// All that the host has.
        Passthrough = "passthrough",
    }
}

/// Features that are on or off and no more; each with its property of QEMU's processors.
const SWITCHES: &[(&str, &str)] = &[
    ("relaxed", "hv-relaxed"),
    ("vapic", "hv-vapic"),
    ("vpindex", "hv-vpindex"),
    ("runtime", "hv-runtime"),
    ("synic", "hv-synic"),
    ("reset", "hv-reset"),
    ("frequencies", "hv-frequencies"),
    ("reenlightenment", "hv-reenlightenment"),
    ("ipi", "hv-ipi"),
    ("evmcs", "hv-evmcs"),
    ("avic", "hv-avic"),
    ("emsr_bitmap", "hv-emsr-bitmap"),
    ("xmm_input", "hv-xmm-input"),
];

/// A feature with its property, and its parts with theirs.
type Group = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

/// Features that have parts.
const GROUPS: &[Group] = &[
    ("stimer", "hv-stimer", &[("direct", "hv-stimer-direct")]),
    ("tlbflush", "hv-tlbflush", &[("direct", "hv-tlbflush-direct"), ("extended", "hv-tlbflush-ext")]),
];

/// The interface has no smaller number of attempts.
const MIN_SPINLOCK_RETRIES: u32 = 4095;
/// The length of the name in CPUID.
const VENDOR_ID_LEN: usize = 12;

/// `<hyperv>`.
#[derive(Debug, Clone, Default)]
pub struct HyperV {
    /// All that the host has.
    pub passthrough: bool,
    /// QEMU's properties that are to be on.
    pub switches: Vec<&'static str>,
    /// `<spinlocks retries=...>`.
    pub spinlocks: Option<u32>,
    /// `<vendor_id value=...>`.
    pub vendor_id: Option<String>,
}

impl HyperV {
    pub(super) fn from_xml(features: &Element, diagnostics: &mut Diagnostics) -> Self {
        let Some(hyperv) = features.only_child("hyperv", diagnostics) else { return Self::default() };
        let mut this = Self {
            passthrough: hyperv.keyword("mode", diagnostics) == Some(HyperVMode::Passthrough),
            ..Self::default()
        };
        for (name, property) in SWITCHES {
            if given_state(hyperv, name, diagnostics) == Some(true) {
                this.switches.push(property);
            }
        }
        this.read_groups(hyperv, diagnostics);
        this.read_spinlocks(hyperv, diagnostics);
        this.read_vendor(hyperv, diagnostics);
        if this.passthrough
            && (!this.switches.is_empty() || this.spinlocks.is_some() || this.vendor_id.is_some())
        {
            diagnostics.warning(hyperv.span, "with mode='passthrough' the guest gets all features anyway");
            this = Self { passthrough: true, ..Self::default() };
        }
        this
    }

    /// Features that have parts.
    fn read_groups(&mut self, hyperv: &Element, diagnostics: &mut Diagnostics) {
        for (name, property, parts) in GROUPS {
            let on = given_state(hyperv, name, diagnostics) == Some(true);
            if on {
                self.switches.push(property);
            }
            let Some(element) = hyperv.child(name) else { continue };
            for (part, property) in *parts {
                if given_state(element, part, diagnostics) == Some(true) && on {
                    self.switches.push(property);
                }
            }
        }
    }

    fn read_spinlocks(&mut self, hyperv: &Element, diagnostics: &mut Diagnostics) {
        if given_state(hyperv, "spinlocks", diagnostics) != Some(true) {
            return;
        }
        let Some(element) = hyperv.child("spinlocks") else { return };
        let retries = element.number("retries", diagnostics);
        match retries {
            Some(n) if n >= MIN_SPINLOCK_RETRIES => self.spinlocks = Some(n),
            _ => {
                diagnostics
                    .error(element.span, format!("<spinlocks> has at least {MIN_SPINLOCK_RETRIES} retries"));
            }
        }
    }

    fn read_vendor(&mut self, hyperv: &Element, diagnostics: &mut Diagnostics) {
        if given_state(hyperv, "vendor_id", diagnostics) != Some(true) {
            return;
        }
        let Some(element) = hyperv.child("vendor_id") else { return };
        let Some(value) = element.require("value", diagnostics) else { return };
        if value.len() > VENDOR_ID_LEN || value.contains(',') {
            diagnostics.error(
                element.span,
                format!("a vendor_id has at most {VENDOR_ID_LEN} characters, and no comma"),
            );
        }
        self.vendor_id = Some(value.to_owned());
    }
}
