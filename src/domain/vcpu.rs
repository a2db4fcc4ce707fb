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
    /// How many are there when the guest begins to run.
    pub current: u32,
    /// `<vcpus>`: those among them that are plugged in like devices, in their order. All others are QEMU's own.
    pub plugged: Vec<u32>,
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
        let mut current = element.number("current", diagnostics).unwrap_or(max);
        if current > max || current == 0 {
            diagnostics.error(element.span, format!("current='{current}' is not between 1 and {max}"));
        }
        let mut plugged = Vec::new();
        if let Some(list) = root.only_child("vcpus", diagnostics) {
            let states = states(list, max, diagnostics);
            current = u32::try_from(states.iter().filter(|s| s.enabled).count()).unwrap_or(max);
            let mut hot: Vec<_> = states.iter().filter(|s| s.enabled && s.hotpluggable).collect();
            hot.sort_by_key(|s| (s.order, s.id));
            plugged.extend(hot.iter().map(|s| s.id));
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
        let automatic = placement == Some("auto");
        Self { max, current, plugged, automatic, host_cpus, span: element.span }
    }

    /// How many QEMU makes itself.
    pub fn built_in(&self) -> u32 {
        self.current.saturating_sub(u32::try_from(self.plugged.len()).unwrap_or_default())
    }
}

/// `<vcpu>` of `<vcpus>`.
struct VcpuState {
    id: u32,
    enabled: bool,
    hotpluggable: bool,
    order: Option<u32>,
    span: Span,
}

/// Reads `<vcpus>`. One that is not in the list is not there, and can be plugged in.
fn states(list: &Element, max: u32, diagnostics: &mut Diagnostics) -> Vec<VcpuState> {
    let mut states: Vec<VcpuState> = Vec::new();
    for element in list.children("vcpu") {
        let Some(state) = VcpuState::from_xml(element, diagnostics) else { continue };
        if state.id >= max {
            diagnostics.error(
                state.span,
                format!("there is no vCPU {}: they are numbered 0 to {}", state.id, max.saturating_sub(1)),
            );
        }
        if let Some(other) = states.iter().find(|s| s.id == state.id) {
            diagnostics
                .error(state.span, format!("vCPU {} is listed twice", state.id))
                .related(other.span, "the other time");
        }
        states.push(state);
    }
    check_states(list, &states, diagnostics);
    states
}

fn check_states(list: &Element, states: &[VcpuState], diagnostics: &mut Diagnostics) {
    match states.iter().find(|s| s.id == 0) {
        Some(first) if first.enabled && !first.hotpluggable => {}
        first => {
            let span = first.map_or(list.span, |s| s.span);
            diagnostics.error(span, "vCPU 0 is always there: enabled='yes' hotpluggable='no'");
        }
    }
    let mut enabled = states.iter().filter(|s| s.enabled);
    let ordered = enabled.next().is_some_and(|first| first.order.is_some());
    if let Some(odd) = enabled.find(|s| s.order.is_some() != ordered) {
        diagnostics.error(odd.span, "either all vCPUs that are enabled have an order, or none has");
    }
    // QEMU makes its own ones from 0 upwards, before any is plugged in.
    let place = |s: &&VcpuState| s.order.unwrap_or(s.id);
    let last = states.iter().filter(|s| s.enabled && !s.hotpluggable).max_by_key(|s| s.id);
    let Some(last) = last else { return };
    let gap = (0..last.id).find(|id| !states.iter().any(|s| s.id == *id && s.enabled && !s.hotpluggable));
    let early = states.iter().find(|s| s.enabled && s.hotpluggable && place(s) < place(&last));
    if gap.is_some() || early.is_some() {
        diagnostics.error(
            early.map_or(last.span, |s| s.span),
            "vCPUs that cannot be hotplugged come first: the others have higher numbers, and an order after theirs",
        );
    }
}

impl VcpuState {
    fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        element.require("id", diagnostics)?;
        element.require("enabled", diagnostics)?;
        let id = element.number("id", diagnostics)?;
        let enabled = element.yes_no("enabled", diagnostics)?;
        let hotpluggable = element.yes_no("hotpluggable", diagnostics).unwrap_or(!enabled);
        if !enabled && !hotpluggable {
            diagnostics
                .error(element.span, "a vCPU that is not there and cannot be plugged in never will be");
        }
        let order = element.number("order", diagnostics);
        if order == Some(0) {
            diagnostics.error(element.span, "the order of vCPUs starts at 1");
        }
        Some(Self { id, enabled, hotpluggable, order, span: element.span })
    }
}
