//! What QEMU is told of devices.

use crate::domain::Domain;
use crate::qemu::{self, Capabilities};
use crate::xml::{self, Diagnostics};

/// The options of a q35 guest with these devices in which a word stands.
fn told_with(capabilities: &Capabilities, devices: &str, word: &str) -> Vec<String> {
    let source = format!(
        "<domain type='qemu'><name>g</name><uuid>5a0f4c62-7b0e-4a67-9a55-5f3a8d2b9c03</uuid>\
         <memory unit='MiB'>64</memory><vcpu>1</vcpu><os><type machine='q35'>hvm</type></os>\
         <features><acpi/></features><devices>{devices}</devices></domain>"
    );
    let mut diagnostics = Diagnostics::new();
    let line = xml::parse(&source, &mut diagnostics).and_then(|root| {
        let mut domain = Domain::from_xml(&root, &mut diagnostics)?;
        qemu::build(&mut domain, capabilities, &mut diagnostics)
    });
    let Some(line) = line else { panic!("{}", diagnostics.render("guest.xml", &source)) };
    let all = line.render(|_| Err("no secrets here")).unwrap();
    all.chunks(2).map(|option| option.join(" ")).filter(|option| option.contains(word)).collect()
}

fn told(devices: &str, word: &str) -> Vec<String> {
    told_with(&Capabilities::latest(), devices, word)
}

/// What there is to say about a q35 guest with these devices that cannot be built.
fn refused(devices: &str) -> String {
    let source = format!(
        "<domain type='qemu'><name>g</name><memory unit='MiB'>64</memory><os><type machine='q35'>hvm</type></os>\
         <devices>{devices}</devices></domain>"
    );
    let mut diagnostics = Diagnostics::new();
    let root = xml::parse(&source, &mut diagnostics).unwrap();
    let mut domain = Domain::from_xml(&root, &mut diagnostics).unwrap();
    assert!(qemu::build(&mut domain, &Capabilities::latest(), &mut diagnostics).is_none());
    diagnostics.render("guest.xml", &source)
}

