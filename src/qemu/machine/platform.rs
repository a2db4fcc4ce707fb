//! `-machine`, `-accel`, `-m`, `-boot`, `-kernel`.

use serde_json::json;

use crate::domain::Domain;
use crate::domain::general::DomainType;
use crate::domain::size::{KIB, MIB};
use crate::qemu::plan::{comma_escaped, object};
use crate::qemu::{Capabilities, CommandLine};
use crate::xml::Diagnostics;

fn on_off(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}

/// The machine type with its properties.
pub(super) fn machine(
    domain: &Domain,
    capabilities: &Capabilities,
    line: &mut CommandLine,
    diagnostics: &mut Diagnostics,
) {
    let os = &domain.os;
    if !capabilities.has_machine(&os.machine) {
        diagnostics
            .error(os.machine_span, format!("this QEMU does not know the machine type '{}'", os.machine))
            .hint("`qemu-system-x86_64 -machine help` lists those it knows");
    }
    let mut machine = format!("{},usb=off", comma_escaped(&os.machine));
    let mut property = |name: &str, value: Option<bool>| {
        if let Some(value) = value {
            machine.push_str(&format!(",{name}={}", on_off(value)));
        }
    };
    property("vmport", domain.features.vmport);
    property("smm", domain.features.smm);
    // What the guest has in memory, keys among it, stays out of QEMU's core dumps.
    property("dump-guest-core", Some(false));
    machine.push_str(",memory-backend=pc.ram");
    let mut property = |name: &str, value: bool| machine.push_str(&format!(",{name}={}", on_off(value)));
    property("acpi", domain.features.acpi);
    line.text("-machine", machine);
    let accelerator = if domain.general.kind == Some(DomainType::Kvm) { "kvm" } else { "tcg" };
    line.text("-accel", accelerator);
}

/// The guest's memory. libvirt rounds it up to whole MiB for x86.
pub(super) fn memory(domain: &Domain, line: &mut CommandLine) {
    let size = domain.memory.total.next_multiple_of(MIB);
    line.text("-m", format!("size={}k", size / KIB));
    line.json("-object", object(json!({"qom-type": "memory-backend-ram", "id": "pc.ram", "size": size})));
    line.text("-overcommit", "mem-lock=off");
}

/// What the firmware boots.
pub(super) fn boot(domain: &Domain, line: &mut CommandLine) {
    let mut boot = Vec::new();
    if let Some(menu) = domain.os.menu.enable {
        boot.push(format!("menu={}", on_off(menu)));
        boot.extend(domain.os.menu.timeout.map(|t| format!("splash-time={t}")));
    }
    boot.extend(domain.os.reboot_timeout.map(|t| format!("reboot-timeout={t}")));
    boot.push("strict=on".to_owned());
    line.text("-boot", boot.join(","));
    let direct = &domain.os.direct;
    let options = [
        ("-kernel", &direct.kernel),
        ("-initrd", &direct.initrd),
        ("-append", &direct.cmdline),
        ("-dtb", &direct.dtb),
    ];
    for (flag, value) in options {
        if let Some(value) = value {
            line.text(flag, value);
        }
    }
}
