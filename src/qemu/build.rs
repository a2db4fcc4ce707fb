//! From a domain to the command line.

use crate::domain::Domain;
use crate::xml::Diagnostics;

use super::{Capabilities, CommandLine, addresses, devices, machine, storage};

/// Everything that QEMU is told about a domain. What libvirt adds without being asked, aliases and addresses
/// are filled into `domain`. `None` if something cannot be built; `diagnostics` says what.
pub fn build(
    domain: &mut Domain,
    capabilities: &Capabilities,
    diagnostics: &mut Diagnostics,
) -> Option<CommandLine> {
    let mut line = CommandLine { nominal: capabilities.host.is_assumed(), ..CommandLine::default() };
    machine::assign_boot_order(domain);
    addresses::assign(domain, capabilities, diagnostics);
    machine::arguments(domain, capabilities, &mut line, diagnostics);
    devices::controllers(domain, capabilities, &mut line, diagnostics);
    for plan in storage::plan_disks(domain, capabilities, diagnostics) {
        line.disk(plan);
    }
    devices::others(domain, capabilities, &mut line, diagnostics);
    machine::override_properties(domain, &mut line, diagnostics);
    machine::passed_through(domain, &mut line);
    (!diagnostics.has_hard_errors()).then_some(line)
}
