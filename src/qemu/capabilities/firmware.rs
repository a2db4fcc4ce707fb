//! The firmware that a host has, as its descriptors say (QEMU's docs/interop/firmware.json).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;

/// Where descriptors are, the most general place first: the same file name later replaces one before.
const DIRECTORIES: [&str; 2] = ["/usr/share/qemu/firmware", "/etc/qemu/firmware"];

/// One firmware.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FirmwareDescriptor {
    interface_types: Vec<String>,
    mapping: Mapping,
    targets: Vec<Target>,
    features: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mapping {
    device: String,
    /// Of a flash: `split` where the variables are in a file of their own.
    mode: Option<String>,
    executable: Option<FirmwareFile>,
    nvram_template: Option<FirmwareFile>,
    /// Of a ROM.
    filename: Option<String>,
}

/// A file of a firmware.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct FirmwareFile {
    /// Its path.
    pub filename: String,
    /// `raw` or `qcow2`.
    pub format: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Target {
    architecture: String,
    machines: Vec<String>,
}

impl FirmwareDescriptor {
    /// Whether it is of that interface: `bios` or `uefi`.
    pub fn is(&self, interface: &str) -> bool {
        self.interface_types.iter().any(|i| i == interface)
    }

    /// Whether it works in x86_64 machines of that type.
    pub fn fits(&self, machine: &str) -> bool {
        let fits = |pattern: &String| match pattern.strip_suffix('*') {
            Some(start) => machine.starts_with(start),
            None => pattern == machine,
        };
        self.targets.iter().any(|t| t.architecture == "x86_64" && t.machines.iter().any(fits))
    }

    /// Whether it has a feature: `secure-boot`, `requires-smm`, `enrolled-keys`, ...
    pub fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|f| f == feature)
    }

    /// The flash image, of a firmware without variables, or with variables in a file of their own.
    pub fn flash(&self, stateless: bool) -> Option<&FirmwareFile> {
        let wanted = if stateless { "stateless" } else { "split" };
        let fits = self.mapping.mode.as_deref().unwrap_or("split") == wanted;
        self.mapping.executable.as_ref().filter(|_| self.mapping.device == "flash" && fits)
    }

    /// Whether its code is in that file.
    pub fn is_at(&self, path: &str) -> bool {
        let flash = self.mapping.executable.as_ref().map(|f| f.filename.as_str());
        flash == Some(path) || self.mapping.filename.as_deref() == Some(path)
    }

    /// What the variables start as.
    pub fn template(&self) -> Option<&FirmwareFile> {
        self.mapping.nvram_template.as_ref()
    }

    /// The ROM image.
    pub fn rom(&self) -> Option<&str> {
        self.mapping.filename.as_deref().filter(|_| self.mapping.device == "memory")
    }

    /// Those of this host, in the order in which they are preferred. One that cannot be read is none.
    pub(super) fn of_this_machine() -> Vec<Self> {
        let mut files = BTreeMap::new();
        for directory in DIRECTORIES {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                if entry.path().extension().is_some_and(|e| e == "json") {
                    files.insert(entry.file_name(), entry.path());
                }
            }
        }
        let read = |path: &Path| {
            let text = fs::read(path).ok()?;
            serde_json::from_slice(&text)
                .inspect_err(|e| tracing::warn!("{} is no firmware descriptor: {e}", path.display()))
                .ok()
        };
        files.values().filter_map(|path| read(path)).collect()
    }

    /// What Fedora's edk2 and SeaBIOS install, for command lines that are looked at, not run.
    pub(super) fn assumed() -> Vec<Self> {
        let edk2 = |name: &str, format: &str| FirmwareFile {
            filename: format!("/usr/share/edk2/ovmf/{name}"),
            format: format.to_owned(),
        };
        let uefi =
            |code: &str, vars: Option<&str>, format: &str, machines: &[&str], features: &[&str]| Self {
                interface_types: vec!["uefi".to_owned()],
                mapping: Mapping {
                    device: "flash".to_owned(),
                    mode: Some(if vars.is_some() { "split" } else { "stateless" }.to_owned()),
                    executable: Some(edk2(code, format)),
                    nvram_template: vars.map(|vars| edk2(vars, format)),
                    filename: None,
                },
                targets: vec![Target {
                    architecture: "x86_64".to_owned(),
                    machines: machines.iter().map(|m| (*m).to_owned()).collect(),
                }],
                features: features.iter().map(|f| (*f).to_owned()).collect(),
            };
        let (all, q35): (&[&str], &[&str]) = (&["pc-i440fx-*", "pc-q35-*"], &["pc-q35-*"]);
        let secure = ["acpi-s3", "requires-smm", "secure-boot"];
        let enrolled = ["acpi-s3", "enrolled-keys", "requires-smm", "secure-boot"];
        vec![
            uefi("OVMF_CODE_4M.secboot.qcow2", Some("OVMF_VARS_4M.secboot.qcow2"), "qcow2", q35, &enrolled),
            uefi("OVMF_CODE_4M.qcow2", Some("OVMF_VARS_4M.qcow2"), "qcow2", all, &["acpi-s3"]),
            uefi("OVMF_CODE.secboot.fd", Some("OVMF_VARS.secboot.fd"), "raw", q35, &enrolled),
            uefi("OVMF_CODE.secboot.fd", Some("OVMF_VARS.fd"), "raw", q35, &secure),
            uefi("OVMF_CODE.fd", Some("OVMF_VARS.fd"), "raw", all, &["acpi-s3"]),
            uefi("OVMF.amdsev.fd", None, "raw", q35, &["amd-sev", "amd-sev-es", "amd-sev-snp"]),
            Self {
                interface_types: vec!["bios".to_owned()],
                mapping: Mapping {
                    device: "memory".to_owned(),
                    mode: None,
                    executable: None,
                    nvram_template: None,
                    filename: Some("/usr/share/seabios/bios-256k.bin".to_owned()),
                },
                targets: vec![Target {
                    architecture: "x86_64".to_owned(),
                    machines: all.iter().map(|m| (*m).to_owned()).collect(),
                }],
                features: vec!["acpi-s3".to_owned(), "acpi-s4".to_owned()],
            },
        ]
    }
}
