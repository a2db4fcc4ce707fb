use super::*;
use crate::secret::{SecretLookup, UsageKind};
use crate::xml;

/// Reads disks, and gives back what was said about them.
fn read(source: &str) -> (Vec<Disk>, Diagnostics) {
    let mut diagnostics = Diagnostics::new();
    let root = xml::parse(source, &mut diagnostics).unwrap();
    let disks = if root.name == "devices" {
        all_from_xml(&root, &mut diagnostics)
    } else {
        Disk::from_xml(&root, &mut diagnostics).into_iter().collect()
    };
    root.report_unread(&mut diagnostics);
    (disks, diagnostics)
}

fn good(source: &str) -> Disk {
    let (disks, diagnostics) = read(source);
    assert!(!diagnostics.has_errors(), "{}", diagnostics.render("disk.xml", source));
    disks.into_iter().next().unwrap()
}

/// The one error of a disk, as `line: message`. It must hold even where what is unsupported is allowed.
#[track_caller]
fn refused(source: &str) -> String {
    let (_, mut diagnostics) = read(source);
    diagnostics.allow_unsupported();
    assert!(diagnostics.has_errors(), "nothing was refused in\n{source}");
    let list = diagnostics.sorted();
    assert_eq!(list.len(), 1, "{}", diagnostics.render("disk.xml", source));
    let line = source[..list[0].span.start].matches('\n').count() + 1;
    format!("{line}: {}", list[0].message)
}

/// A file disk whose `<source>` has `inner` on line 3.
fn encrypted(driver: &str, inner: &str) -> String {
    format!(
        "<disk type='file'>\n<driver name='qemu' {driver}/>\n<source file='/d'>{inner}</source>\n<target dev='vda'/>\n</disk>"
    )
}

const SECRET: &str = "<secret type='passphrase' usage='u'/>";

#[test]
fn an_encrypted_file() {
    let disk = good(include_str!("../../../fixtures/disk/qcow2-luks.xml"));
    assert_eq!((disk.kind, disk.bus, disk.index()), (Kind::Disk, Bus::Virtio, 0));
    let image = disk.image.as_ref().unwrap();
    assert_eq!(image.format, Format::Qcow2);
    assert_eq!(image.encryption.as_ref().unwrap().engine, Engine::Qemu);
    assert_eq!(disk.serial.as_deref(), Some("system 1"));
    assert_eq!(disk.cache().map(|f| (f.write_cache, f.direct, f.no_flush)), Some((true, true, false)));
}

#[test]
fn the_old_place_of_encryption_counts() {
    let disk = good(include_str!("../../../fixtures/disk/raw-luks-scsi.xml"));
    let secrets = disk.secrets();
    assert_eq!(secrets.len(), 1);
    assert_eq!(secrets[0].lookup, SecretLookup::Usage("/dev/vg0/data".into()));
    assert_eq!(secrets[0].kind, UsageKind::Volume);
}

#[test]
fn secrets_come_storage_first_and_top_first() {
    let disk = good(include_str!("../../../fixtures/disk/rbd-librbd-layers.xml"));
    let kinds: Vec<_> = disk.secrets().iter().map(|s| s.kind).collect();
    assert_eq!(kinds, [UsageKind::Ceph, UsageKind::Volume, UsageKind::Volume]);
}

#[test]
fn cookies_do_not_show() {
    let disk = good(include_str!("../../../fixtures/disk/chain.xml"));
    assert_eq!(disk.chain().count(), 2);
    assert!(!format!("{disk:?}").contains("0123abcd"));
}

#[test]
fn encryption_without_a_secret() {
    let source = encrypted("type='qcow2'", "<encryption format='luks'/>");
    assert_eq!(refused(&source), "3: <encryption> has no <secret>");
}

#[test]
fn encryption_with_a_secret_that_names_none() {
    let source =
        encrypted("type='raw'", "<encryption format='luks'><secret type='passphrase'/></encryption>");
    assert_eq!(refused(&source), "3: <secret> names no secret");
}

#[test]
fn encryption_with_a_secret_of_another_type() {
    let source =
        encrypted("type='raw'", "<encryption format='luks'><secret type='ceph' usage='u'/></encryption>");
    assert_eq!(refused(&source), "3: an encryption's secret is of type 'passphrase'");
}

