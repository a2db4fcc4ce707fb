//! How much memory a guest has.

use crate::xml::{Diagnostics, Element, Span};

use super::size::{self, KIB};

/// The sizes of a guest's memory.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// `<memory>` in bytes: what the guest can have at most without memory devices. 0 if only NUMA cells say it.
    pub total: u64,
    /// `<currentMemory>` in bytes: what the balloon leaves to the guest.
    pub current: u64,
    /// Where `<memory>` stands.
    pub span: Span,
    /// `<maxMemory>`: room for memory devices.
    pub max: Option<MaxMemory>,
}

/// `<maxMemory>`.
#[derive(Debug, Clone, Copy)]
pub struct MaxMemory {
    /// In bytes.
    pub bytes: u64,
    /// The number of memory devices that fit.
    pub slots: u32,
    /// Where it stands.
    pub span: Span,
}

impl Memory {
    /// Reads `<memory>`, `<currentMemory>` and `<maxMemory>`.
    pub fn from_xml(root: &Element, diagnostics: &mut Diagnostics) -> Self {
        let mut memory = Self { span: root.span, ..Self::default() };
        if let Some(element) = root.only_child("memory", diagnostics) {
            memory.span = element.span;
            // libvirt leaves guest memory out of core dumps unless told so; vmward always does.
            if element.on_off("dumpCore", diagnostics) == Some(true) {
                diagnostics.unsupported(
                    element.span,
                    "vmward never writes a guest's memory to core dumps: it may hold keys",
                );
            }
            // What cannot be read has been said: it is not none at all.
            memory.total = size::of_element(element, KIB, diagnostics).unwrap_or(KIB);
        }
        memory.current = match root.only_child("currentMemory", diagnostics) {
            Some(element) => size::of_element(element, KIB, diagnostics).unwrap_or_default(),
            None => memory.total,
        };
        memory.max = root.only_child("maxMemory", diagnostics).and_then(|element| {
            let slots = element.number("slots", diagnostics).unwrap_or_default();
            let bytes = size::of_element(element, KIB, diagnostics)?;
            Some(MaxMemory { bytes, slots, span: element.span })
        });
        memory
    }
}
