//! Slots and names of memory devices.

use crate::domain::devices::memory_device::MemoryModel;
use crate::domain::{Address, DimmAddress, Domain};
use crate::xml::Diagnostics;

/// Gives modules their slots, and all memory devices their aliases: a module's has the number of its slot.
pub(super) fn assign(domain: &mut Domain, diagnostics: &mut Diagnostics) {
    let slots = domain.memory.max.map_or(0, |m| m.slots);
    let mut taken: Vec<(u32, crate::xml::Span)> = Vec::new();
    for device in domain.devices.memories.iter().filter(|d| d.is_module()) {
        let Some(Address::Dimm(DimmAddress { slot: Some(slot), .. })) = device.info.address else { continue };
        let at = device.info.address_span.unwrap_or(device.info.span);
        if let Some((_, other)) = taken.iter().find(|(s, _)| *s == slot) {
            diagnostics.error(at, format!("two modules are in slot {slot}")).related(*other, "the other one");
        }
        if slot >= slots {
            diagnostics.error(at, format!("there is no slot {slot}: <maxMemory> has {slots}"));
        }
        taken.push((slot, at));
    }
    let mut numbers = [0; 2];
    for device in &mut domain.devices.memories {
        let number = if device.is_module() {
            let base = device.guest_address();
            let given = match device.info.address {
                Some(Address::Dimm(DimmAddress { slot, .. })) => slot,
                _ => None,
            };
            let free = || (0..slots).find(|s| taken.iter().all(|(t, _)| t != s));
            let Some(slot) = given.or_else(free) else {
                diagnostics
                    .error(
                        device.info.span,
                        format!("there is no slot for this module: <maxMemory> has {slots}"),
                    )
                    .hint("raise slots='...' of <maxMemory>");
                continue;
            };
            if given.is_none() {
                taken.push((slot, device.info.span));
            }
            device.info.address = Some(Address::Dimm(DimmAddress { slot: Some(slot), base }));
            slot
        } else {
            let counter = &mut numbers[usize::from(device.model == MemoryModel::VirtioPmem)];
            *counter += 1;
            *counter - 1
        };
        let stem = match device.model {
            MemoryModel::Dimm => "dimm",
            MemoryModel::Nvdimm => "nvdimm",
            MemoryModel::VirtioMem => "virtiomem",
            MemoryModel::VirtioPmem => "virtiopmem",
        };
        device.info.alias.get_or_insert_with(|| format!("{stem}{number}"));
    }
}