#[test]
fn librbd_on_what_is_not_rbd() {
    let source =
        encrypted("type='raw'", &format!("<encryption format='luks' engine='librbd'>{SECRET}</encryption>"));
    assert_eq!(refused(&source), "3: librbd decrypts RBD images only");
}

#[test]
fn luks_versions_that_qemu_does_not_do() {
    for format in ["luks2", "luks-any"] {
        let source = encrypted("type='raw'", &format!("<encryption format='{format}'>{SECRET}</encryption>"));
        assert_eq!(refused(&source), format!("3: QEMU's own encryption does not do '{format}'"));
    }
}

#[test]
fn several_secrets_for_qemu() {
    let source = encrypted("type='raw'", &format!("<encryption format='luks'>{SECRET}{SECRET}</encryption>"));
    assert_eq!(refused(&source), "3: an image that QEMU decrypts has one secret");
}

#[test]
fn the_old_qcow_format_and_encryption() {
    let source = encrypted("type='qcow2'", &format!("<encryption format='qcow'>{SECRET}</encryption>"));
    assert!(refused(&source).starts_with("3: QEMU's system emulators refuse the old 'qcow' encryption"));
    assert_eq!(refused(&encrypted("type='qcow'", "")), "2: the old 'qcow' format is not run");
}

#[test]
fn encryption_in_a_format_that_has_none() {
    for format in ["vmdk", "vdi", "qed"] {
        let source = encrypted(
            &format!("type='{format}'"),
            &format!("<encryption format='luks'>{SECRET}</encryption>"),
        );
        assert_eq!(refused(&source), format!("3: QEMU has no encryption for the format '{format}'"));
    }
}

#[test]
fn an_unknown_engine_or_format_of_encryption() {
    let source = encrypted("", &format!("<encryption format='luks' engine='dm'>{SECRET}</encryption>"));
    assert!(refused(&source).starts_with("3: 'dm' is not a value of 'engine'"));
    let source = encrypted("", &format!("<encryption format='bitlocker'>{SECRET}</encryption>"));
    assert!(refused(&source).starts_with("3: 'bitlocker' is not a value of 'format'"));
    let source = encrypted("", &format!("<encryption>{SECRET}</encryption>"));
    assert_eq!(refused(&source), "3: <encryption> lacks the attribute 'format'");
}

#[test]
fn encryption_given_twice() {
    let one = format!("<encryption format='luks'>{SECRET}</encryption>");
    let source = format!(
        "<disk>\n{one}\n<source file='/d'>\n{one}</source>\n<target dev='vda' bus='virtio'/>\n</disk>"
    );
    assert_eq!(refused(&source), "4: the encryption is given twice, in the <disk> and in its <source>");
    assert_eq!(refused(&encrypted("", &format!("{one}{one}"))), "3: <source> has more than one <encryption>");
}

#[test]
fn encryption_of_no_image() {
    let source = format!(
        "<disk device='cdrom'>\n<encryption format='luks'>{SECRET}</encryption>\n<target dev='sda' bus='sata'/></disk>"
    );
    assert_eq!(refused(&source), "2: there is no image that this encryption could be of");
}

#[test]
fn a_cipher_in_a_disk() {
    let source = encrypted(
        "type='raw'",
        &format!("<encryption format='luks'>{SECRET}<cipher name='aes' size='256'/></encryption>"),
    );
    assert_eq!(refused(&source), "3: <cipher> belongs in a volume, not in a disk");
}

#[test]
fn a_transient_disk() {
    let one = format!("<encryption format='luks'>{SECRET}</encryption>");
    let disk = |inner: &str| {
        format!("<disk>\n<source file='/d'>{inner}</source><target dev='vda'/>\n<transient/></disk>")
    };
    assert_eq!(refused(&disk(&one)), "3: a transient overlay of an encrypted disk would not be encrypted");
    assert_eq!(refused(&disk("")), "3: vmward has no transient disks");
}

