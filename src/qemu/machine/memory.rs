//! `-m` and the objects that are the guest's memory.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::domain::Domain;
use crate::domain::backing::{MemoryAccess, MemoryAllocation, MemorySource};
use crate::domain::id_set::IdSet;
use crate::domain::size::{KIB, MIB};
use crate::domain::tuning::NumaMode;
use crate::qemu::plan::object;
use crate::qemu::{Capabilities, CommandLine, JsonObject, Preparation};
use crate::xml::{Diagnostics, Span};

use super::platform::on_off;

/// The id of the memory of machines without NUMA cells, as QEMU itself calls it: a guest that moves keeps it.
const MAIN_MEMORY: &str = "pc.ram";
/// Ordinary pages on x86.
const PAGE: u64 = 4 * KIB;

/// A piece of the guest's memory that becomes an object.
#[derive(Debug, Clone, Default)]
pub(in crate::qemu) struct Piece {
    /// The object's id.
    pub id: String,
    /// In bytes.
    pub size: u64,
    /// The guest's NUMA cell that it is in.
    pub cell: Option<u32>,
    /// Whether other processes can map it, where the guest's memory at large does not say.
    pub access: Option<MemoryAccess>,
    /// Whether it is thrown away at the end, where the guest's memory at large does not say.
    pub discard: Option<bool>,
    /// The size of its pages, where `<hugepages>` does not say.
    pub page_size: Option<u64>,
    /// The host's NUMA nodes it comes from, where `<numatune>` does not say.
    pub host_nodes: Option<IdSet>,
    /// Where the XML asks for it.
    pub span: Span,
}

/// Memory is given to guests on x86 in whole MiB.
pub(super) fn rounded(bytes: u64) -> u64 {
    bytes.next_multiple_of(MIB)
}

/// All of the memory that is there at the start.
pub(super) fn initial(domain: &Domain) -> u64 {
    match domain.cpu.numa.cells.as_slice() {
        [] => rounded(domain.memory.total),
        cells => cells.iter().map(|c| rounded(c.memory)).fold(0, u64::saturating_add),
    }
}

/// `-m`, and the memory of a guest without NUMA cells.
pub(super) fn arguments(
    domain: &Domain,
    capabilities: &Capabilities,
    line: &mut CommandLine,
    diagnostics: &mut Diagnostics,
) {
    let size = initial(domain);
    let mut m = format!("size={}k", size / KIB);
    if let Some(max) = domain.memory.max {
        if max.slots > 0 {
            m.push_str(&format!(",slots={}", max.slots));
        }
        m.push_str(&format!(",maxmem={}k", rounded(max.bytes) / KIB));
    }
    line.text("-m", m);
    if domain.cpu.numa.cells.is_empty() {
        let piece = Piece { id: MAIN_MEMORY.to_owned(), size, span: domain.memory.span, ..Piece::default() };
        add(domain, capabilities, &piece, line, diagnostics);
    }
    line.text("-overcommit", format!("mem-lock={}", on_off(domain.backing.locked)));
}

/// The machine's property that names its memory.
pub(super) fn machine_property(domain: &Domain) -> Option<&'static str> {
    domain.cpu.numa.cells.is_empty().then_some(MAIN_MEMORY)
}

/// Whether a cell's memory needs an object: only then can it be anything but ordinary.
pub(super) fn is_special(domain: &Domain, cell: &crate::domain::numa::Cell) -> bool {
    let backing = &domain.backing;
    backing.page_of(Some(cell.id)).is_some()
        || backing.source.is_some_and(|s| s != MemorySource::Anonymous)
        || backing.access.or(cell.access).is_some()
        || backing.allocation == Some(MemoryAllocation::Immediate)
        || domain.numatune.of_cell(Some(cell.id)).is_some()
}

