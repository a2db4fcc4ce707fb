use super::*;
use crate::domain::disk::Bus;
use crate::qemu::{QemuObject, SecretSource, TlsCredentials};
use crate::xml;
use serde_json::{Value, json};

/// A guest with the disks of a fixture, with aliases and addresses as a domain's get them.
fn guest(source: &str) -> Domain {
    let mut diagnostics = Diagnostics::new();
    let root = xml::parse(source, &mut diagnostics).unwrap();
    let mut domain = Domain::default();
    domain.devices.disks = if root.name == "devices" {
        crate::domain::disk::all_from_xml(&root, &mut diagnostics)
    } else {
        Disk::from_xml(&root, &mut diagnostics).into_iter().collect()
    };
    assert!(!diagnostics.has_errors(), "{}", diagnostics.render("disk.xml", source));
    for disk in &mut domain.devices.disks {
        let unit = disk.index();
        let (alias, place) = match disk.bus {
            Bus::Virtio => {
                (format!("virtio-disk{unit}"), json!({"bus": "pci.0", "addr": format!("{:#x}", unit + 4)}))
            }
            _ => (
                format!("scsi0-0-{unit}"),
                json!({"bus": "scsi0.0", "channel": 0, "scsi-id": 0, "lun": unit}),
            ),
        };
        disk.info.alias = Some(alias);
        disk.info.place = crate::qemu::plan::object(place);
    }
    domain
}