#[test]
fn a_lun_with_encryption() {
    let source = format!(
        "<disk type='block' device='lun'><source dev='/dev/sdx'>\n<encryption format='luks'>{SECRET}</encryption></source><target dev='sda'/></disk>"
    );
    assert_eq!(refused(&source), "2: device='lun' passes commands to the unit past QEMU's decryption");
}

#[test]
fn a_vhost_user_disk_with_encryption() {
    let source = format!(
        "<disk type='vhostuser'><source type='unix' path='/s'>\n<encryption format='luks'>{SECRET}</encryption></source><target dev='vda'/></disk>"
    );
    assert_eq!(refused(&source), "2: QEMU does not see the data of this disk and cannot decrypt it");
}

#[test]
fn authentication() {
    let disk = |protocol: &str, outer: &str, inner: &str| {
        format!(
            "<disk type='network'>{outer}\n<source protocol='{protocol}' name='a/b'><host name='h'/>{inner}</source>\n<target dev='vda'/></disk>"
        )
    };
    let auth = |kind: &str| format!("<auth username='u'><secret type='{kind}' usage='s'/></auth>");
    let both = disk("rbd", &auth("ceph"), &auth("ceph"));
    assert_eq!(refused(&both), "2: the authentication is given twice, in the <disk> and in its <source>");
    let wrong = disk("rbd", "", &auth("iscsi"));
    assert_eq!(refused(&wrong), "2: a secret for 'iscsi' does not serve here: it takes 'ceph'");
    let none = disk("rbd", "", "<auth username='u'/>");
    assert_eq!(refused(&none), "2: <auth> has no <secret>");
    let untyped = disk("rbd", "", "<auth username='u'><secret usage='s'/></auth>");
    assert_eq!(refused(&untyped), "2: <secret> lacks the attribute 'type'");
    assert_eq!(refused(&disk("nbd", "", &auth("iscsi"))), "2: QEMU takes no password for 'nbd'");
    good(&disk("ssh", &auth("iscsi"), "<knownHosts path='/k'/><identity username='u'/>"));
    let ssh = |inner: &str| refused(&disk("ssh", &auth("iscsi"), inner));
    assert_eq!(ssh("<identity username='other'/>"), "2: <auth> has another user, 'u'");
    assert_eq!(
        ssh("<identity username='u' keyfile='/k'/>"),
        "2: <auth> logs in with a password, not with a key"
    );
    assert_eq!(ssh("<knownHosts path='k'/>"), "2: the file of known hosts is an absolute path");
    let local = format!("<disk>\n{}<source file='/d'/><target dev='vda'/></disk>", auth("ceph"));
    assert_eq!(refused(&local), "2: only network sources authenticate");
}

