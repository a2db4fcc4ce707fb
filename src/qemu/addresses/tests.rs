use crate::domain::disk::Disk;
use crate::domain::{Address, DeviceInfo, Domain};
use crate::qemu::Capabilities;
use crate::xml::{self, Diagnostics};

use super::{assign, assign_disk};

/// A guest with these devices, and what there is to say about it.
fn guest(machine: &str, devices: &str) -> (Domain, Diagnostics, String) {
    let source = format!(
        "<domain type='qemu'><name>g</name><uuid>5a0f4c62-7b0e-4a67-9a55-5f3a8d2b9c03</uuid>\
         <memory unit='MiB'>64</memory><vcpu>1</vcpu>\
         <os><type arch='x86_64' machine='{machine}'>hvm</type></os>\
         <devices>{devices}</devices></domain>"
    );
    let mut diagnostics = Diagnostics::new();
    let root = xml::parse(&source, &mut diagnostics).unwrap();
    let mut domain = Domain::from_xml(&root, &mut diagnostics)
        .unwrap_or_else(|| panic!("{}", diagnostics.render("guest.xml", &source)));
    assign(&mut domain, &Capabilities::latest(), &mut diagnostics);
    (domain, diagnostics, source)
}

fn good(machine: &str, devices: &str) -> Domain {
    let (domain, diagnostics, source) = guest(machine, devices);
    assert!(!diagnostics.has_errors(), "{}", diagnostics.render("guest.xml", &source));
    domain
}

/// The one error, with what it points at.
fn error<'a>(diagnostics: &Diagnostics, source: &'a str) -> (String, &'a str, Option<&'a str>) {
    let errors = diagnostics.sorted();
    let [only] = errors[..] else { panic!("{}", diagnostics.render("guest.xml", source)) };
    let related = only.related.as_ref().map(|(span, _)| &source[span.start..span.end]);
    (only.message.clone(), &source[only.span.start..only.span.end], related)
}

fn place(info: &DeviceInfo) -> String {
    serde_json::Value::Object(info.place.clone()).to_string()
}

fn controllers(domain: &Domain) -> Vec<String> {
    let of = |c: &crate::domain::devices::controller::Controller| {
        format!("{} {}", c.info.alias.as_deref().unwrap_or_default(), place(&c.info))
    };
    domain.devices.controllers.iter().map(of).collect()
}

fn disk(xml: &str) -> Disk {
    let mut diagnostics = Diagnostics::new();
    let root = xml::parse(xml, &mut diagnostics).unwrap();
    Disk::from_xml(&root, &mut diagnostics)
        .unwrap_or_else(|| panic!("{}", diagnostics.render("disk.xml", xml)))
}

fn virtio_disk(name: &str) -> Disk {
    disk(&format!("<disk type='file'><source file='/i/{name}'/><target dev='{name}' bus='virtio'/></disk>"))
}

