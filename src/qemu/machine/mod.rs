//! The machine: everything of a domain that is no device.

mod boot;
mod clock;
mod descriptors;
mod firmware;
mod launch_security;
pub(super) mod memory;
mod numa;
mod platform;
mod processors;
mod smbios;

use serde_json::json;

use crate::domain::Domain;
use crate::domain::overrides::PropertyValue;
use crate::xml::Diagnostics;

use super::plan::object;
use super::properties::Properties;
use super::{Argument, Capabilities, CommandLine};

pub(super) use boot::assign_boot_order;
pub use firmware::FIRMWARE_VARIABLES;

/// Adds the options of the machine.
pub(super) fn arguments(
    domain: &Domain,
    capabilities: &Capabilities,
    line: &mut CommandLine,
    diagnostics: &mut Diagnostics,
) {
    let firmware = firmware::choose(domain, &capabilities.host, diagnostics);
    firmware::nodes(firmware.as_ref(), &capabilities.host.tls, line, diagnostics);
    platform::machine(domain, firmware.as_ref(), capabilities, line, diagnostics);
    processors::arguments(domain, capabilities, line, diagnostics);
    firmware::rom(firmware.as_ref(), line);
    memory::arguments(domain, capabilities, line, diagnostics);
    line.text("-smp", processors::smp(domain));
    io_threads(domain, line);
    numa::arguments(domain, capabilities, line, diagnostics);
    line.text("-uuid", domain.general.uuid.to_string());
    smbios::arguments(domain, line);
    clock::arguments(domain, capabilities, line);
    platform::extras(domain, capabilities, line);
    launch_security::arguments(domain, capabilities, line, diagnostics);
    boot::arguments(domain, line);
}

/// Changes the properties of devices that the XML overrides.
pub(super) fn override_properties(domain: &Domain, line: &mut CommandLine, diagnostics: &mut Diagnostics) {
    for wanted in &domain.overrides {
        let device = line.arguments.iter_mut().find_map(|argument| match argument {
            Argument::Json("-device", device) if device.get("id") == Some(&json!(wanted.alias)) => {
                Some(device)
            }
            _ => None,
        });
        let Some(device) = device else {
            diagnostics.error(wanted.span, format!("there is no device with the alias '{}'", wanted.alias));
            continue;
        };
        for (name, value) in &wanted.properties {
            match value {
                PropertyValue::Removed => {
                    device.remove(name);
                }
                PropertyValue::Text(text) => device.put(name, text.as_str()),
                PropertyValue::Switch(on) => device.put(name, *on),
                PropertyValue::Number(number) => match u64::try_from(*number) {
                    Ok(number) => device.put(name, number),
                    Err(_) => device.put(name, i64::try_from(*number).unwrap_or_default()),
                },
            }
        }
    }
}

/// Adds what goes to QEMU as it is: at the end, so that it has the last word.
pub(super) fn passed_through(domain: &Domain, line: &mut CommandLine) {
    line.arguments.extend(domain.passed_through.arguments.iter().cloned().map(Argument::Raw));
    line.environment.extend(domain.passed_through.environment.iter().cloned());
}

fn io_threads(domain: &Domain, line: &mut CommandLine) {
    for thread in &domain.iothreads.threads {
        let mut properties = object(json!({"qom-type": "iothread", "id": format!("iothread{}", thread.id)}));
        properties.put_some("thread-pool-min", thread.pool_min);
        properties.put_some("thread-pool-max", thread.pool_max);
        properties.put_some("poll-max-ns", thread.poll_max);
        properties.put_some("poll-grow", thread.poll_grow);
        properties.put_some("poll-shrink", thread.poll_shrink);
        line.json("-object", properties);
    }
    if let Some((min, max)) = domain.iothreads.main_pool {
        let mut properties = object(json!({"qom-type": "main-loop", "id": "main-loop"}));
        properties.put_some("thread-pool-min", min);
        properties.put_some("thread-pool-max", max);
        line.json("-object", properties);
    }
}

#[cfg(test)]
mod tests;