#[test]
fn names_and_places() {
    let disk = |rest: &str| format!("<disk {rest}</disk>");
    for (source, message) in [
        ("><source file='/d'/>", "1: <disk> lacks a <target>"),
        (
            "><source file='/d'/>\n<target dev='vda1'/>",
            "2: 'vda1' names a partition, and a disk's target is a whole disk",
        ),
        ("><source file='/d'/>\n<target dev='disk' bus='virtio'/>", "2: 'disk' is not the name of a disk"),
        (
            "><source file='/d'/>\n<target dev='vda' bus='xen'/>",
            "2: QEMU's x86_64 machines pc and q35 have no disk bus 'xen'",
        ),
        ("><target dev='vda'/>", "1: the disk 'vda' has no <source>"),
        (" device='cdrom'>\n<target dev='vda'/>", "2: there is no CD drive on the bus 'virtio'"),
        (
            " device='floppy'><source file='/d'/>\n<target dev='vda' bus='usb'/>",
            "2: there is no floppy drive on the bus 'usb'",
        ),
        (
            "><source file='/d'/><target dev='hda'/>\n<readonly/>",
            "2: there are no read-only disks on the bus 'ide'",
        ),
        (
            "><source file='/d'/><target dev='vda'/>\n<wwn>5000c50015ea71ad</wwn>",
            "2: only disks on ide, sata and scsi have a World Wide Name",
        ),
        (
            "><source file='/d'/><target dev='sda'/>\n<wwn>5000</wwn>",
            "2: '5000' is not a World Wide Name: 16 hexadecimal digits",
        ),
        (
            "><source file='/d'/><target dev='vda'/>\n<serial>a\"b</serial>",
            "2: 'a\"b' is not a serial number",
        ),
        (
            "><source file='/d'/><target dev='sda'/>\n<vendor>TOO LONG.</vendor>",
            "2: a disk's vendor is at most 8 printable ASCII characters",
        ),
        (
            " type='volume'>\n<source pool='p' volume='v'/><target dev='vda'/>",
            "2: vmward has no storage pools to look a volume up in",
        ),
        (
            ">\n<driver io='native'/><source file='/d'/><target dev='vda'/>",
            "2: io='native' needs cache='none' or cache='directsync'",
        ),
        (
            ">\n<driver name='tap2'/><source file='/d'/><target dev='vda'/>",
            "2: the driver 'tap2' is not QEMU's",
        ),
        (
            ">\n<driver queues='2'/><source file='/d'/><target dev='sda'/>",
            "2: this <driver> has options that only disks on the bus 'virtio' have",
        ),
        (
            "><driver type='qcow2'/><source file='/d'/><target dev='vda'/>\n<shareable/>",
            "2: several guests cannot write to one 'qcow2' image",
        ),
        (
            "><driver type='raw'/>\n<source file='/d'/><backingStore type='file'><format type='raw'/><source file='/e'/></backingStore><target dev='vda'/>",
            "2: an image of the format 'raw' has no backing image",
        ),
        (
            "><source file='/d'/><target dev='vda'/>\n<iotune><total_bytes_sec>9</total_bytes_sec><read_bytes_sec>1</read_bytes_sec></iotune>",
            "2: a limit on the bytes of all operations excludes one on reads or writes",
        ),
    ] {
        assert_eq!(refused(&disk(source)), message);
    }
}

#[test]
fn a_name_twice_points_at_the_first() {
    let source = "<devices>\n<disk><source file='/a'/><target dev='vda'/></disk>\n\
                  <disk><source file='/b'/><target dev='vda' bus='usb'/></disk>\n</devices>";
    let (_, diagnostics) = read(source);
    let list = diagnostics.sorted();
    assert_eq!(list.len(), 1);
    assert_eq!(&source[..list[0].span.start].matches('\n').count(), &2);
    let (first, _) = list[0].related.clone().unwrap();
    assert_eq!(source[..first.start].matches('\n').count(), 1);
}

#[test]
fn disks_are_ordered_by_bus_and_name() {
    let disk =
        |name: &str, bus: &str| format!("<disk><source file='/d'/><target dev='{name}' bus='{bus}'/></disk>");
    let all = [("vdb", "virtio"), ("sdaa", "scsi"), ("vda", "virtio"), ("sdb", "scsi"), ("vdc", "virtio")];
    let source = format!("<devices>{}</devices>", all.map(|(n, b)| disk(n, b)).concat());
    let (disks, _) = read(&source);
    let names: Vec<_> = disks.iter().map(|d| d.target.as_str()).collect();
    assert_eq!(names, ["vda", "vdb", "vdc", "sdb", "sdaa"]);
    assert_eq!(disks[4].index(), 26);
}

#[test]
fn what_is_not_honoured_is_said_once() {
    let source = "<disk rawio='yes' device='disk'><source file='/d' fdgroup='x'/><target dev='vda'/><backenddomain name='b'/></disk>";
    let (_, diagnostics) = read(source);
    let said: Vec<_> = diagnostics.sorted().iter().map(|d| d.message.clone()).collect();
    assert_eq!(
        said,
        [
            "vmward gives QEMU no privilege for raw SCSI commands",
            "vmward does not honour the attribute 'fdgroup' of <source>",
        ]
    );
}

