//! `-numa`.

use crate::domain::Domain;
use crate::domain::numa::{AccessType, Associativity, Cell, Interconnect, InterconnectValue, WritePolicy};
use crate::domain::size::{KIB, MIB};
use crate::qemu::{Capabilities, CommandLine};
use crate::xml::Diagnostics;

use super::memory::{self, Piece};
use super::platform;

/// The guest's NUMA cells with their memory.
pub(super) fn arguments(
    domain: &Domain,
    capabilities: &Capabilities,
    line: &mut CommandLine,
    diagnostics: &mut Diagnostics,
) {
    let numa = &domain.cpu.numa;
    // Machine types since 5.1 take the memory of cells as objects only; for older ones an object where none is
    // needed would change the guest.
    let old = platform::machine_version(&domain.os.machine).is_some_and(|version| version <= (5, 0));
    let objects = !old || numa.cells.iter().any(|cell| memory::is_special(domain, cell));
    for cell in &numa.cells {
        let size = memory::rounded(cell.memory);
        let mut node = format!("node,nodeid={}", cell.id);
        for (first, last) in cell.cpus.ranges() {
            node.push_str(&if first == last {
                format!(",cpus={first}")
            } else {
                format!(",cpus={first}-{last}")
            });
        }
        if numa.has_hmat()
            && let Some(initiator) = initiator(domain, cell)
        {
            node.push_str(&format!(",initiator={initiator}"));
        }
        if objects {
            let piece = Piece {
                id: format!("ram-node{}", cell.id),
                size,
                cell: Some(cell.id),
                span: cell.span,
                ..Piece::default()
            };
            memory::add(domain, capabilities, &piece, line, diagnostics);
            node.push_str(&format!(",memdev=ram-node{}", cell.id));
        } else {
            node.push_str(&format!(",mem={}", size / MIB));
        }
        line.text("-numa", node);
    }
    distances(domain, line);
    if numa.has_hmat() {
        for link in &numa.interconnects {
            line.text("-numa", interconnect(link));
        }
        caches(domain, line);
    }
}

/// The cell whose processors reach a cell's memory best: itself, or for memory alone the one with the least latency
/// or the most bandwidth.
fn initiator(domain: &Domain, cell: &Cell) -> Option<u32> {
    if !cell.cpus.is_empty() {
        return Some(cell.id);
    }
    let numa = &domain.cpu.numa;
    let to_memory = |value: fn(&InterconnectValue) -> Option<u64>| {
        numa.interconnects
            .iter()
            .filter(move |l| l.target == cell.id && l.cache == 0 && l.access == AccessType::Access)
            .filter_map(move |l| Some((value(&l.value)?, l.initiator)))
    };
    let latency = |v: &InterconnectValue| if let InterconnectValue::Latency(n) = v { Some(*n) } else { None };
    let bandwidth =
        |v: &InterconnectValue| if let InterconnectValue::Bandwidth(n) = v { Some(*n) } else { None };
    let best = to_memory(latency).min_by_key(|(n, _)| *n).or(to_memory(bandwidth).max_by_key(|(n, _)| *n));
    best.map(|(_, id)| id).or_else(|| numa.cells.iter().find(|c| !c.cpus.is_empty()).map(|c| c.id))
}

/// A distance given one way counts both ways; what is not given is QEMU's default.
fn distances(domain: &Domain, line: &mut CommandLine) {
    let cells = &domain.cpu.numa.cells;
    if cells.iter().all(|c| c.distances.is_empty()) {
        return;
    }
    let given = |from: u32, to: u32| {
        let cell = cells.iter().find(|c| c.id == from)?;
        cell.distances.iter().find(|(id, _)| *id == to).map(|(_, value)| *value)
    };
    for from in cells {
        for to in cells {
            let default = if from.id == to.id { 10 } else { 20 };
            let value = given(from.id, to.id).or(given(to.id, from.id)).unwrap_or(default);
            line.text("-numa", format!("dist,src={},dst={},val={value}", from.id, to.id));
        }
    }
}

fn interconnect(link: &Interconnect) -> String {
    let hierarchy = ["memory", "first-level", "second-level", "third-level"][link.cache.min(3) as usize];
    let access = link.access.as_str();
    let value = match link.value {
        InterconnectValue::Latency(nanoseconds) => {
            format!("data-type={access}-latency,latency={nanoseconds}")
        }
        InterconnectValue::Bandwidth(bytes) => {
            format!("data-type={access}-bandwidth,bandwidth={}K", bytes / KIB)
        }
    };
    format!("hmat-lb,initiator={},target={},hierarchy={hierarchy},{value}", link.initiator, link.target)
}

fn caches(domain: &Domain, line: &mut CommandLine) {
    for cell in &domain.cpu.numa.cells {
        for cache in &cell.caches {
            let associativity = match cache.associativity {
                Associativity::None => "none",
                Associativity::Direct => "direct",
                Associativity::Full => "complex",
            };
            let policy = match cache.policy {
                WritePolicy::None => "none",
                WritePolicy::Writeback => "write-back",
                WritePolicy::Writethrough => "write-through",
            };
            line.text(
                "-numa",
                format!(
                    "hmat-cache,node-id={},size={}K,level={},associativity={associativity},policy={policy},line={}",
                    cell.id,
                    cache.size / KIB,
                    cache.level,
                    cache.line
                ),
            );
        }
    }
}
