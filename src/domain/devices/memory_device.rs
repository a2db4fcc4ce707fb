//! `<memory>`: memory that is a device, to be plugged, resized, or kept by the host.

use crate::domain::backing::MemoryAccess;
use crate::domain::id_set::IdSet;
use crate::domain::size::{self, KIB, MIB};
use crate::domain::{Address, DeviceInfo};
use crate::xml::{Diagnostics, Element, keywords};

keywords! {
    /// Kinds of memory devices.
    pub enum MemoryModel {
        /// A module.
        Dimm = "dimm",
        /// A module whose contents the host keeps.
        Nvdimm = "nvdimm",
        /// Memory that grows and shrinks.
        VirtioMem = "virtio-mem",
        /// Memory whose contents the host keeps, over virtio.
        VirtioPmem = "virtio-pmem",
    }
}

/// Modules are made of blocks of this size, which is what guests on x86 plug.
const BLOCK: u64 = 2 * MIB;

/// A `<memory>` of `<devices>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryDevice {
    /// Where it is and what it is called.
    pub info: DeviceInfo,
    /// Which kind.
    pub model: MemoryModel,
    /// `access=`.
    pub access: Option<MemoryAccess>,
    /// `discard=`.
    pub discard: Option<bool>,
    /// `<nodemask>`: the host's NUMA nodes that it comes from.
    pub host_nodes: Option<IdSet>,
    /// `<pagesize>` in bytes.
    pub page_size: Option<u64>,
    /// `<path>`: the file that keeps its contents.
    pub path: Option<String>,
    /// `<alignsize>` in bytes.
    pub align: Option<u64>,
    /// `<pmem/>`: the file is on persistent memory.
    pub pmem: bool,
    /// `<size>` in bytes.
    pub size: u64,
    /// `<node>`: the guest's NUMA cell.
    pub cell: Option<u32>,
    /// `<block>` in bytes.
    pub block: Option<u64>,
    /// `<requested>`: how much of it the guest is to use, in bytes.
    pub requested: Option<u64>,
    /// `<label>`'s size in bytes.
    pub label: Option<u64>,
    /// `<readonly/>`.
    pub readonly: bool,
    /// `dynamicMemslots=`.
    pub dynamic_slots: Option<bool>,
    /// `<address base=...>` of the target: where the guest sees it.
    pub base: Option<u64>,
}

