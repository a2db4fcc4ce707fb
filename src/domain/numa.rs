//! `<numa>`: which processors and which memory of the guest are near each other.

use crate::keywords;
use crate::xml::{Diagnostics, Element, Span};

use super::backing::MemoryAccess;
use super::id_set::IdSet;
use super::size::{self, KIB};

/// `<cell>`.
#[derive(Debug, Clone)]
pub struct Cell {
    /// Its number.
    pub id: u32,
    /// Its processors; empty: memory only.
    pub cpus: IdSet,
    /// Its memory in bytes.
    pub memory: u64,
    /// `memAccess=`.
    pub access: Option<MemoryAccess>,
    /// `discard=`.
    pub discard: Option<bool>,
    /// `<distances>`: to which cell how far.
    pub distances: Vec<(u32, u8)>,
    /// `<cache>`s of its memory.
    pub caches: Vec<MemoryCache>,
    /// Where it stands.
    pub span: Span,
}

keywords! {
    /// How a memory side cache is addressed.
    pub enum Associativity {
        /// Not said.
        None = "none",
        /// Direct mapped.
        Direct = "direct",
        /// Fully associative.
        Full = "full",
    }
}

keywords! {
    /// How a memory side cache is written.
    pub enum WritePolicy {
        /// Not said.
        None = "none",
        /// Later.
        Writeback = "writeback",
        /// At once.
        Writethrough = "writethrough",
    }
}

/// `<cache>` of a cell.
#[derive(Debug, Clone)]
pub struct MemoryCache {
    /// 1 is nearest to the memory.
    pub level: u32,
    /// How it is addressed.
    pub associativity: Associativity,
    /// How it is written.
    pub policy: WritePolicy,
    /// In bytes.
    pub size: u64,
    /// The size of a line in bytes.
    pub line: u64,
}

keywords! {
    /// Which accesses a latency or bandwidth is about.
    pub enum AccessType {
        /// All.
        Access = "access",
        /// Reading.
        Read = "read",
        /// Writing.
        Write = "write",
    }
}

/// `<latency>` or `<bandwidth>`.
#[derive(Debug, Clone)]
pub struct Interconnect {
    /// From which cell.
    pub initiator: u32,
    /// To which cell.
    pub target: u32,
    /// To which level of cache; 0 is the memory itself.
    pub cache: u32,
    /// Which accesses.
    pub access: AccessType,
    /// Nanoseconds of latency, or bytes per second of bandwidth.
    pub value: InterconnectValue,
    /// Where it stands.
    pub span: Span,
}

/// What an [`Interconnect`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterconnectValue {
    /// In nanoseconds.
    Latency(u64),
    /// In bytes per second.
    Bandwidth(u64),
}

/// `<numa>`.
#[derive(Debug, Clone, Default)]
pub struct Numa {
    /// The cells, by number.
    pub cells: Vec<Cell>,
    /// `<interconnects>`.
    pub interconnects: Vec<Interconnect>,
}

/// The distance of a node to itself in ACPI's tables; nothing is nearer.
const LOCAL_DISTANCE: u8 = 10;

impl Numa {
    /// Reads `<numa>` of `<cpu>`.
    pub(super) fn from_xml(cpu: &Element, diagnostics: &mut Diagnostics) -> Self {
        let Some(numa) = cpu.only_child("numa", diagnostics) else { return Self::default() };
        let mut cells: Vec<Cell> = Vec::new();
        for (n, element) in numa.children("cell").enumerate() {
            let Some(cell) = Cell::from_xml(element, u32::try_from(n).unwrap_or(u32::MAX), diagnostics)
            else {
                continue;
            };
            if let Some(other) = cells.iter().find(|c| c.id == cell.id) {
                diagnostics
                    .error(cell.span, format!("there are two NUMA cells with the id {}", cell.id))
                    .related(other.span, "the other one");
            }
            if let Some((other, cpu)) = cells.iter().find_map(|c| Some((c, c.cpus.common(&cell.cpus)?))) {
                diagnostics
                    .error(cell.span, format!("vCPU {cpu} is in two NUMA cells"))
                    .related(other.span, "the other one");
            }
            cells.push(cell);
        }
        cells.sort_by_key(|c| c.id);
        if let Some((n, gap)) = (0..).zip(&cells).find(|(n, c)| c.id != *n) {
            diagnostics
                .error(gap.span, format!("NUMA cells are numbered without gaps: there is no cell {n}"));
        }
        let interconnects = match numa.only_child("interconnects", diagnostics) {
            Some(element) => interconnects(element, diagnostics),
            None => Vec::new(),
        };
        for cell in &cells {
            for (target, _) in cell.distances.iter().filter(|(t, _)| !cells.iter().any(|c| c.id == *t)) {
                diagnostics.error(cell.span, format!("there is no NUMA cell {target}"));
            }
            if cell.distances.iter().any(|(id, value)| *id == cell.id && *value != LOCAL_DISTANCE) {
                diagnostics.error(cell.span, format!("the distance of a cell to itself is {LOCAL_DISTANCE}"));
            }
        }
        for link in interconnects.iter().filter(|l| l.cache > 0) {
            let target = cells.iter().find(|c| c.id == link.target);
            if target.is_some_and(|c| !c.caches.iter().any(|cache| cache.level == link.cache)) {
                diagnostics.error(link.span, format!("the NUMA cell {} has no such <cache>", link.target));
            }
        }
        Self { cells, interconnects }
    }

