//! The rules between the parts of a domain.

use crate::xml::Diagnostics;

use super::Domain;
use super::clock::TimerName;
use super::cpu::CpuMode;
use super::devices::input::InputBus;
use super::devices::{self, filesystem};
use super::disk;
use super::firmware::FirmwareKind;
use super::general::DomainType;
use super::id_set::IdSet;
use super::numa::Cell;
use super::os::{Chipset, SmbiosMode};
use super::tuning::{NumaMode, NumaPolicy};

/// x86 processors address at most 52 bits of memory; with less there is room to round sizes up.
const MAX_MEMORY: u64 = 1 << 52;

/// What interrupts can address without remapping, which `pc` machines do not have.
const MAX_VCPUS_XAPIC: u32 = 255;

/// Checks a domain that was read, and fills in what follows from its parts.
pub(super) fn domain(domain: &mut Domain, diagnostics: &mut Diagnostics) {
    memory(domain, diagnostics);
    numa(domain, diagnostics);
    memory_devices(domain, diagnostics);
    processors(domain, diagnostics);
    platform(domain, diagnostics);
    firmware(domain, diagnostics);
    boot_order(domain, diagnostics);
    smbios(domain, diagnostics);
    disk::check_in(domain, diagnostics);
    devices::check::in_domain(domain, diagnostics);
    filesystem::check_in(domain, diagnostics);
}

fn memory(domain: &mut Domain, diagnostics: &mut Diagnostics) {
    let cells = domain.cpu.numa.memory();
    let devices = domain.devices.memories.iter().map(|m| m.size).fold(0, u64::saturating_add);
    for cell in domain.cpu.numa.cells.iter().filter(|c| c.memory > MAX_MEMORY) {
        diagnostics.error(cell.span, "no host has so much memory");
    }
    if domain.memory.total > MAX_MEMORY {
        diagnostics.error(domain.memory.span, "no host has so much memory");
    }
    if cells > 0 {
        // The cells say how much memory there is; what <memory> says beside them is not asked.
        domain.memory.total = cells;
    }
    if let Some(first) = domain.cpu.numa.cells.first().filter(|_| cells == 0) {
        diagnostics.error(first.span, "the NUMA cells have no memory");
    }
    if domain.memory.total == 0 {
        diagnostics
            .error(domain.memory.span, "the guest has no memory")
            .hint("write <memory unit='GiB'>2</memory>");
    }
    domain.memory.current = match domain.memory.current {
        0 => domain.memory.total,
        current => current.min(domain.memory.total),
    };
    let Some(max) = domain.memory.max else { return };
    let all = if cells > 0 { cells.saturating_add(devices) } else { domain.memory.total };
    if max.bytes < all {
        diagnostics
            .error(max.span, "<maxMemory> is less than <memory>")
            .related(domain.memory.span, "more than the most");
    }
    if domain.cpu.numa.cells.is_empty() && domain.memory.total > 0 {
        // QEMU adds memory to NUMA cells only: all that there is becomes the first one.
        domain.cpu.numa.cells.push(Cell {
            id: 0,
            cpus: IdSet::first(domain.vcpus.max),
            // <memory> counts the devices.
            memory: domain.memory.total.saturating_sub(devices),
            access: None,
            discard: None,
            distances: Vec::new(),
            caches: Vec::new(),
            span: max.span,
        });
    }
}

fn numa(domain: &mut Domain, diagnostics: &mut Diagnostics) {
    // Processors that no cell names are in the first one: QEMU would put them there with a warning.
    let everywhere = IdSet::first(domain.vcpus.max);
    let numatune = &mut domain.numatune;
    if domain.vcpus.automatic && numatune.memory.is_none() && numatune.cells.is_empty() {
        // Memory follows the processors.
        numatune.memory = Some(NumaPolicy { mode: NumaMode::Strict, nodeset: None, span: domain.vcpus.span });
    }
    let cells = &mut domain.cpu.numa.cells;
    let named = cells.iter().fold(IdSet::default(), |all, cell| all.with(&cell.cpus));
    if let Some(first) = cells.first_mut() {
        first.cpus = first.cpus.with(&everywhere.without(&named));
    }
    let cells = &domain.cpu.numa.cells;
    for cell in cells {
        if let Some(cpu) = cell.cpus.last().filter(|cpu| *cpu >= domain.vcpus.max) {
            diagnostics.error(cell.span, format!("there is no vCPU {cpu} for this NUMA cell")).related(
                domain.vcpus.span,
                format!("they are numbered 0 to {}", domain.vcpus.max.saturating_sub(1)),
            );
        }
    }
    let is_cell = |id: u32| cells.iter().any(|c| c.id == id);
    for (id, policy) in &domain.numatune.cells {
        if !is_cell(*id) {
            diagnostics.error(policy.span, format!("there is no NUMA cell {id}"));
        }
    }
    for page in &domain.backing.hugepages {
        let Some(nodes) = &page.nodeset else { continue };
        // A guest without cells is node 0.
        let missing = nodes.iter().find(|id| !(is_cell(*id) || cells.is_empty() && *id == 0));
        // Then a page size for node 0 is one for the whole guest, and there can be but one.
        if let Some(other) = domain.backing.hugepages.iter().find(|p| cells.is_empty() && p.nodeset.is_none())
        {
            diagnostics
                .error(page.span, "a guest without NUMA cells has pages of one size")
                .related(other.span, "the other size");
        }
        if let Some(id) = missing {
            diagnostics.error(page.span, format!("there is no NUMA cell {id} for these pages"));
        }
    }
    for link in &domain.cpu.numa.interconnects {
        if let Some(id) = [link.initiator, link.target].into_iter().find(|id| !is_cell(*id)) {
            diagnostics.error(link.span, format!("there is no NUMA cell {id}"));
        }
    }
}

