//! `<sysinfo>`: what the guest reads in its SMBIOS tables and in QEMU's configuration device.

use uuid::Uuid;

use crate::xml::{Diagnostics, Element, Span};

/// A table of `<sysinfo type='smbios'>`: its element, its type in SMBIOS, and its entries with QEMU's names.
type Table = (&'static str, u8, &'static [(&'static str, &'static str)]);

const TABLES: &[Table] = &[
    ("bios", 0, &[("vendor", "vendor"), ("version", "version"), ("date", "date"), ("release", "release")]),
    (
        "system",
        1,
        &[
            ("manufacturer", "manufacturer"),
            ("product", "product"),
            ("version", "version"),
            ("serial", "serial"),
            ("uuid", "uuid"),
            ("sku", "sku"),
            ("family", "family"),
        ],
    ),
    (
        "baseBoard",
        2,
        &[
            ("manufacturer", "manufacturer"),
            ("product", "product"),
            ("version", "version"),
            ("serial", "serial"),
            ("asset", "asset"),
            ("location", "location"),
        ],
    ),
    (
        "chassis",
        3,
        &[
            ("manufacturer", "manufacturer"),
            ("version", "version"),
            ("serial", "serial"),
            ("asset", "asset"),
            ("sku", "sku"),
        ],
    ),
];

/// One table, entries in QEMU's names.
#[derive(Debug, Clone)]
pub struct SmbiosTable {
    /// Its type in SMBIOS.
    pub kind: u8,
    /// Names and values.
    pub entries: Vec<(&'static str, String)>,
}

/// `<entry>` of `<sysinfo type='fwcfg'>`.
#[derive(Debug, Clone)]
pub struct FwCfgEntry {
    /// `opt/...`.
    pub name: String,
    /// What the guest reads.
    pub value: FwCfgValue,
}

/// What a [`FwCfgEntry`] holds.
#[derive(Debug, Clone)]
pub enum FwCfgValue {
    /// Text.
    Text(String),
    /// The contents of a file.
    File(String),
}

/// All `<sysinfo>`.
#[derive(Debug, Clone, Default)]
pub struct Sysinfo {
    /// Whether there is one of type smbios, be it empty.
    pub smbios: bool,
    /// Tables with entries.
    pub tables: Vec<SmbiosTable>,
    /// The UUID of the system table, with where it stands.
    pub uuid: Option<(Uuid, Span)>,
    /// `<oemStrings>`.
    pub oem_strings: Vec<String>,
    /// Configuration entries.
    pub fw_cfg: Vec<FwCfgEntry>,
}

impl Sysinfo {
    /// Reads all `<sysinfo>`.
    pub fn from_xml(root: &Element, diagnostics: &mut Diagnostics) -> Self {
        let mut this = Self::default();
        for element in root.children("sysinfo") {
            match element.require("type", diagnostics) {
                Some("smbios") => this.read_smbios(element, diagnostics),
                Some("fwcfg") => {
                    this.fw_cfg.extend(element.children("entry").filter_map(|e| fw_cfg(e, diagnostics)));
                }
                Some(other) => {
                    diagnostics.error(
                        element.span,
                        format!("'{other}' is not a type of <sysinfo>; it takes smbios or fwcfg"),
                    );
                }
                None => {}
            }
        }
        this
    }

    fn read_smbios(&mut self, sysinfo: &Element, diagnostics: &mut Diagnostics) {
        self.smbios = true;
        for (name, kind, entries) in TABLES {
            let Some(table) = sysinfo.only_child(name, diagnostics) else { continue };
            let mut read: Vec<(&str, String)> = Vec::new();
            for entry in table.children("entry") {
                let text = entry.text();
                let Some(name) = entry.require("name", diagnostics) else { continue };
                let Some((_, property)) = entries.iter().find(|(n, _)| *n == name) else {
                    diagnostics.error(entry.span, format!("<{}> has no entry '{name}'", table.name));
                    continue;
                };
                if read.iter().any(|(other, _)| other == property) {
                    diagnostics
                        .error(entry.span, format!("there are two entries '{name}' in <{}>", table.name));
                }
                check_entry(name, entry, diagnostics);
                if *property == "uuid" {
                    self.uuid = Uuid::try_parse(text).ok().map(|u| (u, entry.text_place()));
                }
                read.push((*property, text.to_owned()));
            }
            if !read.is_empty() {
                self.tables.push(SmbiosTable { kind: *kind, entries: read });
            }
        }
        if let Some(list) = sysinfo.only_child("oemStrings", diagnostics) {
            self.oem_strings.extend(list.children("entry").map(|e| e.text().to_owned()));
        }
    }
}

fn check_entry(name: &str, entry: &Element, diagnostics: &mut Diagnostics) {
    let text = entry.text();
    if name == "uuid" && Uuid::try_parse(text).is_err() {
        diagnostics.error(entry.text_place(), format!("'{text}' is not a UUID"));
    }
    if name == "date" && !is_date(text) {
        diagnostics.error(entry.text_place(), format!("'{text}' is not a date: write mm/dd/yyyy"));
    }
}

/// `mm/dd/yy` or `mm/dd/yyyy`, the forms of SMBIOS.
fn is_date(text: &str) -> bool {
    let parts: Vec<_> = text.split('/').collect();
    let [month, day, year] = parts[..] else { return false };
    let within = |part: &str, least: u32, most: u32| part.parse().is_ok_and(|n| (least..=most).contains(&n));
    let year_ok = match year.len() {
        2 => within(year, 0, 99),
        4 => within(year, 1900, 9999),
        _ => false,
    };
    month.len() <= 2 && within(month, 1, 12) && day.len() <= 2 && within(day, 1, 31) && year_ok
}

fn fw_cfg(entry: &Element, diagnostics: &mut Diagnostics) -> Option<FwCfgEntry> {
    let name = entry.require("name", diagnostics)?;
    if !name.starts_with("opt/") {
        diagnostics.error(entry.span, "the name of a configuration entry starts with 'opt/'");
    } else if name.starts_with("opt/ovmf/") || name.starts_with("opt/org.qemu/") {
        diagnostics.error(entry.span, format!("'{name}' is a name that QEMU or the firmware uses itself"));
    }
    let value = match (entry.get("file"), entry.text()) {
        (Some(file), "") => FwCfgValue::File(file.to_owned()),
        (None, text) if !text.is_empty() => FwCfgValue::Text(text.to_owned()),
        _ => {
            diagnostics.error(entry.span, "a configuration entry has either text or a file");
            return None;
        }
    };
    Some(FwCfgEntry { name: name.to_owned(), value })
}