#[test]
fn what_may_be_missing_is_left_out() {
    let disk = |kind: &str, name: &str, path: &str, policy: &str| {
        format!(
            "<disk device='{kind}'><source file='{path}' startupPolicy='{policy}'/><target dev='{name}'/></disk>"
        )
    };
    let all = [
        disk("disk", "vda", "/there", "optional"),
        disk("disk", "vdb", "/gone", "optional"),
        disk("cdrom", "sda", "/gone.iso", "optional"),
        disk("disk", "vdc", "/gone", "mandatory"),
        disk("disk", "vdd", "/gone", "requisite"),
    ];
    let (mut disks, diagnostics) = read(&format!("<devices>{}</devices>", all.concat()));
    assert!(diagnostics.is_empty());
    assert_eq!(leave_out_missing(&mut disks, |path| path == "/there"), ["/gone", "/gone.iso"]);
    let left: Vec<_> = disks.iter().map(|d| (d.target.as_str(), d.image.is_some())).collect();
    assert_eq!(left, [("vda", true), ("vdc", true), ("vdd", true), ("sda", false)]);
}

#[test]
fn data_in_another_image() {
    let disk = |format: &str, inner: &str, data: &str| {
        format!(
            "<disk><driver name='qemu' type='{format}'/>\n<source file='/d'>{inner}\n<dataStore type='file'><format type='{data}'/>\n<source file='/e'/></dataStore></source><target dev='vda'/></disk>"
        )
    };
    let good = good(&disk("qcow2", "", "raw"));
    assert!(good.image.unwrap().data_store.is_some());
    assert_eq!(refused(&disk("raw", "", "raw")), "4: only qcow2 images have their data elsewhere");
    assert_eq!(refused(&disk("qcow2", "", "qcow2")), "4: the data of a qcow2 image is in a plain raw image");
    let encryption = format!("<encryption format='luks'>{SECRET}</encryption>");
    assert_eq!(
        refused(&disk("qcow2", &encryption, "raw")),
        "2: an encrypted qcow2 image cannot have its data in another image"
    );
}

/// What is wrong with a whole guest that has these disks.
fn guest_errors(parts: &str, disks: &str) -> Vec<String> {
    let source = format!(
        "<domain type='qemu'><name>g</name><memory>65536</memory><os><type>hvm</type></os>{parts}<devices>{disks}</devices></domain>"
    );
    let mut diagnostics = Diagnostics::new();
    let root = xml::parse(&source, &mut diagnostics).unwrap();
    crate::domain::Domain::from_xml(&root, &mut diagnostics);
    diagnostics.sorted().iter().map(|d| d.message.clone()).collect()
}

#[test]
fn threads_that_the_guest_has_not() {
    let disk = "<disk><driver iothread='2'/><source file='/d'/><target dev='vda'/></disk>";
    assert_eq!(guest_errors("<iothreads>1</iothreads>", disk), ["the guest has no I/O thread 2"]);
    assert!(guest_errors("<iothreads>2</iothreads>", disk).is_empty());
}

#[test]
fn memory_that_others_have_to_see() {
    let disk = "<disk type='vhostuser'><source type='unix' path='/s'/><target dev='vda'/></disk>";
    assert_eq!(
        guest_errors("", disk),
        ["whoever serves this disk has to see the guest's memory, which is not shared"]
    );
    let shared = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>";
    assert!(guest_errors(shared, disk).is_empty());
}

#[test]
fn a_target_that_is_taken_is_said_once() {
    let disk = |path: &str| format!("<disk><source file='{path}'/><target dev='vda'/></disk>");
    assert_eq!(guest_errors("", &(disk("/a") + &disk("/b"))), ["the target 'vda' is taken already"]);
}

#[test]
fn a_drive_may_be_empty_in_several_ways() {
    for source in ["", "<source/>", "<source file=''/>", "<source startupPolicy='optional' index='3'/>"] {
        let disk = good(&format!("<disk device='cdrom'>{source}<target dev='sda' bus='sata'/></disk>"));
        assert!(disk.image.is_none(), "{source}");
        assert!(disk.readonly);
    }
}

#[test]
fn queues_are_served_by_one_thread_each() {
    let disk = |queues: &str, first: &str, second: &str| {
        format!(
            "<disk>\n<driver name='qemu' {queues}><iothreads><iothread id='1'>{first}</iothread><iothread id='2'>{second}</iothread></iothreads></driver><source file='/d'/><target dev='vda'/></disk>"
        )
    };
    let (zero, one) = ("<queue id='0'/>", "<queue id='1'/>");
    for wrong in [
        disk("queues='2'", zero, ""),
        disk("queues='2'", zero, zero),
        disk("queues='3'", zero, one),
        disk("", zero, one),
    ] {
        assert_eq!(refused(&wrong), "2: the queues of this disk are not all given to one I/O thread each");
    }
    for right in [disk("queues='2'", zero, one), disk("queues='2'", "", "")] {
        assert!(read(&right).1.is_empty());
    }
}

