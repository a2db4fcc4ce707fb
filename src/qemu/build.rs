//! From a domain to the command line.

use crate::domain::Domain;
use crate::xml::Diagnostics;

use super::{Capabilities, CommandLine, machine, storage};

/// Everything that QEMU is told about a domain. What libvirt adds without being asked, aliases and addresses
/// are filled into `domain`. `None` if something cannot be built; `diagnostics` says what.
pub fn build(
    domain: &mut Domain,
    capabilities: &Capabilities,
    diagnostics: &mut Diagnostics,
) -> Option<CommandLine> {
    let mut line = CommandLine::default();
    machine::assign_boot_order(domain);
    machine::arguments(domain, capabilities, &mut line, diagnostics);
    line.text("-display", "none");
    for plan in storage::plan_disks(domain, capabilities, diagnostics) {
        line.disk(plan);
    }
    machine::passed_through(domain, &mut line);
    (!diagnostics.has_hard_errors()).then_some(line)
}
