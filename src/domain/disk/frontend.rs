//! What the guest sees of a disk.

use crate::xml::{Diagnostics, Element, Span, keywords};

keywords! {
    /// What the guest sees.
    #[derive(Default)]
    pub enum Kind {
        /// A hard disk.
        #[default]
        Disk = "disk",
        /// A CD drive.
        Cdrom = "cdrom",
        /// A floppy drive.
        Floppy = "floppy",
        /// The host's SCSI unit itself.
        Lun = "lun",
    }
}

keywords! {
    /// A disk's bus.
    #[derive(Default)]
    pub enum Bus {
        /// virtio-blk.
        #[default]
        Virtio = "virtio",
        /// A SCSI controller.
        Scsi = "scsi",
        /// An AHCI controller.
        Sata = "sata",
        /// The i440fx's IDE controller.
        Ide = "ide",
        /// USB mass storage.
        Usb = "usb",
        /// The floppy controller.
        Fdc = "fdc",
    }
}

keywords! {
    /// How the BIOS translates a geometry.
    pub enum Translation {
        /// As the BIOS thinks best.
        Auto = "auto",
        /// Not at all.
        None = "none",
        /// Logical block addresses.
        Lba = "lba",
    }
}

/// `<target>`, and what the disk's name says.
pub(super) struct Target {
    pub name: String,
    pub span: Span,
    pub bus: Bus,
    pub removable: Option<bool>,
    pub rotation_rate: u16,
}

impl Target {
    pub fn from_xml(disk: &Element, kind: Kind, diagnostics: &mut Diagnostics) -> Option<Self> {
        let Some(target) = disk.only_child("target", diagnostics) else {
            diagnostics
                .error(disk.span, "<disk> lacks a <target>")
                .hint("name the disk in the guest with <target dev='vda' bus='virtio'/>");
            return None;
        };
        let name = target.require("dev", diagnostics)?.to_owned();
        let span = target.attribute("dev").map_or(target.span, |a| a.span);
        match split_name(&name) {
            Some((_, "")) => {}
            Some((_, rest)) if rest.bytes().all(|b| b.is_ascii_digit()) => {
                diagnostics
                    .error(span, format!("'{name}' names a partition, and a disk's target is a whole disk"));
            }
            _ => {
                diagnostics
                    .error(span, format!("'{name}' is not the name of a disk"))
                    .hint("names are vda, vdb, ... sda, ... hda, ... fda, ...");
            }
        }
        let bus = match target.attribute("bus") {
            Some(other) if NO_BUSES.contains(&other.value.as_str()) => {
                diagnostics
                    .error(
                        other.span,
                        format!("QEMU's x86_64 machines pc and q35 have no disk bus '{}'", other.value),
                    )
                    .hint("use bus='virtio', or 'sata' (q35) or 'ide' (pc) for guests without its driver");
                return None;
            }
            Some(_) => target.keyword("bus", diagnostics)?,
            None => Self::default_bus(&name, kind).or_else(|| {
                diagnostics.error(span, format!("the name '{name}' does not tell the bus; say bus='...'"));
                None
            })?,
        };
        if let Some(tray) = target.attribute("tray") {
            // libvirt prints the tray's present state here; a guest starts with its trays closed.
            if !matches!(kind, Kind::Cdrom | Kind::Floppy) {
                diagnostics.error(tray.name_span, "only CD and floppy drives have a tray");
            }
        }
        let rotation_rate = target.number::<u16>("rotation_rate", diagnostics).unwrap_or_default();
        if target.attribute("rotation_rate").is_some() && !matches!(rotation_rate, 1 | 1025..=65534) {
            // ATA8-ACS: 1 is non-rotating, 1025 to 65534 are rotations per minute.
            diagnostics.error(target.span, "rotation_rate is 1 (solid state) or 1025 to 65534");
        }
        Some(Self { name, span, bus, removable: target.on_off("removable", diagnostics), rotation_rate })
    }

    /// The bus that libvirt assumes where none is said.
    fn default_bus(name: &str, kind: Kind) -> Option<Bus> {
        if kind == Kind::Floppy {
            return Some(Bus::Fdc);
        }
        match split_name(name)?.0 {
            "hd" => Some(Bus::Ide),
            "sd" => Some(Bus::Scsi),
            "vd" => Some(Bus::Virtio),
            "fd" => Some(Bus::Fdc),
            _ => None,
        }
    }
}

/// Buses of other machines and hypervisors that libvirt knows: SD card slots of boards, Xen's and User-mode Linux's.
const NO_BUSES: &[&str] = &["sd", "xen", "uml"];

/// What disks are called by their drivers in guests, as libvirt knows it.
const NAME_PREFIXES: &[&str] = &["fd", "hd", "vd", "sd", "xvd", "ubd"];