#[test]
fn directories_are_read_only_and_said_to_be_fat() {
    let disk = |driver: &str, rest: &str| {
        format!("<disk type='dir'>{driver}\n<source dir='/d'/><target dev='vda'/>{rest}</disk>")
    };
    let fat = "<driver name='qemu' type='fat'/>";
    assert_eq!(refused(&disk(fat, "")), "2: QEMU cannot write to a directory that it shows as a file system");
    assert_eq!(
        refused(&disk("", "<readonly/>")),
        "2: a directory is shown as 'fat', and only directories are"
    );
    assert!(read(&disk(fat, "<readonly/>")).1.is_empty());
}

#[test]
fn metadata_caches_have_sizes_with_any_unit() {
    let disk = |format: &str, size: &str| {
        format!(
            "<disk>\n<driver type='{format}'><metadata_cache><max_size {size}</max_size></metadata_cache></driver><source file='/d'/><target dev='vda'/></disk>"
        )
    };
    let (disks, diagnostics) = read(&disk("qcow2", "unit='T'>1"));
    assert!(diagnostics.is_empty());
    assert_eq!(disks[0].image.as_ref().unwrap().metadata_cache, Some(1 << 40));
    assert_eq!(refused(&disk("raw", ">1")), "2: <metadata_cache> is for qcow2");
}

#[test]
fn a_volume_of_a_pool_is_shown_and_never_started() {
    let source = "<disk type='volume'>\n<source pool='p' volume='v' mode='direct'><encryption format='luks'>\
                  <secret type='passphrase' usage='u'/></encryption></source><target dev='vda'/></disk>";
    let (disks, mut diagnostics) = read(source);
    assert!(matches!(&disks[0].image.as_ref().unwrap().source, Source::Volume(name) if name == "p/v"));
    assert!(diagnostics.has_errors());
    diagnostics.allow_showing();
    assert!(!diagnostics.has_errors());
    assert_eq!(
        refused("<disk type='volume'>\n<source pool='p'/><target dev='vda'/></disk>"),
        "2: <source> lacks the attribute 'volume'"
    );
}

#[test]
fn what_ssh_would_need_stops_a_start_alone() {
    let source = "<disk type='network'><source protocol='ssh' name='/i'><host name='h'/>\n\
                  <knownHosts path='/k'/><identity username='u' keyfile='/f'/></source><target dev='vda'/></disk>";
    let (disks, mut diagnostics) = read(source);
    assert_eq!(disks.len(), 1);
    assert_eq!(diagnostics.sorted().len(), 2);
    assert!(diagnostics.has_errors());
    diagnostics.allow_showing();
    assert!(!diagnostics.has_errors());
}

#[test]
fn a_unit_of_the_host_is_whole() {
    let source = "<disk type='block' device='lun'>\n<source dev='/dev/sda'><slices><slice type='storage' offset='0' size='512'/></slices></source><target dev='sda' bus='scsi'/></disk>";
    assert_eq!(refused(source), "2: device='lun' is a whole unit, not a slice of it");
}

#[test]
fn controllers_are_not_made_by_the_thousand() {
    let disk = |name: &str, address: &str| {
        format!(
            "<devices><disk type='file'><source file='/a'/><target dev='{name}' bus='scsi'/>{address}</disk></devices>"
        )
    };
    let at = |controller: u32| format!("<address type='drive' controller='{controller}'/>");
    assert_eq!(refused(&disk("sdsbda", "")), "1: no guest has as many disks as 'sdsbda' stands for");
    assert_eq!(refused(&disk("sda", &at(4_294_967_295))), "1: the index of a disk controller is 255 at most");
    good(&disk("sdzz", ""));
    good(&disk("sdzzzz", &at(255)));
}
