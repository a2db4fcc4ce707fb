//! What a guest boots, and on which machine.

use crate::keywords;
use crate::xml::{Diagnostics, Element, Span};

use super::firmware::Firmware;

keywords! {
    /// A kind of device that is booted from.
    pub enum BootDevice {
        /// The first disk.
        Disk = "hd",
        /// The first CD-ROM.
        Cdrom = "cdrom",
        /// The first floppy.
        Floppy = "fd",
        /// The first network interface.
        Network = "network",
    }
}

keywords! {
    /// Where the guest's SMBIOS tables come from.
    pub enum SmbiosMode {
        /// `<sysinfo>`.
        Sysinfo = "sysinfo",
        /// QEMU.
        Emulate = "emulate",
        /// The host.
        Host = "host",
    }
}

/// The chipset behind a machine type; it decides about buses and addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Chipset {
    /// PCI, of 1996.
    #[default]
    I440fx,
    /// PCI Express.
    Q35,
}

/// `<os>`.
#[derive(Debug, Clone, Default)]
pub struct Os {
    /// Where `<os>` stands.
    pub span: Span,
    /// QEMU's machine type, as written; `pc` if the XML names none.
    pub machine: String,
    /// Where the machine type stands.
    pub machine_span: Span,
    /// The chipset of the machine type.
    pub chipset: Chipset,
    /// `<kernel>`, `<initrd>`, `<cmdline>`.
    pub direct: DirectBoot,
    /// `<loader>`, `<nvram>` and what chooses them.
    pub firmware: Firmware,
    /// `<boot dev=...>`, first choice first.
    pub boot: Vec<(BootDevice, Span)>,
    /// `<bootmenu>`.
    pub menu: BootMenu,
    /// `<bios rebootTimeout=...>`: milliseconds until the firmware tries again, -1 is never.
    pub reboot_timeout: Option<i32>,
    /// `<bios useserial='yes'>`: the firmware speaks on the first serial port.
    pub bios_serial: bool,
    /// `<acpi><table>`: files of tables that the guest's firmware gets beside QEMU's own.
    pub acpi_tables: Vec<AcpiTable>,
    /// `<smbios mode=...>`.
    pub smbios: Option<(SmbiosMode, Span)>,
}

keywords! {
    /// What is in the file of an ACPI table.
    pub enum AcpiTableType {
        /// A table for the licence of Windows, with a header of QEMU's.
        Slic = "slic",
        /// A whole table.
        Raw = "raw",
    }
}

/// `<table>` of `<acpi>`.
#[derive(Debug, Clone)]
pub struct AcpiTable {
    /// What is in the file.
    pub kind: AcpiTableType,
    /// The file.
    pub path: String,
    /// Where it stands.
    pub span: Span,
}

/// A kernel that QEMU loads itself.
#[derive(Debug, Clone, Default)]
pub struct DirectBoot {
    /// Path of the kernel.
    pub kernel: Option<String>,
    /// Path of the initial ram disk.
    pub initrd: Option<String>,
    /// The kernel's command line.
    pub cmdline: Option<String>,
    /// Path of a device tree.
    pub dtb: Option<String>,
}

/// `<bootmenu>`.
#[derive(Debug, Clone, Copy, Default)]
pub struct BootMenu {
    /// Whether the firmware offers a menu.
    pub enable: Option<bool>,
    /// For how many milliseconds.
    pub timeout: Option<u32>,
}

/// The firmware keeps the times in 16 bits.
const MAX_BOOT_TIME_MS: u32 = u16::MAX as u32;

impl Os {
    /// Reads `<os>`.
    pub fn from_xml(root: &Element, diagnostics: &mut Diagnostics) -> Self {
        let Some(os) = root.only_child("os", diagnostics) else {
            diagnostics
                .error(root.span, "the guest has no <os>")
                .hint("write <os><type arch='x86_64' machine='q35'>hvm</type></os>");
            return Self::default();
        };
        let mut result = Self {
            span: os.span,
            direct: DirectBoot::from_xml(os, diagnostics),
            firmware: Firmware::from_xml(os, diagnostics),
            menu: BootMenu::from_xml(os, diagnostics),
            ..Self::default()
        };
        result.read_type(os, diagnostics);
        for boot in os.children("boot") {
            if let Some(parameter) = boot.attribute("loadparm") {
                diagnostics
                    .warning(parameter.name_span, "'loadparm' is for s390 guests: it changes nothing here");
            }
            if let Some(device) = boot.require_keyword("dev", diagnostics) {
                result.boot.push((device, boot.span));
            }
        }
        result.read_bios(os, diagnostics);
        result.read_acpi(os, diagnostics);
        of_containers(os, diagnostics);
        if let Some(smbios) = os.only_child("smbios", diagnostics) {
            result.smbios = smbios.require_keyword("mode", diagnostics).map(|mode| (mode, smbios.span));
        }
        result
    }

