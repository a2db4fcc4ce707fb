//! A running guest's XML: what was assigned is filled in, what is secret is not shown.

use crate::domain::devices::Devices;
use crate::domain::devices::password::REDACTED;
use crate::domain::{Address, DeviceInfo, Domain, PciAddress};
use crate::xml::{Element, SECRET_ATTRIBUTES, SECRET_TEXTS, Span};

/// Takes every secret out of a tree.
pub fn redact(element: &mut Element) {
    let secret = |name: &str| SECRET_ATTRIBUTES.contains(&name);
    let secrets: Vec<String> =
        element.attributes.iter().filter(|a| secret(&a.name)).map(|a| a.name.clone()).collect();
    for name in secrets {
        element.set(&name, REDACTED);
    }
    if SECRET_TEXTS.contains(&element.name.as_str()) && !element.text.is_empty() {
        element.text = REDACTED.to_owned();
    }
    element.children.iter_mut().for_each(redact);
}

/// The tree without the passwords that [`redact`] left a sign of: QEMU has them, they are of nobody's concern any more.
pub fn without_redacted(element: &Element) -> Element {
    let mut tree = element.clone();
    forget_redacted(&mut tree);
    tree
}

fn forget_redacted(element: &mut Element) {
    element.attributes.retain(|a| !SECRET_ATTRIBUTES.contains(&a.name.as_str()) || a.value != REDACTED);
    element.children.iter_mut().for_each(forget_redacted);
}

/// Fills in what a device was assigned.
pub fn fill_in(device: &mut Element, info: &DeviceInfo) {
    if let Some(alias) = &info.alias {
        replace(device, Element::new("alias").with("name", alias));
    }
    if let Some(address) = &info.address {
        replace(device, address_element(address));
    }
}

/// Fills in what a domain and its devices were assigned.
pub fn fill_in_all(domain_xml: &mut Element, domain: &Domain) {
    if domain_xml.child("uuid").is_none() {
        let uuid = Element::new("uuid").with_text(domain.general.uuid.to_string());
        // After the name, where libvirt has it.
        let place = domain_xml.children.iter().position(|c| c.name == "name").map_or(0, |at| at + 1);
        domain_xml.children.insert(place, uuid);
    }
    let Some(devices) = devices(domain_xml) else { return };
    for info in infos(&domain.devices) {
        // Devices that vmward added have no place in the text.
        let place = devices.children.iter_mut().find(|e| e.span == info.span && info.span != Span::default());
        if let Some(device) = place {
            fill_in(device, info);
        }
    }
}

fn infos(devices: &Devices) -> Vec<&DeviceInfo> {
    /// The infos of each list.
    macro_rules! infos {
        ($($list:ident),+) => {{
            let mut all: Vec<&DeviceInfo> = Vec::new();
            $(all.extend(devices.$list.iter().map(|d| &d.info));)+
            all
        }};
    }
    infos!(
        disks,
        controllers,
        interfaces,
        serials,
        parallels,
        consoles,
        channels,
        inputs,
        videos,
        sounds,
        hubs,
        watchdogs,
        memballoon,
        rngs,
        panics
    )
}

/// The `<devices>` of a `<domain>`.
pub fn devices(domain: &mut Element) -> Option<&mut Element> {
    domain.children.iter_mut().find(|c| c.name == "devices")
}

/// The `<disk>` with a target.
pub fn disk<'a>(domain: &'a mut Element, target: &str) -> Option<&'a mut Element> {
    let disks = devices(domain)?.children.iter_mut().filter(|e| e.name == "disk");
    disks.into_iter().find(|e| self::target(e) == Some(target))
}

/// The elements of a `<disk>` that are about its image.
const OF_THE_IMAGE: [&str; 4] = ["source", "backingStore", "encryption", "auth"];

/// Whether an element of a `<disk>` is about its image.
fn is_of_image(element: &Element) -> bool {
    OF_THE_IMAGE.contains(&element.name.as_str())
}

/// Gives a `<disk>` the image of another one, or none.
pub fn change_image(disk: &mut Element, new: Option<&Element>) {
    replace_image(disk, new.iter().flat_map(|e| &e.children).filter(|e| is_of_image(e)).cloned().collect());
    let Some(new) = new else { return };
    disk.set("type", new.get("type").unwrap_or("file"));
    set_format(disk, new.child("driver").and_then(|d| d.get("type")).unwrap_or("raw"));
}

