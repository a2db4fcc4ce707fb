//! `<numatune>`, `<cputune>`, `<iothreads>`: on which parts of the host the guest runs.

use std::collections::BTreeSet;

use crate::keywords;
use crate::xml::{Diagnostics, Element, Span};

use super::id_set::IdSet;

keywords! {
    /// How strictly memory comes from a set of the host's NUMA nodes.
    pub enum NumaMode {
        /// From them or not at all.
        Strict = "strict",
        /// From them if possible.
        Preferred = "preferred",
        /// From each in turn.
        Interleave = "interleave",
        /// From them, as a control group says that QEMU's threads are put into: QEMU knows nothing of it.
        Restrictive = "restrictive",
    }
}

/// `<memory>` or `<memnode>` of `<numatune>`.
#[derive(Debug, Clone)]
pub struct NumaPolicy {
    /// How strictly.
    pub mode: NumaMode,
    /// The host's nodes; `None`: those of the host's that are best, which vmward takes to be all.
    pub nodeset: Option<IdSet>,
    /// Where it stands.
    pub span: Span,
}

/// `<numatune>`.
#[derive(Debug, Clone, Default)]
pub struct NumaTune {
    /// For all memory.
    pub memory: Option<NumaPolicy>,
    /// For the memory of one cell of the guest.
    pub cells: Vec<(u32, NumaPolicy)>,
}

impl NumaTune {
    /// Reads `<numatune>`; `automatic`: the vCPUs are placed automatically, and with them the memory.
    pub fn from_xml(root: &Element, automatic: bool, diagnostics: &mut Diagnostics) -> Self {
        let Some(numatune) = root.only_child("numatune", diagnostics) else { return Self::default() };
        let memory =
            numatune.only_child("memory", diagnostics).and_then(|m| memory(m, automatic, diagnostics));
        let mut cells: Vec<(u32, NumaPolicy)> = Vec::new();
        for element in numatune.children("memnode") {
            if element.require("cellid", diagnostics).is_none()
                || element.require("nodeset", diagnostics).is_none()
            {
                continue;
            }
            let Some(id) = element.number("cellid", diagnostics) else { continue };
            let Some(policy) = policy(element, diagnostics) else { continue };
            if let Some((_, other)) = cells.iter().find(|(c, _)| *c == id) {
                diagnostics
                    .error(policy.span, format!("there are two <memnode> of cell {id}"))
                    .related(other.span, "the other one");
            }
            cells.push((id, policy));
        }
        let all = memory.as_ref().map(|m| m.mode).unwrap_or(NumaMode::Strict);
        let restrictive = |mode| mode == NumaMode::Restrictive;
        if let Some((_, policy)) = cells.iter().find(|(_, p)| restrictive(p.mode) != restrictive(all)) {
            diagnostics.error(policy.span, "either all of the memory has mode='restrictive', or none");
        }
        let automatic = memory.as_ref().is_some_and(|m| m.nodeset.is_none());
        if let Some((_, policy)) = cells.first().filter(|_| automatic) {
            diagnostics.error(policy.span, "memory that is placed automatically is not placed cell by cell");
        }
        Self { memory, cells }
    }

    /// Where the memory of a cell, or of the whole guest, comes from.
    pub fn of_cell(&self, cell: Option<u32>) -> Option<&NumaPolicy> {
        let own = cell.and_then(|id| self.cells.iter().find(|(c, _)| *c == id).map(|(_, p)| p));
        own.or(self.memory.as_ref())
    }
}

/// `<memory>`, the policy of all cells that have none of their own.
fn memory(element: &Element, automatic: bool, diagnostics: &mut Diagnostics) -> Option<NumaPolicy> {
    let placement = element.attribute("placement");
    if let Some(p) = placement.filter(|p| p.value != "static" && p.value != "auto") {
        diagnostics.error(p.span, format!("'{}' is not a placement; it is static or auto", p.value));
    }
    let nodeset = element.attribute("nodeset");
    let automatic = match placement {
        Some(placement) => placement.value == "auto",
        None => nodeset.is_none() && automatic,
    };
    match nodeset {
        None if !automatic => {
            diagnostics.error(element.span, "with placement='static' the nodeset is given");
        }
        Some(nodeset) if automatic => {
            diagnostics.warning(nodeset.span, "with placement='auto' the nodeset changes nothing");
        }
        _ => {}
    }
    let mut policy = policy(element, diagnostics)?;
    if automatic {
        policy.nodeset = None;
        diagnostics
            .warning(
                element.span,
                "no adviser picks the host's NUMA nodes here: the memory comes from all of them",
            )
            .hint("name them: <memory mode='strict' nodeset='0'/>");
    }
    Some(policy)
}