#[test]
fn q35_gets_a_port_for_each_device_and_one_to_spare() {
    let domain = good("q35", "<interface type='user'><model type='virtio'/></interface>");
    insta::assert_snapshot!(controllers(&domain).join("\n"), @r#"
    usb {"bus":"pci.2","addr":"0x0"}
    ide {"bus":"pcie.0","addr":"0x1f.0x2"}
    pcie.0 {}
    pci.1 {"bus":"pcie.0","multifunction":true,"addr":"0x1"}
    pci.2 {"bus":"pcie.0","addr":"0x1.0x1"}
    pci.3 {"bus":"pcie.0","addr":"0x1.0x2"}
    pci.4 {"bus":"pcie.0","addr":"0x1.0x3"}
    "#);
    assert_eq!(place(&domain.devices.interfaces[0].info), r#"{"bus":"pci.1","addr":"0x0"}"#);
    assert_eq!(place(&domain.devices.memballoon.unwrap().info), r#"{"bus":"pci.3","addr":"0x0"}"#);
}

#[test]
fn i440fx_counts_slots_from_the_first_free_one() {
    let domain = good(
        "pc",
        "<interface type='user'><model type='virtio'/></interface><video><model type='vga'/></video>\
         <graphics type='vnc'/>",
    );
    insta::assert_snapshot!(controllers(&domain).join("\n"), @r#"
    usb {"bus":"pci.0","addr":"0x1.0x2"}
    pci.0 {}
    "#);
    assert_eq!(place(&domain.devices.videos[0].info), r#"{"bus":"pci.0","addr":"0x2"}"#);
    assert_eq!(place(&domain.devices.interfaces[0].info), r#"{"bus":"pci.0","addr":"0x3"}"#);
}

#[test]
fn a_mac_address_stays_the_same() {
    let devices = "<interface type='user'/><interface type='user'/>";
    let (first, again) = (good("q35", devices), good("q35", devices));
    let macs = |d: &Domain| d.devices.interfaces.iter().map(|i| i.mac.unwrap()).collect::<Vec<_>>();
    assert_eq!(macs(&first), macs(&again));
    assert_ne!(macs(&first)[0], macs(&first)[1]);
    assert_eq!(macs(&first)[0][..3], [0x52, 0x54, 0]);
}

#[test]
fn an_address_that_is_taken_points_at_its_holder() {
    let address = |slot| format!("<address type='pci' bus='0' slot='{slot}'/>");
    let interface = |slot| format!("<interface type='user'>{}</interface>", address(slot));
    let (_, diagnostics, source) = guest("pc", &format!("{}{}", interface(7), interface(7)));
    let (message, _, related) = error(&diagnostics, &source);
    assert_eq!(message, "PCI address 0000:00:07.0 is taken");
    assert_eq!(related, Some("<address type='pci' bus='0' slot='7'/>"));
}

#[test]
fn two_devices_at_one_port_are_refused() {
    for (devices, expected) in [
        (
            "<input type='tablet' bus='usb'><address type='usb' bus='0' port='1'/></input>\
             <input type='mouse' bus='usb'><address type='usb' bus='0' port='1'/></input>",
            "two devices are at USB port 1 of bus 0",
        ),
        (
            "<channel type='null'><target type='virtio' name='a'/>\
             <address type='virtio-serial' controller='0' bus='0' port='2'/></channel>\
             <channel type='null'><target type='virtio' name='b'/>\
             <address type='virtio-serial' controller='0' bus='0' port='2'/></channel>",
            "two devices are at port 2 of virtio-serial controller 0",
        ),
        (
            "<interface type='user'><boot order='1'/></interface>\
             <interface type='user'><boot order='1'/></interface>",
            "two devices have the boot order 1",
        ),
        (
            "<interface type='user'><alias name='ua-x'/></interface>\
             <rng model='virtio'><backend model='builtin'/><alias name='ua-x'/></rng>",
            "two devices have the alias 'ua-x'",
        ),
    ] {
        let (_, diagnostics, source) = guest("q35", devices);
        let (message, _, related) = error(&diagnostics, &source);
        assert_eq!(message, expected);
        assert!(related.is_some());
    }
}

#[test]
fn a_hub_is_added_where_ports_are_missing() {
    let tablets = "<input type='tablet' bus='usb'/>".repeat(3);
    let domain = good("pc", &tablets);
    let places: Vec<_> = domain.devices.inputs.iter().map(|i| place(&i.info)).collect();
    assert_eq!(domain.devices.hubs.len(), 1);
    assert_eq!(place(&domain.devices.hubs[0].info), r#"{"bus":"usb.0","port":"1"}"#);
    assert_eq!(
        places,
        [
            r#"{"bus":"usb.0","port":"2"}"#,
            r#"{"bus":"usb.0","port":"1.1"}"#,
            r#"{"bus":"usb.0","port":"1.2"}"#
        ]
    );
}

#[test]
fn usb_devices_without_usb_are_refused() {
    let (_, diagnostics, source) =
        guest("pc", "<controller type='usb' model='none'/><input type='tablet' bus='usb'/>");
    let (_, at, related) = error(&diagnostics, &source);
    assert_eq!(at, "<input type='tablet' bus='usb'/>");
    assert_eq!(related, Some("<controller type='usb' model='none'/>"));
}

#[test]
fn hotplug_takes_the_spare_port_and_then_says_what_to_do() {
    let mut domain = good("q35", "");
    let capabilities = Capabilities::latest();
    let mut first = virtio_disk("vda");
    let mut diagnostics = Diagnostics::new();
    assign_disk(&mut first, &domain, &capabilities, &mut diagnostics);
    assert!(diagnostics.is_empty(), "{diagnostics:?}");
    assert_eq!(first.info.alias.as_deref(), Some("virtio-disk0"));
    assert_eq!(place(&first.info), r#"{"bus":"pci.3","addr":"0x0"}"#);
    domain.devices.disks.push(first);

    let mut second = virtio_disk("vdb");
    assign_disk(&mut second, &domain, &capabilities, &mut diagnostics);
    let said = diagnostics.sorted()[0];
    assert_eq!(said.message, "the guest has no free PCIe port");
    assert!(said.hint.as_deref().unwrap().contains("pcie-root-port"));
    assert_eq!(second.info.address, None);
}

#[test]
fn hotplug_refuses_a_target_that_is_there() {
    let mut domain = good("pc", "");
    let capabilities = Capabilities::latest();
    let mut first = virtio_disk("vda");
    assign_disk(&mut first, &domain, &capabilities, &mut Diagnostics::new());
    domain.devices.disks.push(first);
    let mut diagnostics = Diagnostics::new();
    assign_disk(&mut virtio_disk("vda"), &domain, &capabilities, &mut diagnostics);
    assert!(diagnostics.sorted().iter().any(|d| d.message == "the guest has a disk 'vda' already"));
}

#[test]
fn scsi_hotplug_takes_the_place_of_the_name_or_the_next_free_one() {
    let mut domain = good("q35", "<controller type='scsi' index='0' model='virtio-scsi'/>");
    let capabilities = Capabilities::latest();
    let scsi = |name: &str| {
        disk(&format!("<disk type='file'><source file='/i'/><target dev='{name}' bus='scsi'/></disk>"))
    };
    let mut places = Vec::new();
    // sdh would be the first one of a controller that is not there.
    for name in ["sdb", "sda", "sdh"] {
        let mut new = scsi(name);
        let mut diagnostics = Diagnostics::new();
        assign_disk(&mut new, &domain, &capabilities, &mut diagnostics);
        assert!(diagnostics.is_empty(), "{diagnostics:?}");
        places.push(format!("{} {}", new.info.alias.clone().unwrap(), place(&new.info)));
        domain.devices.disks.push(new);
    }
    insta::assert_snapshot!(places.join("\n"), @r#"
    scsi0-0-0-1 {"bus":"scsi0.0","channel":0,"scsi-id":0,"lun":1}
    scsi0-0-0-0 {"bus":"scsi0.0","channel":0,"scsi-id":0,"lun":0}
    scsi0-0-0-2 {"bus":"scsi0.0","channel":0,"scsi-id":0,"lun":2}
    "#);
    let mut without = scsi("sdc");
    let mut diagnostics = Diagnostics::new();
    assign_disk(&mut without, &good("q35", ""), &capabilities, &mut diagnostics);
    assert!(diagnostics.has_errors());
}

#[test]
fn usb_hotplug_takes_a_free_port() {
    let domain = good("q35", "<input type='tablet' bus='usb'/>");
    let mut stick = disk("<disk type='file'><source file='/i'/><target dev='sda' bus='usb'/></disk>");
    let mut diagnostics = Diagnostics::new();
    assign_disk(&mut stick, &domain, &Capabilities::latest(), &mut diagnostics);
    assert!(diagnostics.is_empty(), "{diagnostics:?}");
    assert!(matches!(&stick.info.address, Some(Address::Usb(usb)) if usb.port == [2]));
}

#[test]
fn every_guest_has_a_first_usb_controller() {
    let domain = good("q35", "<controller type='usb' index='1' model='qemu-xhci'/>");
    let usb: Vec<_> = domain.devices.controllers.iter().filter(|c| c.usb().is_some()).collect();
    assert_eq!(usb.iter().map(|c| c.number()).collect::<Vec<_>>(), [0, 1]);
    let (_, diagnostics, source) =
        guest("q35", "<controller type='usb' model='none'/><controller type='usb' index='1'/>");
    let (message, at, _) = error(&diagnostics, &source);
    assert_eq!(message, "a guest without USB has no USB controller");
    assert_eq!(at, "<controller type='usb' index='1'/>");
}

#[test]
fn usb_companions_without_an_index_have_that_of_their_master() {
    let domain = good(
        "pc",
        "<controller type='usb' model='ich9-ehci1'/>\
         <controller type='usb' model='ich9-uhci1'><master startport='0'/></controller>\
         <controller type='usb' model='ich9-uhci2'><master startport='2'/></controller>\
         <controller type='usb' model='qemu-xhci'/>",
    );
    let usb = domain.devices.controllers.iter().filter(|c| c.usb().is_some());
    assert_eq!(usb.map(|c| c.number()).collect::<Vec<_>>(), [0, 0, 0, 1]);
}

#[test]
fn acpi_indexes_go_with_pci_addresses() {
    let card = |index: u32| format!("<interface type='user'><acpi index='{index}'/></interface>");
    let domain = good("pc", &card(7));
    assert_eq!(place(&domain.devices.interfaces[0].info), r#"{"bus":"pci.0","addr":"0x2","acpi-index":7}"#);
    let (_, diagnostics, source) = guest("pc", &(card(7) + &card(7)));
    assert_eq!(error(&diagnostics, &source).0, "two devices have the ACPI index 7");
    let (_, diagnostics, source) = guest("pc", "<input type='tablet' bus='usb'><acpi index='1'/></input>");
    assert_eq!(error(&diagnostics, &source).0, "only PCI devices have an ACPI index");
}

#[test]
fn the_address_of_the_root_complex_asks_for_another_one() {
    let domain =
        good("pc", "<interface type='user'><address type='pci' domain='0' bus='0' slot='0'/></interface>");
    assert_eq!(place(&domain.devices.interfaces[0].info), r#"{"bus":"pci.0","addr":"0x2"}"#);
}

#[test]
fn scsi_controllers_that_disks_need_are_of_the_usual_model() {
    let disk = |name: &str| format!("<disk><source file='/d'/><target dev='{name}' bus='scsi'/></disk>");
    let first = "<controller type='scsi' model='virtio-scsi'/>";
    let domain = good("pc", &(first.to_owned() + &disk("sda") + &disk("sdh")));
    assert_eq!(domain.devices.disks[1].info.alias.as_deref(), Some("scsi1-0-0"));
    // Units of the host go on one that is like those that are there.
    let unit = "<hostdev mode='subsystem' type='scsi'><source><adapter name='scsi_host0'/>\
                <address bus='0' target='0' unit='0'/></source>\
                <address type='drive' controller='1' bus='0' target='0' unit='3'/></hostdev>";
    let domain = good("pc", &(first.to_owned() + unit));
    let place = place(&domain.devices.hostdevs[0].info);
    assert_eq!(place, r#"{"bus":"scsi1.0","channel":0,"scsi-id":0,"lun":3}"#);
}

#[test]
fn a_card_whose_slot_is_taken_comes_before_other_devices() {
    let domain = good(
        "pc",
        "<rng model='virtio'><backend model='builtin'/><address type='pci' bus='0' slot='2'/></rng>\
         <video><model type='vga'/></video>",
    );
    assert_eq!(place(&domain.devices.videos[0].info), r#"{"bus":"pci.0","addr":"0x3"}"#);
    let balloon = domain.devices.memballoon.unwrap();
    assert_eq!(place(&balloon.info), r#"{"bus":"pci.0","addr":"0x4"}"#);
}