/// Memory devices among the rest of the memory.
fn memory_devices(domain: &Domain, diagnostics: &mut Diagnostics) {
    let devices = &domain.devices.memories;
    let Some(first) = devices.first() else { return };
    if domain.memory.max.is_none() {
        diagnostics
            .error(first.info.span, "a guest with memory devices says how much memory it can have")
            .hint("<maxMemory slots='16' unit='GiB'>64</maxMemory>");
    }
    let mut seen: Vec<(u64, u64, crate::xml::Span)> = Vec::new();
    for device in devices {
        let span = device.info.span;
        if let Some(cell) = device.cell.filter(|id| !domain.cpu.numa.cells.iter().any(|c| c.id == *id)) {
            diagnostics.error(span, format!("there is no NUMA cell {cell} for this memory"));
        }
        let Some(start) = device.guest_address() else { continue };
        let end = start.saturating_add(device.guest_size());
        if let Some((.., other)) = seen.iter().find(|(s, e, _)| start < *e && *s < end) {
            diagnostics.error(span, "this memory is where other memory is").related(*other, "the other one");
        }
        seen.push((start, end, span));
    }
}

fn processors(domain: &Domain, diagnostics: &mut Diagnostics) {
    let (cpu, vcpus) = (&domain.cpu, &domain.vcpus);
    if let Some(topology) = cpu.topology.filter(|t| t.vcpus() != u64::from(vcpus.max)) {
        diagnostics
            .error(
                topology.span,
                format!("the topology has {} vCPUs, the guest {}", topology.vcpus(), vcpus.max),
            )
            .related(vcpus.span, "as it says here");
    }
    if domain.os.chipset == Chipset::I440fx && vcpus.max > MAX_VCPUS_XAPIC {
        diagnostics
            .error(vcpus.span, format!("a 'pc' machine has at most {MAX_VCPUS_XAPIC} vCPUs"))
            .hint("q35 machines can have more");
    }
    for (vcpu, _) in domain.pinning.vcpus.iter().filter(|(v, _)| *v >= vcpus.max) {
        diagnostics.warning(domain.pinning.span, format!("there is no vCPU {vcpu} to be pinned"));
    }
    if domain.os.chipset == Chipset::Q35
        && vcpus.max > MAX_VCPUS_XAPIC
        && domain.devices.iommu.as_ref().and_then(|i| i.eim) != Some(true)
    {
        diagnostics
            .error(
                vcpus.span,
                format!("more than {MAX_VCPUS_XAPIC} vCPUs need interrupts with longer addresses"),
            )
            .hint(
                "<ioapic driver='qemu'/> and <iommu model='intel'><driver intremap='on' eim='on'/></iommu>",
            );
    }
    let pinning = &domain.pinning;
    if let Some(vcpu) = pinning.scheduled_vcpus.last().filter(|v| *v >= vcpus.max) {
        diagnostics.error(pinning.span, format!("there is no vCPU {vcpu} to have a scheduler"));
    }
    let pinned = pinning.iothreads.iter().map(|(id, _)| *id);
    if let Some(id) =
        pinned.chain(pinning.scheduled_iothreads.iter()).find(|id| !domain.iothreads.contains(*id))
    {
        diagnostics.error(pinning.span, format!("there is no I/O thread {id} as <cputune> names it"));
    }
    let tcg = domain.general.kind == Some(DomainType::Qemu);
    if tcg && cpu.mode == Some(CpuMode::HostPassthrough) {
        diagnostics
            .error(cpu.span, "the host's processor can only be passed through with KVM")
            .hint("use <domain type='kvm'>, or <cpu mode='maximum'/>");
    }
    if cpu.migratable.is_some() && !matches!(cpu.mode, Some(CpuMode::HostPassthrough | CpuMode::Maximum)) {
        diagnostics.error(cpu.span, "'migratable' belongs to the modes host-passthrough and maximum");
    }
    if let Some(security) = domain.launch_security.as_ref().filter(|_| tcg) {
        diagnostics.error(security.span, "memory is encrypted with KVM only: <domain type='kvm'>");
    }
    if let Some((_, span)) = domain.features.tb_cache.filter(|_| !tcg) {
        diagnostics.error(span, "<tb-cache> belongs to <domain type='qemu'>");
    }
}