fn policy(element: &Element, diagnostics: &mut Diagnostics) -> Option<NumaPolicy> {
    let nodeset = IdSet::from_attribute(element, "nodeset", diagnostics);
    let mode = match element.attribute("mode") {
        Some(_) => element.keyword("mode", diagnostics)?,
        None => NumaMode::Strict,
    };
    if mode == NumaMode::Restrictive {
        diagnostics
            .outside_qemu(element.span, "vmward puts no thread into a control group (mode='restrictive')")
            .hint("the unit that runs vmward can: AllowedMemoryNodes= of systemd.resource-control(5)");
    }
    Some(NumaPolicy { mode, nodeset, span: element.span })
}

/// One of `<iothreads>` with what `<iothreadids>` says of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IoThread {
    /// Its number; its id in QEMU is `iothreadN`.
    pub id: u32,
    /// `<iothread thread_pool_min=...>`.
    pub pool_min: Option<u32>,
    /// `<iothread thread_pool_max=...>`.
    pub pool_max: Option<u32>,
    /// `<poll max=...>`: nanoseconds of busy polling at most.
    pub poll_max: Option<u64>,
    /// `<poll grow=...>`.
    pub poll_grow: Option<u64>,
    /// `<poll shrink=...>`.
    pub poll_shrink: Option<u64>,
}

/// `<iothreads>`, `<iothreadids>`, `<defaultiothread>`.
#[derive(Debug, Clone, Default)]
pub struct IoThreads {
    /// The threads, in QEMU's order.
    pub threads: Vec<IoThread>,
    /// The pool of the main loop: least and most threads.
    pub main_pool: Option<(Option<u32>, Option<u32>)>,
}

impl IoThreads {
    /// Reads the three elements: numbers that are not given are the lowest that are free.
    pub fn from_xml(root: &Element, diagnostics: &mut Diagnostics) -> Self {
        let mut threads: Vec<IoThread> = Vec::new();
        if let Some(list) = root.only_child("iothreadids", diagnostics) {
            for element in list.children("iothread") {
                let Some(thread) = io_thread(element, diagnostics) else { continue };
                if threads.iter().any(|t| t.id == thread.id) {
                    diagnostics
                        .error(element.span, format!("there are two I/O threads with the id {}", thread.id));
                }
                threads.push(thread);
            }
        }
        if let Some(element) = root.only_child("iothreads", diagnostics) {
            let Ok(count) = element.text().parse::<u16>() else {
                diagnostics.error(
                    element.text_place(),
                    format!("'{}' is not a number of I/O threads", element.text()),
                );
                return Self { threads, main_pool: None };
            };
            let named: BTreeSet<u32> = threads.iter().map(|t| t.id).collect();
            let missing = usize::from(count).saturating_sub(threads.len());
            let free = (1..).filter(|id| !named.contains(id)).take(missing);
            threads.extend(free.map(|id| IoThread { id, ..IoThread::default() }));
        }
        let main_pool = root.only_child("defaultiothread", diagnostics).map(|e| pool(e, diagnostics));
        Self { threads, main_pool }
    }

    /// Whether there is one with that number.
    pub fn contains(&self, id: u32) -> bool {
        self.threads.iter().any(|t| t.id == id)
    }
}

fn pool(element: &Element, diagnostics: &mut Diagnostics) -> (Option<u32>, Option<u32>) {
    let min: Option<u32> = element.number("thread_pool_min", diagnostics);
    let max = element.number("thread_pool_max", diagnostics);
    if min.zip(max).is_some_and(|(min, max)| min > max) {
        diagnostics.error(element.span, "the thread pool's minimum is more than its maximum");
    }
    (min, max)
}

fn io_thread(element: &Element, diagnostics: &mut Diagnostics) -> Option<IoThread> {
    element.require("id", diagnostics)?;
    let id = element.number("id", diagnostics)?;
    if id == 0 {
        diagnostics.error(element.span, "the numbers of I/O threads start at 1");
    }
    let (pool_min, pool_max) = pool(element, diagnostics);
    let poll = element.only_child("poll", diagnostics);
    let mut of_poll = |name: &str| poll.and_then(|p| p.number(name, diagnostics));
    Some(IoThread {
        id,
        pool_min,
        pool_max,
        poll_max: of_poll("max"),
        poll_grow: of_poll("grow"),
        poll_shrink: of_poll("shrink"),
    })
}