/// Puts elements into the place of those that are about a disk's image.
pub fn replace_image(disk: &mut Element, image: Vec<Element>) {
    let place = disk.children.iter().position(is_of_image);
    let place = place.or_else(|| disk.children.iter().position(|e| e.name == "target"));
    disk.children.retain(|e| !is_of_image(e));
    let place = place.unwrap_or(disk.children.len()).min(disk.children.len());
    disk.children.splice(place..place, image);
}

/// Says in a `<disk>` which format its image has.
pub fn set_format(disk: &mut Element, format: &str) {
    match disk.children.iter_mut().find(|e| e.name == "driver") {
        Some(driver) => driver.set("type", format),
        None => disk.children.push(Element::new("driver").with("name", "qemu").with("type", format)),
    }
}

/// The target of a `<disk>`.
pub fn target(disk: &Element) -> Option<&str> {
    disk.child("target")?.get("dev")
}

fn replace(device: &mut Element, element: Element) {
    match device.children.iter_mut().find(|c| c.name == element.name) {
        Some(old) => *old = element,
        None => device.children.push(element),
    }
}

fn address_element(address: &Address) -> Element {
    let typed = |kind: &str| Element::new("address").with("type", kind);
    let number = |n: u32| n.to_string();
    match address {
        Address::Pci(PciAddress { domain, bus, slot, function, multifunction }) => {
            let mut element = typed("pci")
                .with("domain", format!("0x{domain:04x}"))
                .with("bus", format!("0x{bus:02x}"))
                .with("slot", format!("0x{slot:02x}"))
                .with("function", format!("0x{function:x}"));
            if let Some(on) = multifunction {
                element.set("multifunction", if *on { "on" } else { "off" });
            }
            element
        }
        Address::Drive(a) => typed("drive")
            .with("controller", number(a.controller))
            .with("bus", number(a.bus))
            .with("target", number(a.target))
            .with("unit", number(a.unit)),
        Address::Usb(a) => {
            let element = typed("usb").with("bus", number(a.bus));
            if a.port.is_empty() { element } else { element.with("port", a.port_path()) }
        }
        Address::VirtioSerial(a) => typed("virtio-serial")
            .with("controller", number(a.controller))
            .with("bus", number(a.bus))
            .with("port", number(a.port)),
        Address::Ccid(a) => {
            typed("ccid").with("controller", number(a.controller)).with("slot", number(a.slot))
        }
        Address::Isa(a) => {
            let mut element = typed("isa");
            if let Some(iobase) = a.iobase {
                element.set("iobase", format!("0x{iobase:x}"));
            }
            if let Some(irq) = a.irq {
                element.set("irq", format!("0x{irq:x}"));
            }
            element
        }
        Address::Dimm(a) => {
            let mut element = typed("dimm");
            if let Some(slot) = a.slot {
                element.set("slot", number(slot));
            }
            if let Some(base) = a.base {
                element.set("base", format!("0x{base:x}"));
            }
            element
        }
        Address::Unassigned => typed("unassigned"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xml::{self, Diagnostics};

    fn parsed(text: &str) -> Element {
        xml::parse(text, &mut Diagnostics::new()).unwrap()
    }

    #[test]
    fn what_was_assigned_is_filled_in_and_reads_back() {
        let mut disk = parsed("<disk><target dev='vdb'/><address type='pci'/></disk>");
        let address = Address::Pci(PciAddress { bus: 3, slot: 1, ..PciAddress::default() });
        let info = DeviceInfo {
            alias: Some("virtio-disk1".into()),
            address: Some(address.clone()),
            ..DeviceInfo::default()
        };
        fill_in(&mut disk, &info);
        let again = parsed(&disk.to_string());
        let mut diagnostics = Diagnostics::new();
        assert_eq!(again.child("alias").unwrap().get("name"), Some("virtio-disk1"));
        assert_eq!(Address::from_xml(again.child("address").unwrap(), &mut diagnostics), Some(address));
        assert!(diagnostics.is_empty());
        assert_eq!(target(&again), Some("vdb"));
    }

    #[test]
    fn passwords_and_cookies_are_not_shown() {
        let mut domain = parsed(
            "<domain><devices><graphics type='vnc' passwd='hunter2' passwdValidTo='x'/>\
             <disk><source><cookies><cookie name='session'>hunter2</cookie></cookies></source></disk>\
             </devices></domain>",
        );
        redact(&mut domain);
        let text = domain.to_string();
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("passwd='[redacted]'") && text.contains("passwdValidTo='x'"), "{text}");
        assert!(!without_redacted(&domain).to_string().contains("passwd="));
    }
}