impl MemoryDevice {
    /// Reads a `<memory>`.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let info = DeviceInfo::from_xml(element, diagnostics);
        if element.get("model") == Some("sgx-epc") {
            element.mark_read();
            diagnostics.unsupported(element.span, "vmward does not give SGX memory to guests");
            return None;
        }
        let model = element.require_keyword("model", diagnostics)?;
        let Some(target) = element.only_child("target", diagnostics) else {
            diagnostics.error(element.span, "<memory> lacks its <target>");
            return None;
        };
        let of = |parent: Option<&Element>, name: &str, diagnostics: &mut Diagnostics| {
            parent
                .and_then(|p| p.only_child(name, diagnostics))
                .and_then(|e| size::of_element(e, KIB, diagnostics))
        };
        let source = element.only_child("source", diagnostics);
        let Some(bytes) = of(Some(target), "size", diagnostics) else {
            diagnostics.error(target.span, "<target> of <memory> lacks its <size>");
            return None;
        };
        let device = Self {
            info,
            model,
            access: element.keyword("access", diagnostics),
            discard: element.yes_no("discard", diagnostics),
            host_nodes: source
                .and_then(|s| s.only_child("nodemask", diagnostics))
                .and_then(|e| nodes(e, diagnostics)),
            page_size: of(source, "pagesize", diagnostics),
            path: source
                .and_then(|s| s.only_child("path", diagnostics))
                .map(|p| p.text().to_owned())
                .filter(|p| !p.is_empty()),
            align: of(source, "alignsize", diagnostics),
            pmem: source.is_some_and(|s| s.only_child("pmem", diagnostics).is_some()),
            size: bytes.next_multiple_of(BLOCK),
            cell: target.only_child("node", diagnostics).and_then(|n| number(n, diagnostics)),
            block: of(Some(target), "block", diagnostics),
            requested: of(Some(target), "requested", diagnostics),
            label: of(target.only_child("label", diagnostics), "size", diagnostics),
            readonly: target.only_child("readonly", diagnostics).is_some(),
            dynamic_slots: target.yes_no("dynamicMemslots", diagnostics),
            base: target.only_child("address", diagnostics).and_then(|a| a.hex_number("base", diagnostics)),
        };
        // What the guest uses now, in what `virsh dumpxml` prints.
        target.only_child("current", diagnostics).into_iter().for_each(Element::mark_read);
        device.check(diagnostics);
        Some(device)
    }

    /// Whether it takes a slot for modules.
    pub fn is_module(&self) -> bool {
        matches!(self.model, MemoryModel::Dimm | MemoryModel::Nvdimm)
    }

    /// Where the guest sees it, if that is given.
    pub fn guest_address(&self) -> Option<u64> {
        match &self.info.address {
            Some(Address::Dimm(address)) => address.base,
            _ => self.base,
        }
    }

    /// How much of it the guest sees as memory, in bytes: a label is no memory, and what is left is made of blocks.
    pub fn guest_size(&self) -> u64 {
        let block = self.align.filter(|a| a.is_power_of_two()).unwrap_or(BLOCK);
        let size = self.size.saturating_sub(self.label.unwrap_or_default());
        size - size % block
    }

    fn check(&self, diagnostics: &mut Diagnostics) {
        use MemoryModel as M;
        let span = self.info.span;
        let mut belongs = |given: bool, name: &str, models: &[M]| {
            if given && !models.contains(&self.model) {
                let model = self.model.as_str();
                diagnostics.error(span, format!("a memory device of model '{model}' has no <{name}>"));
            }
        };
        belongs(self.path.is_some(), "path", &[M::Nvdimm, M::VirtioPmem]);
        belongs(self.align.is_some() || self.pmem, "alignsize> or <pmem", &[M::Nvdimm]);
        belongs(self.label.is_some() || self.readonly, "label> or <readonly", &[M::Nvdimm]);
        belongs(self.block.is_some() || self.requested.is_some(), "block> or <requested", &[M::VirtioMem]);
        belongs(
            self.page_size.is_some() || self.host_nodes.is_some(),
            "pagesize> or <nodemask",
            &[M::Dimm, M::VirtioMem],
        );
        let keeps = matches!(self.model, M::Nvdimm | M::VirtioPmem);
        if keeps && self.path.is_none() {
            diagnostics.error(span, "memory that the host keeps has its <path> in <source>");
        }
        if self.model == M::VirtioMem {
            let block = self.block.unwrap_or(BLOCK);
            let whole = |bytes: u64| block.is_power_of_two() && bytes.is_multiple_of(block);
            if !whole(self.size) || !whole(self.requested.unwrap_or_default()) {
                diagnostics
                    .error(span, "the sizes of virtio-mem are multiples of its <block>, a power of two");
            }
            if self.requested.is_some_and(|r| r > self.size) {
                diagnostics.error(span, "<requested> is more than <size>");
            }
        }
    }
}

fn nodes(element: &Element, diagnostics: &mut Diagnostics) -> Option<IdSet> {
    let set = IdSet::parse(element.text()).filter(|s| !s.is_empty());
    if set.is_none() {
        diagnostics.error(element.text_place(), format!("'{}' is not a set of numbers", element.text()));
    }
    set
}

fn number(element: &Element, diagnostics: &mut Diagnostics) -> Option<u32> {
    let number = element.text().parse().ok();
    if number.is_none() {
        diagnostics
            .error(element.text_place(), format!("'{}' is not the number of a NUMA cell", element.text()));
    }
    number
}