/// Adds a piece of memory.
pub(in crate::qemu) fn add(
    domain: &Domain,
    capabilities: &Capabilities,
    piece: &Piece,
    line: &mut CommandLine,
    diagnostics: &mut Diagnostics,
) {
    let mut properties = kind(domain, capabilities, piece, line, diagnostics);
    let page = page_size(domain, capabilities, piece);
    let prealloc =
        page.is_some() && !is_memfd(domain) || domain.backing.allocation == Some(MemoryAllocation::Immediate);
    if prealloc {
        properties.insert("prealloc".to_owned(), true.into());
        if let Some(threads) = domain.backing.allocation_threads {
            properties.insert("prealloc-threads".to_owned(), threads.into());
        }
    }
    properties.insert("size".to_owned(), piece.size.into());
    let policy = domain.numatune.of_cell(piece.cell);
    let all = || policy.map(|p| p.nodeset.as_ref().unwrap_or(&capabilities.host.nodes));
    if let Some(nodes) = piece.host_nodes.as_ref().or_else(all) {
        if let Some(missing) = nodes.iter().find(|n| !capabilities.host.nodes.contains(*n)) {
            let span = policy.map_or(piece.span, |p| p.span);
            diagnostics
                .error(span, format!("the host has no NUMA node {missing}"))
                .hint(format!("it has {}", capabilities.host.nodes));
        }
        let list: Vec<u32> = nodes.iter().collect();
        let mode = match policy.map_or(NumaMode::Strict, |p| p.mode) {
            NumaMode::Strict => "bind",
            NumaMode::Preferred => "preferred",
            NumaMode::Interleave => "interleave",
        };
        properties.insert("host-nodes".to_owned(), json!(list));
        properties.insert("policy".to_owned(), mode.into());
        // qapi/qom: thread-context came with 7.2. The threads that fill the memory run near it.
        if prealloc && capabilities.has_object("thread-context") {
            let id = format!("tc-{}", piece.id);
            line.json(
                "-object",
                object(json!({"qom-type": "thread-context", "id": id, "node-affinity": list})),
            );
            properties.insert("prealloc-context".to_owned(), id.into());
        }
    }
    line.json("-object", properties);
}

fn is_memfd(domain: &Domain) -> bool {
    domain.backing.source == Some(MemorySource::Memfd)
}

/// The size of the huge pages that a piece is made of; `None`: ordinary pages.
fn page_size(domain: &Domain, capabilities: &Capabilities, piece: &Piece) -> Option<u64> {
    let of_backing = || {
        let page = domain.backing.page_of(Some(piece.cell.unwrap_or_default()))?;
        Some(page.size.unwrap_or(capabilities.host.default_hugepage))
    };
    piece.page_size.or_else(of_backing).filter(|size| *size != PAGE)
}

/// The object's type with the properties that belong to it.
fn kind(
    domain: &Domain,
    capabilities: &Capabilities,
    piece: &Piece,
    line: &mut CommandLine,
    diagnostics: &mut Diagnostics,
) -> JsonObject {
    let backing = &domain.backing;
    let host = &capabilities.host;
    let access = piece.access.or(backing.access);
    let page = page_size(domain, capabilities, piece);
    let mut properties = JsonObject::new();
    let mut put = |name: &str, value: Value| {
        properties.insert(name.to_owned(), value);
    };
    let share = access.map(|a| a == MemoryAccess::Shared);
    if is_memfd(domain) {
        put("qom-type", "memory-backend-memfd".into());
        put("id", piece.id.as_str().into());
        if let Some(page) = page {
            put("hugetlb", true.into());
            put("hugetlbsize", page.into());
        }
        main_memory(piece, &mut put);
    } else if page.is_some() || access.is_some() || backing.source == Some(MemorySource::File) {
        put("qom-type", "memory-backend-file".into());
        put("id", piece.id.as_str().into());
        match page {
            None => {
                let dir = host.memory_dir(domain.name());
                put("mem-path", json!(dir.join(&piece.id)));
                prepare(line, dir);
            }
            Some(page) => match host.hugetlbfs.get(&page) {
                Some(mount) => {
                    let dir = Path::new(mount).join(host.domain_dir(domain.name()));
                    put("mem-path", json!(dir));
                    prepare(line, dir);
                }
                None => {
                    let span =
                        backing.page_of(Some(piece.cell.unwrap_or_default())).map_or(piece.span, |p| p.span);
                    diagnostics
                        .error(span, format!("the host has no hugetlbfs with pages of {} KiB", page / KIB))
                        .hint(format!(
                            "mount one: mount -t hugetlbfs -o pagesize={}K hugetlbfs DIRECTORY",
                            page / KIB
                        ));
                }
            },
        }
        main_memory(piece, &mut put);
        if let Some(discard) = piece.discard.or(backing.discard.then_some(true)) {
            put("discard-data", discard.into());
        }
    } else {
        put("qom-type", "memory-backend-ram".into());
        put("id", piece.id.as_str().into());
    }
    if let Some(share) = share {
        put("share", share.into());
    }
    properties
}

/// QEMU names the migration stream's part after the object's path, but for memory that it would have made itself.
fn main_memory(piece: &Piece, put: &mut impl FnMut(&str, Value)) {
    if piece.id == MAIN_MEMORY {
        put("x-use-canonical-path-for-ramblock-id", false.into());
    }
}

fn prepare(line: &mut CommandLine, dir: PathBuf) {
    let preparation = Preparation::Directory(dir);
    if !line.preparations.contains(&preparation) {
        line.preparations.push(preparation);
    }
}
