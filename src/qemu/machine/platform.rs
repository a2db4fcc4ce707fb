//! `-machine`, `-accel`, and small things of the platform.

use serde_json::json;

use crate::domain::Domain;
use crate::domain::clock::TimerName;
use crate::domain::devices::controller::{Controller, PciModel};
use crate::domain::devices::memory_device::MemoryModel;
use crate::domain::devices::sound::SoundModel;
use crate::domain::features::IoApicDriver;
use crate::domain::general::{DomainType, GenerationId};
use crate::domain::os::Chipset;
use crate::domain::size::MIB;
use crate::qemu::plan::{comma_escaped, object};
use crate::qemu::{Capabilities, CommandLine};
use crate::xml::Diagnostics;

use super::firmware::Chosen;
use super::{launch_security, memory};

pub(super) fn on_off(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}

/// The version in the name of a machine type; an alias, which is the latest, has none.
pub(super) fn machine_version(machine: &str) -> Option<(u32, u32)> {
    let (major, minor) = machine.rsplit('-').next()?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The machine type with its properties, and what executes it.
pub(super) fn machine(
    domain: &Domain,
    firmware: Option<&Chosen>,
    capabilities: &Capabilities,
    line: &mut CommandLine,
    diagnostics: &mut Diagnostics,
) {
    let (os, features) = (&domain.os, &domain.features);
    if !capabilities.has_machine(&os.machine) {
        diagnostics
            .error(os.machine_span, format!("this QEMU does not know the machine type '{}'", os.machine))
            .hint("`qemu-system-x86_64 -machine help` lists those it knows");
    }
    let mut machine = format!("{},usb=off", comma_escaped(&os.machine));
    let mut set = |name: &str, value: &str| machine.push_str(&format!(",{name}={value}"));
    let secure = firmware.is_some_and(|f| f.needs_smm());
    for (name, value) in [("vmport", features.vmport), ("smm", features.smm.or(secure.then_some(true)))] {
        if let Some(value) = value {
            set(name, on_off(value));
        }
    }
    if os.bios_serial {
        // SeaBIOS speaks on the first serial port of a machine without graphics.
        set("graphics", "off");
    }
    match features.ioapic {
        Some(IoApicDriver::Kvm) => set("kernel_irqchip", "on"),
        Some(IoApicDriver::Qemu) => set("kernel_irqchip", "split"),
        None => {}
    }
    if let Some((on, _)) = features.ps2 {
        set("i8042", on_off(on));
    }
    // What the guest has in memory, keys among it, stays out of QEMU's core dumps.
    set("dump-guest-core", "off");
    if domain.backing.no_merge {
        set("mem-merge", "off");
    }
    if domain.devices.memories.iter().any(|m| m.model == MemoryModel::Nvdimm) {
        set("nvdimm", "on");
    }
    if domain.cpu.numa.has_hmat() {
        set("hmat", "on");
    }
    if domain.launch_security.is_some() {
        set("confidential-guest-support", launch_security::ID);
    }
    if let Some(id) = memory::machine_property(domain) {
        set("memory-backend", id);
    }
    for (name, node) in firmware.into_iter().flat_map(Chosen::machine_properties) {
        set(name, &node);
    }
    if let Some(audio) = speaker(domain) {
        set("pcspk-audiodev", &audio);
    }
    if let Some(present) = domain.clock.timer(TimerName::Hpet).and_then(|t| t.present) {
        set("hpet", on_off(present));
    }
    set("acpi", on_off(features.acpi));
    line.text("-machine", machine);
    line.text("-accel", accelerator(domain));
}

/// The audio backend that plays what the PC speaker does: part of every machine, but silent without.
fn speaker(domain: &Domain) -> Option<String> {
    let devices = &domain.devices;
    let speaker = devices.sounds.iter().find(|s| s.model == SoundModel::Pcspk)?;
    let audio = speaker.audio.or(devices.audios.first().map(|a| a.id)).unwrap_or(1);
    Some(format!("audio{audio}"))
}

fn accelerator(domain: &Domain) -> String {
    let features = &domain.features;
    if domain.general.kind == Some(DomainType::Kvm) {
        let ring = features.kvm.dirty_ring.map(|size| format!(",dirty-ring-size={size}"));
        return format!("kvm{}", ring.unwrap_or_default());
    }
    let cache = features.tb_cache.map(|(bytes, _)| format!(",tb-size={}", bytes / MIB));
    format!("tcg{}", cache.unwrap_or_default())
}

/// Properties of the chipset, and devices without a bus.
pub(super) fn extras(domain: &Domain, capabilities: &Capabilities, line: &mut CommandLine) {
    let power = match domain.os.chipset {
        Chipset::I440fx => "PIIX4_PM",
        Chipset::Q35 => "ICH9-LPC",
    };
    for (state, enabled) in [("s3", domain.power.suspend_to_mem), ("s4", domain.power.suspend_to_disk)] {
        if let Some(enabled) = enabled {
            line.text("-global", format!("{power}.disable_{state}={}", u8::from(!enabled)));
        }
    }
    let roots = domain.devices.controllers.iter().filter_map(Controller::pci);
    if let Some(hotplug) = roots.filter(|r| r.model == PciModel::PciRoot).find_map(|r| r.hotplug) {
        line.text("-global", format!("{power}.acpi-root-pci-hotplug={}", on_off(hotplug)));
    }
    if let Some((bytes, _)) = domain.features.tseg {
        line.text("-global", format!("mch.extended-tseg-mbytes={}", bytes / MIB));
    }
    if domain.features.vmcoreinfo {
        line.json("-device", object(json!({"driver": "vmcoreinfo"})));
    }
    if let Some(genid) = domain.genid {
        let genid = match genid {
            GenerationId::Given(id) => id,
            GenerationId::New => capabilities.host.new_uuid(),
        };
        line.json(
            "-device",
            object(json!({"driver": "vmgenid", "guid": genid.to_string(), "id": "vmgenid0"})),
        );
    }
    if let Some(on) = domain.features.async_teardown {
        line.text("-run-with", format!("async-teardown={}", on_off(on)));
    }
}
