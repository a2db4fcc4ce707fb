//! `<clock>`: what time the guest is told.

use crate::keywords;
use crate::xml::{Diagnostics, Element};

keywords! {
    /// What the guest's clock is set to.
    pub enum ClockOffset {
        /// UTC.
        Utc = "utc",
        /// The host's local time.
        Localtime = "localtime",
        /// A time zone.
        Timezone = "timezone",
        /// An offset of seconds.
        Variable = "variable",
        /// A time since 1970.
        Absolute = "absolute",
    }
}

/// `<clock>`.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    /// `offset=`.
    pub offset: Option<ClockOffset>,
}

impl Clock {
    /// Reads `<clock>`.
    pub fn from_xml(root: &Element, diagnostics: &mut Diagnostics) -> Self {
        let Some(clock) = root.only_child("clock", diagnostics) else { return Self::default() };
        Self { offset: clock.keyword("offset", diagnostics) }
    }
}