#[test]
fn tls_on_character_devices() {
    let serial = |mode: &str| {
        format!(
            "<serial type='tcp'><source mode='{mode}' host='h' service='1' tls='yes'/><protocol type='raw'/></serial>"
        )
    };
    assert_eq!(
        told(&serial("bind"), "tls"),
        [
            r#"-object {"qom-type":"tls-creds-x509","id":"objcharserial0_tls0","dir":"/etc/pki/qemu","endpoint":"server","verify-peer":true}"#,
            "-chardev socket,id=charserial0,host=h,port=1,server=on,wait=off,tls-creds=objcharserial0_tls0",
        ]
    );
    assert!(told(&serial("connect"), "tls")[0].contains(r#""endpoint":"client""#));
}

#[test]
fn seconds_and_milliseconds_until_a_socket_connects_again() {
    let serial = "<serial type='unix'><source mode='connect' path='/s'><reconnect enabled='yes' timeout='2'/></source></serial>";
    assert_eq!(told(serial, "charserial0,path"), ["-chardev socket,id=charserial0,path=/s,reconnect=2"]);
    let mut newer = Capabilities::latest();
    newer.version = (9, 2, 0);
    assert_eq!(
        told_with(&newer, serial, "charserial0,path"),
        ["-chardev socket,id=charserial0,path=/s,reconnect-ms=2000"]
    );
}

#[test]
fn secure_channels_of_spice() {
    assert_eq!(
        told(
            "<graphics type='spice' port='5910' tlsPort='5911' defaultMode='insecure'><channel name='main' mode='secure'/><channel name='inputs' mode='any'/></graphics>",
            "-spice"
        ),
        [
            "-spice port=5910,tls-port=5911,x509-dir=/etc/pki/qemu,addr=127.0.0.1,plaintext-channel=default,tls-channel=main,seamless-migration=on"
        ]
    );
    // What a running guest's XML says of ports is not kept, and TLS is not used where nobody asks for it.
    assert_eq!(
        told("<graphics type='spice' port='5917' tlsPort='5918' autoport='yes'/>", "-spice"),
        ["-spice port=5901,addr=127.0.0.1,seamless-migration=on"]
    );
    assert_eq!(
        told("<graphics type='spice' autoport='yes' defaultMode='secure'/>", "-spice"),
        [
            "-spice tls-port=5902,x509-dir=/etc/pki/qemu,addr=127.0.0.1,tls-channel=default,seamless-migration=on"
        ]
    );
}

#[test]
fn sound_goes_where_the_last_graphics_take_it() {
    let both = |first: &str, second: &str| {
        let graphics = |kind: &str| format!("<graphics type='{kind}'/>");
        told(&(graphics(first) + &graphics(second)), "-audiodev")
    };
    assert_eq!(both("spice", "vnc"), [r#"-audiodev {"id":"audio1","driver":"none"}"#]);
    assert_eq!(both("vnc", "spice"), [r#"-audiodev {"id":"audio1","driver":"spice"}"#]);
    assert!(
        refused("<graphics type='sdl'/><sound model='ac97'/>").contains("has no <audio> to play this card")
    );
}

#[test]
fn a_virtio_sound_card() {
    assert_eq!(
        told("<sound model='virtio'><driver packed='on'/></sound>", "sound0"),
        [
            r#"-device {"driver":"virtio-sound-pci","packed":true,"id":"sound0","audiodev":"audio1","streams":2,"bus":"pci.1","addr":"0x0"}"#
        ]
    );
}

#[test]
fn a_store_for_last_words() {
    assert_eq!(
        told("<pstore backend='acpi-erst'><size unit='KiB'>64</size></pstore>", "pstore0"),
        [
            r#"-object {"qom-type":"memory-backend-file","id":"mempstore0","mem-path":"/var/lib/libvirt/qemu/nvram/g_PSTORE.raw","size":65536,"share":true}"#,
            r#"-device {"driver":"acpi-erst","id":"pstore0","memdev":"mempstore0","bus":"pci.4","addr":"0x1"}"#,
        ]
    );
    let without_acpi = refused("<pstore backend='acpi-erst'><size>64</size></pstore>");
    assert!(without_acpi.contains("<pstore> needs ACPI"), "{without_acpi}");
}

#[test]
fn rendering_takes_the_first_device_of_the_host() {
    assert_eq!(
        told("<graphics type='egl-headless'/>", "-display"),
        ["-display egl-headless,rendernode=/dev/dri/foo"]
    );
    let mut none = Capabilities::latest();
    none.host.render_node = None;
    assert_eq!(told_with(&none, "<graphics type='egl-headless'/>", "-display"), ["-display egl-headless"]);
}

#[test]
fn datagrams_come_from_any_port_where_none_is_named() {
    assert_eq!(
        told("<serial type='udp'><source mode='connect' host='h' service='1'/></serial>", "-chardev udp"),
        ["-chardev udp,id=charserial0,host=h,port=1,localaddr=,localport=0"]
    );
}

#[test]
fn usb_ports_are_given_in_one_order() {
    let devices = "<controller type='usb' model='qemu-xhci' ports='8'/><input type='tablet'/>\
                   <serial type='null'><target type='usb-serial'/></serial><sound model='usb'/>\
                   <interface type='user'><model type='usb-net'/></interface>\
                   <disk><source file='/d'/><target dev='sda' bus='usb'/></disk>";
    for (alias, port) in [("usb-disk0", 1), ("net0", 2), ("sound0", 3), ("serial0", 4), ("input0", 5)] {
        let option = told(devices, &format!("\"id\":\"{alias}\"")).concat();
        assert!(option.contains(&format!("\"port\":\"{port}\"")), "{option}");
    }
}