fn platform(domain: &Domain, diagnostics: &mut Diagnostics) {
    let q35 = domain.os.chipset == Chipset::Q35;
    let features = &domain.features;
    if let Some((_, span)) = features.tseg.filter(|_| !q35) {
        diagnostics
            .error(span, "<tseg> belongs to q35 machines")
            .related(domain.os.machine_span, "this is none");
    } else if let Some((_, span)) = features.tseg.filter(|_| features.smm != Some(true)) {
        diagnostics.error(span, "<tseg> needs system management mode: <smm state='on'>");
    }
    if let Some((false, span)) = features.ps2 {
        if features.vmport == Some(true) {
            diagnostics.error(span, "without a PS/2 controller there is no vmport");
        }
        for input in domain.devices.inputs.iter().filter(|i| i.bus == InputBus::Ps2) {
            diagnostics
                .error(input.info.span, "this needs the PS/2 controller")
                .related(span, "switched off here");
        }
    }
    // The first console is a serial port by another name, or brings one along.
    if domain.os.bios_serial && domain.devices.serials.is_empty() && domain.devices.consoles.is_empty() {
        diagnostics.error(domain.os.span, "for <bios useserial='yes'/> the guest needs a <serial> port");
    }
    if domain.general.kind == Some(DomainType::Qemu)
        && let Some(timer) = domain.clock.timer(TimerName::Tsc).filter(|t| t.frequency.is_some())
    {
        diagnostics.error(timer.span, "the frequency of the time stamp counter is set with KVM only");
    }
}

fn firmware(domain: &Domain, diagnostics: &mut Diagnostics) {
    let firmware = &domain.os.firmware;
    let q35 = domain.os.chipset == Chipset::Q35;
    let Some(loader) = &firmware.loader else {
        if let Some((FirmwareKind::Efi, span)) = firmware.kind
            && !domain.features.acpi
        {
            diagnostics.error(span, "UEFI needs ACPI: <features><acpi/></features>");
        }
        return;
    };
    let efi = match firmware.kind {
        Some((kind, _)) => kind == FirmwareKind::Efi,
        None => loader.kind == Some(super::firmware::LoaderType::Pflash),
    };
    if efi && !domain.features.acpi {
        diagnostics.error(loader.span, "UEFI needs ACPI: <features><acpi/></features>");
    }
    if loader.secure == Some(true) {
        if !q35 {
            diagnostics
                .error(loader.span, "secure boot needs a q35 machine")
                .related(domain.os.machine_span, "this is none");
        }
        if domain.features.smm == Some(false) {
            diagnostics.error(loader.span, "secure boot needs system management mode: <smm state='on'/>");
        }
    }
}

/// The ways to say what is booted exclude each other.
fn boot_order(domain: &Domain, diagnostics: &mut Diagnostics) {
    let Some((_, os)) = domain.os.boot.first() else { return };
    if let Some(info) = domain.devices.bootable().find(|i| i.boot_order.is_some()) {
        diagnostics
            .error(info.span, "the boot order is given by device and by <os> at once")
            .related(*os, "given here")
            .hint("leave out one of the two");
    }
}

fn smbios(domain: &Domain, diagnostics: &mut Diagnostics) {
    if let Some((uuid, span)) = domain.sysinfo.uuid.filter(|(uuid, _)| *uuid != domain.general.uuid) {
        diagnostics.error(span, format!("the UUID of the system table, {uuid}, is not that of the guest"));
    }
    let Some((mode, span)) = domain.os.smbios else { return };
    match mode {
        SmbiosMode::Sysinfo if !domain.sysinfo.smbios => {
            diagnostics.error(span, "there is no <sysinfo type='smbios'> to show to the guest");
        }
        SmbiosMode::Host => {
            diagnostics.unsupported(span, "vmward does not show the host's SMBIOS tables to guests");
        }
        _ => {}
    }
}
