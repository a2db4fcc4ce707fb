//! `-cpu`, `-smp`.

use crate::domain::Domain;
use crate::domain::clock::TimerName;
use crate::domain::cpu::{AddressBitsMode, CacheMode, Cpu, CpuMode, FeaturePolicy};
use crate::domain::cpu_model;
use crate::domain::devices::panic::PanicModel;
use crate::domain::general::DomainType;
use crate::qemu::plan::comma_escaped;
use crate::qemu::{Capabilities, CommandLine};
use crate::xml::Diagnostics;

use super::platform::on_off;

/// QEMU's defaults.
const DEFAULT_MODEL: &str = "qemu64";
const DEFAULT_MODEL_32: &str = "qemu32";
/// The QEMU of 32-bit guests.
const EMULATOR_32: &str = "qemu-system-i386";

/// A CPU model with its properties.
struct Model(String);

impl Model {
    fn set(&mut self, name: &str, value: impl AsRef<str>) {
        self.0.push_str(&format!(",{name}={}", comma_escaped(value.as_ref())));
    }

    fn switch(&mut self, name: &str, value: Option<bool>) {
        if let Some(value) = value {
            self.set(name, on_off(value));
        }
    }
}

/// The processors.
pub(super) fn arguments(
    domain: &Domain,
    capabilities: &Capabilities,
    line: &mut CommandLine,
    diagnostics: &mut Diagnostics,
) {
    let cpu = &domain.cpu;
    if let (Some((name, span)), Some(CpuMode::Custom) | None) = (&cpu.model, cpu.mode)
        && !capabilities.has_processor(name)
    {
        diagnostics
            .error(*span, format!("this QEMU does not know the CPU model '{name}'"))
            .hint("`qemu-system-x86_64 -cpu help` lists those it knows");
    }
    let mut model = Model(base(domain));
    if let Some(vendor) = &cpu.vendor_id {
        model.set("vendor", vendor);
    }
    features(cpu, &mut model);
    timers(domain, &mut model);
    model.switch("kvm-pv-eoi", domain.features.apic_eoi);
    model.switch("kvm-pv-unhalt", domain.features.pvspinlock);
    hyperv(domain, &mut model);
    kvm(domain, &mut model);
    model.switch("pmu", domain.features.pmu);
    details(cpu, &mut model);
    line.text("-cpu", model.0);
}

fn base(domain: &Domain) -> String {
    let cpu = &domain.cpu;
    let kvm = domain.general.kind == Some(DomainType::Kvm);
    let migratable = format!(",migratable={}", on_off(cpu.migratable.unwrap_or(true)));
    match cpu.mode {
        Some(CpuMode::HostPassthrough) => format!("host{migratable}"),
        Some(CpuMode::Maximum) => format!("max{migratable}"),
        // The guest sees what the host and QEMU have: no description of all processors is kept here to find
        // the nearest named model with.
        Some(CpuMode::HostModel) if kvm => format!("host{migratable}"),
        Some(CpuMode::HostModel) => "max".to_owned(),
        Some(CpuMode::Custom) | None => match &cpu.model {
            Some((name, _)) => name.clone(),
            None if domain.devices.emulator.as_deref().is_some_and(|e| e.ends_with(EMULATOR_32)) => {
                DEFAULT_MODEL_32.to_owned()
            }
            None => DEFAULT_MODEL.to_owned(),
        },
    }
}

/// Features that are asked for, and those that the model has by its name only.
fn features(cpu: &Cpu, model: &mut Model) {
    for (name, policy) in &cpu.features {
        // One that the host lacks is off in the guest, with a warning of QEMU's: all that "optional" asks for.
        let on = matches!(policy, FeaturePolicy::Force | FeaturePolicy::Require | FeaturePolicy::Optional);
        if let Some(name) = cpu_model::feature(name, on) {
            model.switch(&name, Some(on));
        }
    }
    if let (Some((name, _)), Some(CpuMode::Custom) | None) = (&cpu.model, cpu.mode) {
        let left = cpu_model::taken_back(name).iter();
        for name in left.filter(|name| !cpu.features.iter().any(|(other, _)| other == **name)) {
            model.switch(name, Some(false));
        }
    }
}

fn timers(domain: &Domain, model: &mut Model) {
    let present = |name| domain.clock.timer(name).and_then(|t| t.present);
    model.switch("kvmclock", present(TimerName::Kvmclock));
    model.switch("hv-time", present(TimerName::Hypervclock).filter(|p| *p));
    if let Some(frequency) = domain.clock.timer(TimerName::Tsc).and_then(|t| t.frequency) {
        model.set("tsc-frequency", frequency.to_string());
    }
}

fn hyperv(domain: &Domain, model: &mut Model) {
    let hyperv = &domain.features.hyperv;
    model.switch("hv-passthrough", hyperv.passthrough.then_some(true));
    for property in &hyperv.switches {
        model.switch(property, Some(true));
    }
    if let Some(retries) = hyperv.spinlocks {
        model.set("hv-spinlocks", format!("{retries:#x}"));
    }
    if let Some(vendor) = &hyperv.vendor_id {
        model.set("hv-vendor-id", vendor);
    }
    if domain.devices.panics.iter().any(|p| p.model == PanicModel::Hyperv) {
        model.0.push_str(",hv-crash");
    }
}

fn kvm(domain: &Domain, model: &mut Model) {
    let kvm = &domain.features.kvm;
    model.switch("kvm", kvm.hidden.then_some(false));
    model.switch("kvm-hint-dedicated", kvm.hint_dedicated.then_some(true));
    model.switch("kvm-poll-control", kvm.poll_control.then_some(true));
    // On is KVM's default.
    model.switch("kvm-pv-ipi", kvm.pv_ipi.filter(|on| !on));
}

fn details(cpu: &Cpu, model: &mut Model) {
    if let Some(cache) = cpu.cache {
        let (l3, host) = match cache {
            CacheMode::Emulate => (true, false),
            CacheMode::Passthrough => (false, true),
            CacheMode::Disable => (false, false),
        };
        model.switch("l3-cache", Some(l3));
        // Named models never show the host's caches.
        let of_host = matches!(cpu.mode, Some(CpuMode::HostPassthrough | CpuMode::Maximum));
        model.switch("host-cache-info", of_host.then_some(host));
    }
    if let Some(bits) = cpu.address_bits {
        match bits.mode {
            AddressBitsMode::Emulate => match bits.bits {
                Some(bits) => model.set("phys-bits", bits.to_string()),
                None => model.switch("host-phys-bits", Some(false)),
            },
            AddressBitsMode::Passthrough => {
                model.switch("host-phys-bits", Some(true));
                if let Some(limit) = bits.limit {
                    model.set("host-phys-bits-limit", limit.to_string());
                }
            }
        }
    }
}

/// How many processors there are, and how they are arranged.
pub(super) fn smp(domain: &Domain) -> String {
    let vcpus = &domain.vcpus;
    let mut smp = vcpus.built_in().to_string();
    if vcpus.built_in() != vcpus.max {
        smp.push_str(&format!(",maxcpus={}", vcpus.max));
    }
    match domain.cpu.topology {
        Some(t) => smp.push_str(&format!(
            ",sockets={},dies={},clusters={},cores={},threads={}",
            t.sockets, t.dies, t.clusters, t.cores, t.threads
        )),
        None => smp.push_str(&format!(",sockets={},cores=1,threads=1", vcpus.max)),
    }
    smp
}