    fn read_type(&mut self, os: &Element, diagnostics: &mut Diagnostics) {
        self.machine = "pc".to_owned();
        let Some(kind) = os.only_child("type", diagnostics) else {
            diagnostics
                .error(os.span, "<os> has no <type>")
                .hint("write <type arch='x86_64' machine='q35'>hvm</type>");
            return;
        };
        self.machine_span = kind.span;
        if kind.text() != "hvm" {
            diagnostics
                .error(kind.text_place(), format!("vmward runs guests of type hvm, not '{}'", kind.text()));
        }
        if let Some(arch) = kind.attribute("arch").filter(|a| !["x86_64", "i686"].contains(&a.value.as_str()))
        {
            diagnostics.error(arch.span, format!("vmward runs x86_64 guests, not '{}'", arch.value));
        }
        if let Some(machine) = kind.attribute("machine") {
            self.machine_span = machine.span;
            self.machine.clone_from(&machine.value);
        }
        match chipset(&self.machine) {
            Some(chipset) => self.chipset = chipset,
            None => {
                diagnostics
                    .error(
                        self.machine_span,
                        format!("vmward does not know the machine type '{}'", self.machine),
                    )
                    .hint("it runs q35 and pc, and their versions: pc-q35-9.1, pc-i440fx-9.1");
            }
        }
    }

    fn read_acpi(&mut self, os: &Element, diagnostics: &mut Diagnostics) {
        let Some(acpi) = os.only_child("acpi", diagnostics) else { return };
        for element in acpi.children("table") {
            let Some(kind) = element.require_keyword("type", diagnostics) else { continue };
            let path = element.text().to_owned();
            if path.is_empty() {
                diagnostics.error(element.span, "<table> names no file");
            }
            if let Some(other) = self.acpi_tables.iter().find(|t| t.kind == kind) {
                diagnostics
                    .error(
                        element.span,
                        format!("there is more than one ACPI table of type '{}'", kind.as_str()),
                    )
                    .related(other.span, "the first one");
            }
            self.acpi_tables.push(AcpiTable { kind, path, span: element.span });
        }
    }

    fn read_bios(&mut self, os: &Element, diagnostics: &mut Diagnostics) {
        let Some(bios) = os.only_child("bios", diagnostics) else { return };
        self.bios_serial = bios.yes_no("useserial", diagnostics).unwrap_or_default();
        self.reboot_timeout = bios.number("rebootTimeout", diagnostics);
        if self.reboot_timeout.is_some_and(|t| t < -1 || t > MAX_BOOT_TIME_MS as i32) {
            diagnostics
                .error(bios.span, format!("rebootTimeout is between -1 and {MAX_BOOT_TIME_MS} milliseconds"));
        }
    }
}

/// What containers start with, which libvirt passes over in virtual machines.
fn of_containers(os: &Element, diagnostics: &mut Diagnostics) {
    for name in ["init", "initarg", "initdir", "initenv", "initgroup", "inituser"] {
        for element in os.children(name) {
            element.mark_read();
            diagnostics.warning(element.span, format!("<{name}> is for containers: it changes nothing here"));
        }
    }
}

/// The chipset of a machine type that vmward runs.
fn chipset(machine: &str) -> Option<Chipset> {
    if machine == "q35" || machine.starts_with("pc-q35-") {
        return Some(Chipset::Q35);
    }
    // Versions before 2.0 were called pc-1.3 and the like.
    let old = machine.strip_prefix("pc-").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    (machine == "pc" || machine.starts_with("pc-i440fx-") || old).then_some(Chipset::I440fx)
}

impl DirectBoot {
    fn from_xml(os: &Element, diagnostics: &mut Diagnostics) -> Self {
        let mut path = |name: &str| {
            let element = os.only_child(name, diagnostics)?;
            Some(element.text().to_owned()).filter(|t| !t.is_empty())
        };
        let direct = Self {
            kernel: path("kernel"),
            initrd: path("initrd"),
            cmdline: path("cmdline"),
            dtb: path("dtb"),
        };
        if direct.kernel.is_none() {
            for name in ["initrd", "cmdline", "dtb"] {
                if let Some(orphan) = os.child(name).filter(|e| !e.text().is_empty()) {
                    diagnostics.error(orphan.span, format!("<{name}> needs a <kernel>"));
                }
            }
        }
        direct
    }
}

impl BootMenu {
    fn from_xml(os: &Element, diagnostics: &mut Diagnostics) -> Self {
        let Some(element) = os.only_child("bootmenu", diagnostics) else { return Self::default() };
        let menu = Self {
            enable: element.yes_no("enable", diagnostics),
            timeout: element.number("timeout", diagnostics),
        };
        if menu.timeout.is_some_and(|t| t > MAX_BOOT_TIME_MS) {
            diagnostics.error(
                element.span,
                format!("the timeout of a boot menu is at most {MAX_BOOT_TIME_MS} milliseconds"),
            );
        }
        if menu.timeout.is_some() && menu.enable != Some(true) {
            diagnostics.warning(element.span, "a boot menu that is not enabled has no timeout");
        }
        menu
    }
}