    /// The memory of all cells in bytes.
    pub fn memory(&self) -> u64 {
        self.cells.iter().map(|c| c.memory).fold(0, u64::saturating_add)
    }

    /// Whether the guest is to be told latencies, bandwidths or caches of its memory.
    pub fn has_hmat(&self) -> bool {
        !self.interconnects.is_empty() || self.cells.iter().any(|c| !c.caches.is_empty())
    }
}

impl Cell {
    fn from_xml(element: &Element, position: u32, diagnostics: &mut Diagnostics) -> Option<Self> {
        if element.attribute("memory").is_none() {
            diagnostics.error(element.span, "<cell> lacks the attribute 'memory'");
        }
        let distances = match element.only_child("distances", diagnostics) {
            Some(list) => list.children("sibling").filter_map(|s| sibling(s, diagnostics)).collect(),
            None => Vec::new(),
        };
        Some(Self {
            id: element.number("id", diagnostics).unwrap_or(position),
            cpus: IdSet::from_attribute(element, "cpus", diagnostics).unwrap_or_default(),
            memory: size::of_attribute(element, "memory", "unit", KIB, diagnostics)?,
            access: element.keyword("memAccess", diagnostics),
            discard: element.yes_no("discard", diagnostics),
            distances,
            caches: element.children("cache").filter_map(|c| cache(c, diagnostics)).collect(),
            span: element.span,
        })
    }
}

fn sibling(element: &Element, diagnostics: &mut Diagnostics) -> Option<(u32, u8)> {
    element.require("id", diagnostics)?;
    element.require("value", diagnostics)?;
    let (id, value) = (element.number("id", diagnostics)?, element.number("value", diagnostics)?);
    if value < LOCAL_DISTANCE {
        diagnostics.error(element.span, format!("a distance is between {LOCAL_DISTANCE} and 255"));
    }
    Some((id, value))
}

fn cache(element: &Element, diagnostics: &mut Diagnostics) -> Option<MemoryCache> {
    let mut part = |name: &str| {
        let Some(child) = element.only_child(name, diagnostics) else {
            diagnostics.error(element.span, format!("<cache> lacks <{name}>"));
            return None;
        };
        child.require("value", diagnostics)?;
        size::of_attribute(child, "value", "unit", KIB, diagnostics)
    };
    let (size, line) = (part("size"), part("line"));
    element.require("level", diagnostics)?;
    Some(MemoryCache {
        level: element.number("level", diagnostics)?,
        associativity: element.require_keyword("associativity", diagnostics)?,
        policy: element.require_keyword("policy", diagnostics)?,
        size: size?,
        line: line?,
    })
}

fn interconnects(element: &Element, diagnostics: &mut Diagnostics) -> Vec<Interconnect> {
    let mut list: Vec<Interconnect> = Vec::new();
    for (name, bandwidth) in [("latency", false), ("bandwidth", true)] {
        let start = list.len();
        for child in element.children(name) {
            let Some(link) = interconnect(child, bandwidth, diagnostics) else { continue };
            let key = |l: &Interconnect| (l.initiator, l.target, l.cache, l.access);
            if let Some(other) = list[start..].iter().find(|l| key(l) == key(&link)) {
                diagnostics
                    .error(link.span, format!("this <{name}> is given twice"))
                    .related(other.span, "the other time");
            }
            list.push(link);
        }
    }
    list
}

fn interconnect(element: &Element, bandwidth: bool, diagnostics: &mut Diagnostics) -> Option<Interconnect> {
    for name in ["initiator", "target", "value"] {
        element.require(name, diagnostics)?;
    }
    let value = if bandwidth {
        InterconnectValue::Bandwidth(size::of_attribute(element, "value", "unit", KIB, diagnostics)?)
    } else {
        InterconnectValue::Latency(element.number("value", diagnostics)?)
    };
    Some(Interconnect {
        initiator: element.number("initiator", diagnostics)?,
        target: element.number("target", diagnostics)?,
        cache: element.number("cache", diagnostics).unwrap_or_default(),
        access: element.require_keyword("type", diagnostics)?,
        value,
        span: element.span,
    })
}