/// The prefix of a disk's name, and what follows its letters.
fn split_name(name: &str) -> Option<(&str, &str)> {
    let prefix = NAME_PREFIXES.iter().find(|p| name.starts_with(**p))?;
    let rest = name.get(prefix.len()..)?;
    let letters = rest.bytes().take_while(u8::is_ascii_lowercase).count();
    (1..=4).contains(&letters).then(|| (*prefix, rest.get(letters..).unwrap_or_default()))
}

/// The number that a name's letters stand for, counted as guests do: a to z, aa to zz, ...
pub(super) fn name_index(name: &str) -> Option<u32> {
    let (prefix, rest) = split_name(name)?;
    let letters = name.get(prefix.len()..name.len() - rest.len())?;
    letters
        .bytes()
        .try_fold(0u32, |n, b| n.checked_mul(26)?.checked_add(u32::from(b - b'a') + 1))?
        .checked_sub(1)
}

/// Whether an element that means something by being there is there.
pub(super) fn flag(disk: &Element, name: &str, diagnostics: &mut Diagnostics) -> bool {
    disk.only_child(name, diagnostics).is_some()
}

/// `<serial>`.
pub(super) fn serial(disk: &Element, diagnostics: &mut Diagnostics) -> Option<String> {
    let element = disk.only_child("serial", diagnostics)?;
    let serial = element.text();
    if serial.is_empty() {
        return None;
    }
    let accepted = |c: char| c.is_ascii_alphanumeric() || "-_ .+".contains(c);
    if !serial.chars().all(accepted) {
        diagnostics
            .error(element.text_place(), format!("'{serial}' is not a serial number"))
            .hint("serial numbers are made of letters, digits, spaces and -_.+");
    }
    Some(serial.to_owned())
}

/// `<wwn>`: 16 hexadecimal digits.
pub(super) fn wwn(disk: &Element, diagnostics: &mut Diagnostics) -> Option<u64> {
    let element = disk.only_child("wwn", diagnostics)?;
    let text = element.text();
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let found = if digits.len() == 16 { u64::from_str_radix(digits, 16).ok() } else { None };
    if found.is_none() {
        diagnostics
            .error(element.text_place(), format!("'{text}' is not a World Wide Name: 16 hexadecimal digits"));
    }
    found
}

/// `<vendor>` and `<product>`, as SCSI's INQUIRY shows them: 8 and 16 printable ASCII characters.
pub(super) fn inquiry(disk: &Element, name: &str, diagnostics: &mut Diagnostics) -> Option<String> {
    let element = disk.only_child(name, diagnostics)?;
    let text = element.text();
    let limit = if name == "vendor" { 8 } else { 16 };
    if text.len() > limit || !text.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        diagnostics.error(
            element.text_place(),
            format!("a disk's {name} is at most {limit} printable ASCII characters"),
        );
    }
    (!text.is_empty()).then(|| text.to_owned())
}

/// `<geometry>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Cylinders.
    pub cylinders: u32,
    /// Heads.
    pub heads: u32,
    /// Sectors of a track.
    pub sectors: u32,
    /// How the BIOS translates it (ide).
    pub translation: Option<Translation>,
}

impl Geometry {
    pub(super) fn from_xml(disk: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let geometry = disk.only_child("geometry", diagnostics)?;
        let mut number = |name| {
            geometry.require(name, diagnostics)?;
            geometry.number(name, diagnostics)
        };
        let (cylinders, heads, sectors) = (number("cyls"), number("heads"), number("secs"));
        let translation = geometry.keyword("trans", diagnostics);
        Some(Self { cylinders: cylinders?, heads: heads?, sectors: sectors?, translation })
    }
}

/// `<blockio>`; 0 is QEMU's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockIo {
    /// The smallest unit the guest can address, in bytes.
    pub logical_block_size: u32,
    /// The smallest unit the disk writes without reading first, in bytes.
    pub physical_block_size: u32,
    /// The smallest unit the guest can discard, in bytes.
    pub discard_granularity: u32,
}

impl BlockIo {
    fn from_element(element: &Element, diagnostics: &mut Diagnostics) -> Self {
        let mut size = |name| element.number(name, diagnostics).unwrap_or_default();
        Self {
            logical_block_size: size("logical_block_size"),
            physical_block_size: size("physical_block_size"),
            discard_granularity: size("discard_granularity"),
        }
    }

    pub(super) fn from_xml(disk: &Element, diagnostics: &mut Diagnostics) -> Self {
        let Some(element) = disk.only_child("blockio", diagnostics) else {
            return Self::default();
        };
        let found = Self::from_element(element, diagnostics);
        for (name, size) in [
            ("logical_block_size", found.logical_block_size),
            ("physical_block_size", found.physical_block_size),
        ] {
            // QEMU's MIN_BLOCK_SIZE and MAX_BLOCK_SIZE.
            if size != 0 && !(size.is_power_of_two() && (512..=2 << 20).contains(&size)) {
                diagnostics.error(element.span, format!("{name} is a power of 2 between 512 and 2097152"));
            }
        }
        found
    }
}
