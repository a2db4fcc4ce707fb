//! The machine: everything of a domain that is no device.

mod platform;
mod processors;

use crate::domain::Domain;
use crate::xml::Diagnostics;

use super::{Capabilities, CommandLine};

/// Adds the options of the machine.
pub(super) fn arguments(
    domain: &Domain,
    capabilities: &Capabilities,
    line: &mut CommandLine,
    diagnostics: &mut Diagnostics,
) {
    platform::machine(domain, capabilities, line, diagnostics);
    processors::arguments(domain, line);
    platform::memory(domain, line);
    line.text("-uuid", domain.general.uuid.to_string());
    line.text("-display", "none");
    line.text("-rtc", "base=utc");
    platform::boot(domain, line);
}