/// What QEMU is told, one line each.
fn told(source: &str) -> Vec<String> {
    let domain = guest(source);
    let mut diagnostics = Diagnostics::new();
    let plans = plan_disks(&domain, &Capabilities::latest(), &mut diagnostics);
    assert!(diagnostics.is_empty());
    let text = |v: &crate::qemu::JsonObject| Value::Object(v.clone()).to_string();
    plans
        .iter()
        .flat_map(|plan| {
            let objects = plan.objects.iter().map(|o| match o {
                QemuObject::Secret(s) => match &s.source {
                    SecretSource::Keystore(secret) => format!("secret {} = {}", s.id, secret.lookup),
                    SecretSource::Xml(value) | SecretSource::Once(value) => {
                        format!("secret {} of {} bytes", s.id, value.expose().len())
                    }
                },
                QemuObject::Plain(o) => text(o),
            });
            objects.chain(plan.nodes.iter().map(text)).chain([text(&plan.device)]).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn an_encrypted_qcow2() {
    assert_eq!(
        told(include_str!("../../../fixtures/disk/qcow2-luks.xml")),
        [
            "secret libvirt-1-format-encryption-secret0 = UUID 6fd3f62d-9fe7-4a4e-a869-7acd6376d8ea",
            r#"{"driver":"file","filename":"/srv/images/system.qcow2","aio":"native","node-name":"libvirt-1-storage","auto-read-only":true,"discard":"unmap","cache":{"direct":true,"no-flush":false}}"#,
            r#"{"node-name":"libvirt-1-format","read-only":false,"discard":"unmap","cache":{"direct":true,"no-flush":false},"driver":"qcow2","encrypt":{"format":"luks","key-secret":"libvirt-1-format-encryption-secret0"},"file":"libvirt-1-storage"}"#,
            r#"{"driver":"virtio-blk-pci","bus":"pci.0","addr":"0x4","drive":"libvirt-1-format","id":"virtio-disk0","write-cache":"on","serial":"system\\ 1"}"#,
        ]
    );
}

#[test]
fn an_encrypted_block_device() {
    assert_eq!(
        told(include_str!("../../../fixtures/disk/raw-luks-scsi.xml")),
        [
            "secret libvirt-1-format-encryption-secret0 = usage '/dev/vg0/data'",
            r#"{"driver":"host_device","filename":"/dev/vg0/data","node-name":"libvirt-1-storage","auto-read-only":true,"discard":"unmap"}"#,
            r#"{"node-name":"libvirt-1-format","read-only":false,"driver":"luks","key-secret":"libvirt-1-format-encryption-secret0","file":"libvirt-1-storage"}"#,
            r#"{"driver":"scsi-hd","bus":"scsi0.0","channel":0,"scsi-id":0,"lun":1,"device_id":"drive-scsi0-0-1","drive":"libvirt-1-format","id":"scsi0-0-1"}"#,
        ]
    );
}

#[test]
fn layers_that_librbd_decrypts() {
    assert_eq!(
        told(include_str!("../../../fixtures/disk/rbd-librbd-layers.xml")),
        [
            "secret libvirt-1-storage-auth-secret0 = usage 'client.guests'",
            "secret libvirt-1-storage-encryption-secret0 = UUID 11111111-2222-4333-8444-555555555555",
            "secret libvirt-1-storage-encryption-secret1 = UUID 66666666-7777-4888-9999-aaaaaaaaaaaa",
            r#"{"driver":"rbd","pool":"guests","image":"clone","snapshot":"before","conf":"/etc/ceph/guests.conf","server":[{"host":"mon1.example.net","port":"6789"},{"host":"2001:db8::7","port":"6789"}],"encrypt":{"format":"luks2","key-secret":"libvirt-1-storage-encryption-secret0","parent":{"format":"luks2","key-secret":"libvirt-1-storage-encryption-secret1"}},"user":"guests","auth-client-required":["cephx","none"],"key-secret":"libvirt-1-storage-auth-secret0","node-name":"libvirt-1-storage","read-only":false}"#,
            r#"{"driver":"virtio-blk-pci","bus":"pci.0","addr":"0x6","drive":"libvirt-1-storage","id":"virtio-disk2"}"#,
        ]
    );
}

#[test]
fn a_chain_with_a_slice_and_a_filter() {
    assert_eq!(
        told(include_str!("../../../fixtures/disk/chain.xml")),
        [
            "secret libvirt-2-storage-httpcookie-secret0 of 25 bytes",
            "secret libvirt-1-format-encryption-secret0 = UUID 6fd3f62d-9fe7-4a4e-a869-7acd6376d8ea",
            r#"{"driver":"https","url":"https://images.example.net:443/images/base%20image.raw?v=3","sslverify":false,"cookie-secret":"libvirt-2-storage-httpcookie-secret0","timeout":9,"node-name":"libvirt-2-storage","read-only":true,"cache":{"direct":false,"no-flush":false}}"#,
            r#"{"driver":"file","filename":"/srv/images/overlay.qcow2","node-name":"libvirt-1-storage","auto-read-only":true,"discard":"unmap","cache":{"direct":false,"no-flush":false}}"#,
            r#"{"driver":"raw","node-name":"libvirt-1-slice-sto","offset":4096,"size":1048576,"file":"libvirt-1-storage","auto-read-only":true,"discard":"unmap","cache":{"direct":false,"no-flush":false}}"#,
            r#"{"node-name":"libvirt-1-format","read-only":false,"cache":{"direct":false,"no-flush":false},"driver":"qcow2","encrypt":{"format":"luks","key-secret":"libvirt-1-format-encryption-secret0"},"file":"libvirt-1-slice-sto","backing":"libvirt-2-storage"}"#,
            r#"{"driver":"copy-on-read","node-name":"libvirt-CoR-vdd","file":"libvirt-1-format","discard":"unmap"}"#,
            r#"{"driver":"virtio-blk-pci","bus":"pci.0","addr":"0x7","drive":"libvirt-CoR-vdd","id":"virtio-disk3","write-cache":"on"}"#,
        ]
    );
}

#[test]
fn servers_and_numbers_from_the_last_disk() {
    assert_eq!(
        told(include_str!("../../../fixtures/disk/nbd-iscsi.xml")),
        [
            r#"{"qom-type":"tls-creds-x509","id":"objlibvirt-2-storage_tls0","dir":"/etc/pki/qemu","endpoint":"client","verify-peer":true}"#,
            r#"{"driver":"nbd","server":{"type":"inet","host":"192.0.2.7","port":"10809"},"export":"export","tls-creds":"objlibvirt-2-storage_tls0","tls-hostname":"nbd.example.net","reconnect-delay":10,"node-name":"libvirt-2-storage","read-only":false}"#,
            r#"{"driver":"scsi-hd","bus":"scsi0.0","channel":0,"scsi-id":0,"lun":0,"device_id":"drive-scsi0-0-0","drive":"libvirt-2-storage","id":"scsi0-0-0"}"#,
            "secret libvirt-1-storage-auth-secret0 = usage 'disks'",
            r#"{"driver":"iscsi","portal":"[2001:db8::1]:3260","target":"iqn.2013-07.net.example:disks","lun":3,"transport":"tcp","user":"guest","password-secret":"libvirt-1-storage-auth-secret0","initiator-name":"iqn.2013-07.net.example:guest","node-name":"libvirt-1-storage","read-only":false}"#,
            r#"{"driver":"scsi-block","bus":"scsi0.0","channel":0,"scsi-id":0,"lun":1,"drive":"libvirt-1-storage","id":"scsi0-0-1"}"#,
        ]
    );
}

#[test]
fn hotplug_counts_on() {
    let domain = guest(include_str!("../../../fixtures/disk/chain.xml"));
    let mut numbers = NodeNumbers::after_start(&domain);
    let hot = guest(include_str!("../../../fixtures/disk/qcow2-luks.xml"));
    let mut diagnostics = Diagnostics::new();
    let plan = plan_disk(&hot.devices.disks[0], &mut numbers, &Capabilities::latest(), &mut diagnostics);
    assert_eq!(plan.unwrap().device["drive"], "libvirt-3-format");
}

#[test]
fn an_empty_drive_has_no_nodes_and_takes_a_number() {
    let told = told(
        "<devices><disk><source file='/a'/><target dev='sda' bus='scsi'/></disk>\
         <disk device='cdrom'><target dev='sdb' bus='scsi'/></disk></devices>",
    );
    assert_eq!(told.len(), 3);
    assert!(told[0].contains("libvirt-2-storage"));
    assert!(told[2].contains("scsi-cd") && !told[2].contains("drive\":"));
}

#[test]
fn data_in_another_image() {
    let told = told(
        "<disk><driver name='qemu' type='qcow2'/><source file='/meta'><dataStore type='block'><format type='raw'/>\
         <source dev='/dev/data'/></dataStore></source><target dev='vda'/></disk>",
    );
    assert_eq!(
        told[..3],
        [
            r#"{"driver":"host_device","filename":"/dev/data","node-name":"libvirt-2-storage","read-only":false}"#,
            r#"{"driver":"file","filename":"/meta","node-name":"libvirt-1-storage","auto-read-only":true,"discard":"unmap"}"#,
            r#"{"node-name":"libvirt-1-format","read-only":false,"driver":"qcow2","file":"libvirt-1-storage","data-file":"libvirt-2-storage"}"#,
        ]
    );
}

#[test]
fn throttling_is_sent_not_printed() {
    let domain = guest(
        "<disk><source file='/a'/><target dev='vda'/><iotune><total_bytes_sec>5000</total_bytes_sec>\
         <total_bytes_sec_max>6000</total_bytes_sec_max><read_iops_sec>7</read_iops_sec>\
         <group_name>g</group_name></iotune></disk>",
    );
    let plans = plan_disks(&domain, &Capabilities::latest(), &mut Diagnostics::new());
    assert_eq!(
        Value::Object(plans[0].throttle.clone().unwrap()).to_string(),
        r#"{"id":"/machine/peripheral/virtio-disk0/virtio-backend","bps":5000,"bps_rd":0,"bps_wr":0,"iops":0,"iops_rd":7,"iops_wr":0,"bps_max":6000,"group":"g"}"#
    );
}

#[test]
fn a_vhost_user_disk_has_a_character_device() {
    let domain = guest(
        "<disk type='vhostuser'><source type='unix' path='/run/a,b.sock'><reconnect enabled='yes' timeout='4'/></source>\
         <target dev='vda' bus='virtio'/></disk>",
    );
    let mut plans = plan_disks(&domain, &Capabilities::latest(), &mut Diagnostics::new());
    let plan = plans.remove(0);
    assert!(plan.nodes.is_empty());
    assert_eq!(plan.device["chardev"], "chr-vu-virtio-disk0");
    let mut line = crate::qemu::CommandLine::default();
    line.disk(plan);
    let options = line.render(|_| Err(())).unwrap();
    assert_eq!(options[1], "socket,id=chr-vu-virtio-disk0,path=/run/a,,b.sock,reconnect=4");
}

mod headers {
    use super::*;
    use image::{Kind, mismatch, readable, sniff};

    fn disk(format: &str, encrypted: bool) -> Disk {
        let encryption = "<encryption format='luks'><secret type='passphrase' usage='u'/></encryption>";
        let inner = if encrypted { encryption } else { "" };
        guest(&format!(
            "<disk><driver name='qemu' type='{format}'/><source file='/i'>{inner}</source><target dev='vda'/></disk>"
        ))
        .devices
        .disks
        .remove(0)
    }

    fn qcow2(method: u8) -> Vec<u8> {
        let mut header = vec![0; image::SNIFF_LEN];
        header[..4].copy_from_slice(b"QFI\xfb");
        header[35] = method;
        header
    }

    #[test]
    fn only_what_the_xml_says_passes() {
        let luks = b"LUKS\xba\xbe\x00\x01".to_vec();
        let luks2 = b"LUKS\xba\xbe\x00\x02".to_vec();
        let plain = vec![0; image::SNIFF_LEN];
        for (format, encrypted, header, good) in [
            ("raw", true, &luks, true),
            ("raw", false, &luks, false),
            ("raw", true, &luks2, false),
            ("raw", true, &plain, false),
            ("raw", false, &plain, true),
            ("raw", true, &qcow2(2), false),
            ("raw", false, &qcow2(2), false),
            ("raw", false, &qcow2(0), false),
            ("qcow2", true, &qcow2(2), true),
            ("qcow2", true, &qcow2(0), false),
            ("qcow2", true, &qcow2(1), false),
            ("qcow2", false, &qcow2(2), false),
            ("qcow2", false, &qcow2(1), false),
            ("qcow2", false, &qcow2(0), true),
            ("qcow2", true, &luks, false),
            ("qcow2", true, &plain, false),
        ] {
            let disk = disk(format, encrypted);
            let (image, path) = readable(&disk).next().unwrap();
            assert_eq!(path, "/i");
            let found = mismatch(image, sniff(header));
            assert_eq!(found.is_none(), good, "{format} {encrypted} {:?}: {found:?}", sniff(header));
        }
        assert_eq!(sniff(&luks), Kind::Luks(1));
    }
}

#[test]
fn a_vdpa_device_is_opened_for_qemu() {
    let domain = guest(
        "<disk type='vhostvdpa'><driver name='qemu' cache='none'/><source dev='/dev/vhost-vdpa-0'/>\
         <target dev='vda' bus='virtio'/></disk>",
    );
    let plan = plan_disks(&domain, &Capabilities::latest(), &mut Diagnostics::new()).remove(0);
    assert_eq!(plan.nodes[0]["path"], "/dev/vhost-vdpa-0");
    let mut line = crate::qemu::CommandLine::default();
    line.disk(plan);
    let options = line.render(|_| Err(())).unwrap();
    assert!(options.iter().any(|o| o.contains(r#""path":"/dev/fdset/0""#)), "{options:?}");
    assert_eq!(line.descriptors.len(), 1);
}

#[test]
fn one_managed_helper_serves_all() {
    let disk = |name: &str| {
        format!(
            "<disk type='block' device='lun'><source dev='/dev/{name}'><reservations managed='yes'/></source>\
             <target dev='{name}' bus='scsi'/></disk>"
        )
    };
    let told = told(&format!("<devices>{}{}</devices>", disk("sda"), disk("sdb")));
    assert_eq!(told.iter().filter(|line| line.contains("pr-manager-helper")).count(), 1);
    assert!(told[0].contains("/pr-helper0.sock"), "{}", told[0]);
}

#[test]
fn tls_as_the_host_has_it() {
    let domain = guest(include_str!("../../../fixtures/disk/nbd-iscsi.xml"));
    let told = |nbd| {
        let mut capabilities = Capabilities::latest();
        capabilities.host.tls.nbd = Some(nbd);
        let plan = plan_disks(&domain, &capabilities, &mut Diagnostics::new()).remove(0);
        let ids = plan.objects.iter().map(|o| o.id().to_owned()).collect::<Vec<_>>();
        (ids, Value::Object(plan.told("objlibvirt-2-storage_tls0").unwrap().clone()).to_string())
    };
    let lookup = crate::secret::SecretLookup::Usage("key".to_owned());
    let certificates =
        TlsCredentials { directory: "/pki".to_owned(), secret: Some(lookup), ..TlsCredentials::default() };
    assert_eq!(
        told(certificates.clone()),
        (
            // QEMU decrypts the key when it makes the credentials.
            vec!["objlibvirt-2-storage_tls0-secret0".to_owned(), "objlibvirt-2-storage_tls0".to_owned()],
            r#"{"qom-type":"tls-creds-x509","id":"objlibvirt-2-storage_tls0","dir":"/pki","endpoint":"client","verify-peer":true,"passwordid":"objlibvirt-2-storage_tls0-secret0"}"#.to_owned(),
        )
    );
    let shared = TlsCredentials { secret: None, psk_user: Some("vm".to_owned()), ..certificates };
    assert_eq!(
        told(shared).1,
        r#"{"qom-type":"tls-creds-psk","id":"objlibvirt-2-storage_tls0","dir":"/pki","endpoint":"client","username":"vm"}"#
    );
}

#[test]
fn an_image_on_a_server_is_opened_for_reading_as_qemu_opens_it() {
    let disk = |format: &str, more: &str| {
        format!(
            "<disk type='network' device='disk'><driver name='qemu' type='{format}' cache='none'/>\
             <source protocol='https' name='images/a.luks' query='token=1'><host name='storage' port='8443'/>\
             <auth username='vm'><secret type='iscsi' usage='web'/></auth><cookies><cookie name='a'>b</cookie></cookies>{more}\
             <encryption format='luks'><secret type='passphrase' usage='a'/></encryption></source>\
             <target dev='vda' bus='virtio'/><readonly/></disk>"
        )
    };
    let luks = |source: &str| {
        let mut plans = plan_disks(&guest(source), &Capabilities::latest(), &mut Diagnostics::new());
        plans.remove(0).servers
    };
    let found = luks(&disk("raw", ""));
    // No query and no user: they may be credentials.
    assert_eq!(found[0].name, "https://storage:8443/images/a.luks");
    let server = &found[0].server;
    assert_eq!(
        Value::Object(server.node.clone()),
        json!({
            "driver": "https",
            "url": "https://storage:8443/images/a.luks?token=1",
            "username": "vm",
            "password-secret": "libvirt-1-storage-auth-secret0",
            "cookie-secret": "libvirt-1-storage-httpcookie-secret0",
            "read-only": true,
            "cache": { "direct": true, "no-flush": false },
        })
    );
    // What is needed to log in, and not what opens the image.
    let objects: Vec<_> = server.objects.iter().map(QemuObject::id).collect();
    assert_eq!(objects, ["libvirt-1-storage-auth-secret0", "libvirt-1-storage-httpcookie-secret0"]);
    for left_to_qemu in
        [disk("qcow2", ""), disk("raw", "<slices><slice type='storage' offset='512' size='1024'/></slices>")]
    {
        assert!(luks(&left_to_qemu).is_empty(), "{left_to_qemu}");
    }
}
