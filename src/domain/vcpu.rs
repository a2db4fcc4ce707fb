//! How many processors a guest has.

use crate::xml::{Diagnostics, Element, Span};

use super::id_set::IdSet;

/// libvirt's limit; no machine type of QEMU's has as many.
const MAX_VCPUS: u32 = 16384;

/// `<vcpu>`.
#[derive(Debug, Clone, Default)]
pub struct Vcpus {
    /// The most the guest can have; at least 1.
    pub max: u32,
    /// How many are there at the start.
    pub current: u32,
    /// `placement='auto'`: the host's processors and memory are picked for the guest.
    pub automatic: bool,
    /// `cpuset=`: the processors of the host that QEMU may use.
    pub host_cpus: Option<IdSet>,
    /// Where it stands.
    pub span: Span,
}

impl Vcpus {
    /// Reads `<vcpu>`: one processor if there is none.
    pub fn from_xml(root: &Element, diagnostics: &mut Diagnostics) -> Self {
        let Some(element) = root.only_child("vcpu", diagnostics) else {
            return Self { max: 1, current: 1, span: root.span, ..Self::default() };
        };
        let max = match element.text() {
            "" => 1,
            text => text.parse().unwrap_or_else(|_| {
                diagnostics.error(element.text_place(), format!("'{text}' is not a number of vCPUs"));
                1
            }),
        };
        let max = if max > MAX_VCPUS {
            diagnostics.error(element.text_place(), format!("a guest has at most {MAX_VCPUS} vCPUs"));
            MAX_VCPUS
        } else {
            max
        };
        if max == 0 {
            diagnostics.error(element.text_place(), "a guest has at least one vCPU");
        }
        let current = element.number("current", diagnostics).unwrap_or(max);
        if current > max || current == 0 {
            diagnostics.error(element.span, format!("current='{current}' is not between 1 and {max}"));
        }
        let placement = element.get("placement");
        match placement {
            None | Some("static") => {}
            Some("auto") => {
                diagnostics
                    .warning(
                        element.span,
                        "no adviser picks the host's processors here: the guest runs on all of them",
                    )
                    .hint("name them: <vcpu placement='static' cpuset='0-3'>");
            }
            Some(other) => {
                diagnostics
                    .error(element.span, format!("'{other}' is not a placement; it is static or auto"));
            }
        }
        let host_cpus = IdSet::from_attribute(element, "cpuset", diagnostics);
        Self { max, current, automatic: placement == Some("auto"), host_cpus, span: element.span }
    }
}
