//! `<memoryBacking>`: what the guest's memory is made of.

use crate::keywords;
use crate::xml::{Diagnostics, Element, Span};

use super::id_set::IdSet;
use super::size::{self, KIB};

keywords! {
    /// Whether other processes can map the memory.
    pub enum MemoryAccess {
        /// They can.
        Shared = "shared",
        /// They cannot.
        Private = "private",
    }
}

keywords! {
    /// Where the memory comes from.
    pub enum MemorySource {
        /// Files in a directory.
        File = "file",
        /// Anonymous memory.
        Anonymous = "anonymous",
        /// Files without a name.
        Memfd = "memfd",
    }
}

keywords! {
    /// When the host provides the memory.
    pub enum MemoryAllocation {
        /// At the start.
        Immediate = "immediate",
        /// When the guest touches it.
        Ondemand = "ondemand",
    }
}

/// `<page>` of `<hugepages>`.
#[derive(Debug, Clone)]
pub struct HugePage {
    /// In bytes; `None`: the host's default.
    pub size: Option<u64>,
    /// The guest's NUMA nodes that it serves; `None`: all that no other page serves.
    pub nodeset: Option<IdSet>,
    /// Where it stands.
    pub span: Span,
}

/// `<memoryBacking>`.
#[derive(Debug, Clone, Default)]
pub struct MemoryBacking {
    /// `<hugepages>`; empty: ordinary pages.
    pub hugepages: Vec<HugePage>,
    /// `<nosharepages/>`: the host's page merging leaves this memory alone.
    pub no_merge: bool,
    /// `<locked/>`: nothing is swapped out.
    pub locked: bool,
    /// `<source>`.
    pub source: Option<MemorySource>,
    /// `<access>`.
    pub access: Option<MemoryAccess>,
    /// `<allocation mode=...>`.
    pub allocation: Option<MemoryAllocation>,
    /// `<allocation threads=...>`.
    pub allocation_threads: Option<u32>,
    /// `<discard/>`: what the memory held is of no use after the guest's end.
    pub discard: bool,
}

impl MemoryBacking {
    /// Reads `<memoryBacking>`.
    pub fn from_xml(root: &Element, diagnostics: &mut Diagnostics) -> Self {
        let Some(backing) = root.only_child("memoryBacking", diagnostics) else { return Self::default() };
        let allocation = backing.only_child("allocation", diagnostics);
        let mut this = Self {
            hugepages: backing
                .only_child("hugepages", diagnostics)
                .map(|h| pages(h, diagnostics))
                .unwrap_or_default(),
            no_merge: backing.only_child("nosharepages", diagnostics).is_some(),
            locked: backing.only_child("locked", diagnostics).is_some(),
            source: backing
                .only_child("source", diagnostics)
                .and_then(|e| e.require_keyword("type", diagnostics)),
            access: backing
                .only_child("access", diagnostics)
                .and_then(|e| e.require_keyword("mode", diagnostics)),
            allocation: allocation.and_then(|e| e.keyword("mode", diagnostics)),
            allocation_threads: allocation.and_then(|e| e.number("threads", diagnostics)),
            discard: backing.only_child("discard", diagnostics).is_some(),
        };
        this.check(backing, diagnostics);
        this
    }

    fn check(&mut self, backing: &Element, diagnostics: &mut Diagnostics) {
        let Some(page) = self.hugepages.first().map(|p| p.span) else { return };
        if self.allocation == Some(MemoryAllocation::Ondemand) {
            diagnostics
                .error(backing.span, "huge pages are allocated at the start, not on demand")
                .related(page, "asked for here");
        }
        if self.source == Some(MemorySource::Anonymous) {
            diagnostics
                .error(backing.span, "anonymous memory has no huge pages")
                .related(page, "asked for here");
        }
        let mut seen: Vec<&HugePage> = Vec::new();
        for page in &self.hugepages {
            let clash = seen.iter().find(|other| match (&page.nodeset, &other.nodeset) {
                (Some(a), Some(b)) => a.common(b).is_some(),
                (None, None) => true,
                _ => false,
            });
            if let Some(other) = clash {
                diagnostics
                    .error(page.span, "two page sizes serve the same NUMA node")
                    .related(other.span, "the other one");
            }
            seen.push(page);
        }
    }

    /// The huge page that serves a guest's NUMA node, or the whole guest.
    pub fn page_of(&self, node: Option<u32>) -> Option<&HugePage> {
        let own = self
            .hugepages
            .iter()
            .find(|p| matches!((&p.nodeset, node), (Some(set), Some(n)) if set.contains(n)));
        own.or_else(|| self.hugepages.iter().find(|p| p.nodeset.is_none()))
    }
}

fn pages(hugepages: &Element, diagnostics: &mut Diagnostics) -> Vec<HugePage> {
    let mut pages: Vec<_> = hugepages
        .children("page")
        .map(|page| {
            if page.attribute("size").is_none() {
                diagnostics.error(page.span, "<page> lacks the attribute 'size'");
            }
            HugePage {
                size: size::of_attribute(page, "size", "unit", KIB, diagnostics),
                nodeset: IdSet::from_attribute(page, "nodeset", diagnostics),
                span: page.span,
            }
        })
        .collect();
    if pages.is_empty() {
        pages.push(HugePage { size: None, nodeset: None, span: hugepages.span });
    }
    pages
}
