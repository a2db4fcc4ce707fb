//! `-m` and the objects that are the guest's memory.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::domain::Domain;
use crate::domain::backing::{MemoryAccess, MemoryAllocation, MemorySource};
use crate::domain::id_set::IdSet;
use crate::domain::size::{KIB, MIB};
use crate::domain::tuning::NumaMode;
use crate::qemu::plan::object;
use crate::qemu::properties::Properties;
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
    /// The file that keeps its contents.
    pub path: Option<String>,
    /// The name of its file among the guest's memory, where that is not the id.
    pub file_name: String,
    /// Whether all of it is made ready at the start; `None`: as the guest's memory at large.
    pub preallocate: Option<bool>,
    /// Nothing is set aside for what the guest does not use.
    pub on_demand: bool,
    /// In bytes.
    pub align: Option<u64>,
    /// The file is on persistent memory.
    pub pmem: bool,
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
    let prealloc = piece.preallocate.unwrap_or_else(|| is_made_ready(domain, capabilities, piece));
    if piece.on_demand {
        properties.insert("reserve".to_owned(), false.into());
    }
    properties.put_some("prealloc", prealloc.then_some(true));
    properties.put_some("prealloc-threads", domain.backing.allocation_threads);
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
        if let Some(mode) = policy_name(policy.map_or(NumaMode::Strict, |p| p.mode)) {
            let list: Vec<u32> = nodes.iter().collect();
            properties.insert("host-nodes".to_owned(), json!(list));
            properties.insert("policy".to_owned(), mode.into());
            // qapi/qom: thread-context came with 7.2. The threads that fill the memory run near it, unless all of
            // QEMU's threads are told where to run.
            let pinned = domain.vcpus.host_cpus.is_some() || domain.pinning.emulator.is_some();
            if prealloc && !pinned && capabilities.has_object("thread-context") {
                let id = format!("tc-{}", piece.id);
                line.json(
                    "-object",
                    object(json!({"qom-type": "thread-context", "id": id, "node-affinity": list})),
                );
                properties.insert("prealloc-context".to_owned(), id.into());
            }
        }
    }
    if let Some(align) = piece.align {
        properties.insert("align".to_owned(), align.into());
    }
    if piece.pmem {
        properties.insert("pmem".to_owned(), true.into());
    }
    line.json("-object", properties);
}

/// QEMU's name of a policy that is its own to keep.
fn policy_name(mode: NumaMode) -> Option<&'static str> {
    match mode {
        NumaMode::Strict => Some("bind"),
        NumaMode::Preferred => Some("preferred"),
        NumaMode::Interleave => Some("interleave"),
        NumaMode::Restrictive => None,
    }
}

/// Whether all of a piece is made ready at the start: huge pages are, or a guest may find that there are none.
pub(in crate::qemu) fn is_made_ready(domain: &Domain, capabilities: &Capabilities, piece: &Piece) -> bool {
    let page = page_size(domain, capabilities, piece);
    page.is_some() && !is_memfd(domain) || domain.backing.allocation == Some(MemoryAllocation::Immediate)
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
    if piece.path.is_some() {
        return None;
    }
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
    let cell = domain.cpu.numa.cells.iter().find(|c| Some(c.id) == piece.cell);
    let access = piece.access.or(cell.and_then(|c| c.access)).or(backing.access);
    let discard = piece.discard.or(cell.and_then(|c| c.discard)).or(backing.discard.then_some(true));
    let page = page_size(domain, capabilities, piece);
    let memfd = is_memfd(domain) && piece.path.is_none();
    let in_file = piece.path.is_some()
        || page.is_some()
        || access.is_some()
        || backing.source == Some(MemorySource::File);
    let mut told = JsonObject::new();
    told.put(
        "qom-type",
        match (memfd, in_file) {
            (true, _) => "memory-backend-memfd",
            (false, true) => "memory-backend-file",
            (false, false) => "memory-backend-ram",
        },
    );
    told.put("id", piece.id.as_str());
    if memfd {
        told.put_some("hugetlb", page.map(|_| true));
        told.put_some("hugetlbsize", page);
    } else if in_file {
        let path = match &piece.path {
            Some(path) => Some(path.into()),
            None => file(domain, capabilities, piece, page, line, diagnostics),
        };
        told.put("mem-path", json!(path));
        told.put_some("discard-data", discard);
    }
    if piece.id == MAIN_MEMORY && (memfd || in_file) {
        // QEMU names this part of a migration after the object's path, but where it would have made it itself.
        told.put("x-use-canonical-path-for-ramblock-id", false);
    }
    told.put_some("share", access.map(|a| a == MemoryAccess::Shared));
    told
}

/// Where a piece's file is made: in a directory of the guest's own.
fn file(
    domain: &Domain,
    capabilities: &Capabilities,
    piece: &Piece,
    page: Option<u64>,
    line: &mut CommandLine,
    diagnostics: &mut Diagnostics,
) -> Option<PathBuf> {
    let (host, name) = (&capabilities.host, domain.name());
    let Some(page) = page else {
        let dir = host.memory_dir(name);
        let file = if piece.file_name.is_empty() { &piece.id } else { &piece.file_name };
        let path = dir.join(file);
        prepare(line, dir);
        return Some(path);
    };
    let Some(mount) = host.hugetlbfs.get(&page) else {
        let of_backing = domain.backing.page_of(Some(piece.cell.unwrap_or_default()));
        let span = of_backing.filter(|_| piece.page_size.is_none()).map_or(piece.span, |p| p.span);
        diagnostics
            .error(span, format!("the host has no hugetlbfs with pages of {} KiB", page / KIB))
            .hint(format!("mount one: mount -t hugetlbfs -o pagesize={}K hugetlbfs DIRECTORY", page / KIB));
        return None;
    };
    // Files in a directory have no name there.
    let dir = Path::new(mount).join(host.domain_dir(name));
    prepare(line, dir.clone());
    Some(dir)
}

fn prepare(line: &mut CommandLine, dir: PathBuf) {
    let preparation = Preparation::Directory(dir);
    if !line.preparations.contains(&preparation) {
        line.preparations.push(preparation);
    }
}
