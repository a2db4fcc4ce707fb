//! `<watchdog>`.

use crate::domain::DeviceInfo;
use crate::xml::{Diagnostics, Element, keywords};

keywords! {
    /// Watchdogs.
    pub enum WatchdogModel {
        /// Intel 6300ESB, on PCI.
        I6300esb = "i6300esb",
        /// iBASE 700, on ISA.
        Ib700 = "ib700",
        /// Part of the Q35 chipset.
        Itco = "itco",
    }
}

keywords! {
    /// What happens when a guest does not answer its watchdog.
    pub enum WatchdogAction {
        /// It is reset.
        Reset = "reset",
        /// It is asked to shut down.
        Shutdown = "shutdown",
        /// It is ended.
        Poweroff = "poweroff",
        /// It is paused.
        Pause = "pause",
        /// Nothing.
        None = "none",
        /// It is paused and its memory is written to a file.
        Dump = "dump",
        /// It gets a non-maskable interrupt.
        InjectNmi = "inject-nmi",
    }
}

/// A `<watchdog>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watchdog {
    /// Where it is and what it is called.
    pub info: DeviceInfo,
    /// Which one.
    pub model: WatchdogModel,
    /// What happens.
    pub action: WatchdogAction,
}

impl Watchdog {
    /// Reads a `<watchdog>`.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let info = DeviceInfo::from_xml(element, diagnostics);
        let model = element.require_keyword("model", diagnostics);
        let action = element.keyword("action", diagnostics).unwrap_or(WatchdogAction::Reset);
        Some(Self { info, model: model?, action })
    }
}
