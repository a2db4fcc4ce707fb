//! What of devices is refused, with the words in which it is said.

use crate::domain::tests::{accepted, refused};

/// Each of these devices is refused.
fn refused_devices(cases: &[(&str, &str)]) {
    let guests: Vec<_> =
        cases.iter().map(|(devices, words)| (format!("<devices>{devices}</devices>"), *words)).collect();
    refused(&guests.iter().map(|(inside, words)| (inside.as_str(), *words)).collect::<Vec<_>>());
}

#[test]
fn devices_against_each_other() {
    refused_devices(&[
        ("<tpm><backend type='emulator'/></tpm><tpm><backend type='emulator'/></tpm>", "a guest has one TPM"),
        ("<smartcard mode='host'/><smartcard mode='host'/>", "QEMU has one smart card for a guest"),
        ("<panic model='isa'/><panic/>", "two panic notifiers are of model 'isa'"),
        ("<audio id='1' type='none'/><audio id='1' type='alsa'/>", "two <audio> have the id 1"),
        (
            "<channel type='spicevmc'><target type='virtio'/></channel><graphics type='vnc'/>",
            "leads to clients of SPICE",
        ),
        ("<redirdev type='spicevmc'/>", "leads to clients of SPICE"),
        ("<audio id='1' type='spice'/>", "sounds at clients of SPICE"),
        ("<smartcard mode='passthrough' type='spicevmc'/>", "leads to clients of SPICE"),
        (
            "<watchdog model='i6300esb' action='pause'/><watchdog model='itco'/>",
            "one action for all watchdogs",
        ),
        ("<watchdog model='ib700'/>", "the machine 'q35' has no watchdog of model 'ib700'"),
        (
            "<controller type='scsi' model='virtio-scsi'><driver iothread='3'/></controller>",
            "the guest has no I/O thread 3",
        ),
        (
            "<filesystem><driver type='virtiofs'/><source dir='/d'/><target dir='t'/></filesystem>",
            "has to see the guest's memory",
        ),
        ("<video><model type='virtio' blob='on'/></video>", "memory that is a memfd"),
        (
            "<hostdev mode='subsystem' type='mdev' model='vfio-pci' display='on'><source>\
             <address uuid='53764d0e-85a0-42b4-af5c-2046b460b1dc'/></source></hostdev>",
            "display='on' needs <graphics>",
        ),
    ]);
    refused(&[(
        "<os><type machine='pc'>hvm</type></os><devices><watchdog model='itco'/></devices>",
        "the machine 'pc' has no watchdog of model 'itco'",
    )]);
}

#[test]
fn character_devices() {
    let tcp = |protocol: &str| {
        format!(
            "<serial type='tcp'><source mode='bind' host='h' service='1'/><protocol type='{protocol}'/></serial>"
        )
    };
    refused_devices(&[
        (&tcp("tls"), "QEMU has no protocol 'tls'"),
        (&tcp("telnets"), "QEMU has no protocol 'telnets'"),
        (
            "<graphics type='spice'/><channel type='spicevmc'><target type='virtio' name='x'/></channel>",
            "a channel of type 'spicevmc' is called 'com.redhat.spice.0'",
        ),
        (
            "<serial type='null'><address type='pci' bus='0' slot='9'/></serial>",
            "a serial port of type isa-serial has no address of type 'pci'",
        ),
    ]);
}

#[test]
fn graphics_and_sound() {
    refused_devices(&[
        ("<graphics type='vnc' passwd='123456789'/>", "VNC passwords have 8 bytes at most"),
        (
            "<graphics type='spice' port='5900'><channel name='main' mode='secure'/></graphics>",
            "channels of SPICE are to be 'secure', and no port is",
        ),
        (
            "<graphics type='spice' tlsPort='5900' defaultMode='insecure'/>",
            "channels of SPICE are to be 'insecure', and no port is",
        ),
        ("<video><model type='vga' heads='2'/></video>", "a card of type 'vga' has one screen"),
        ("<video><model type='vga' vram='512'/></video>", "at least 1024 KiB of vram"),
        ("<video><model type='qxl' vgamem='9000'/></video>", "vgamem is a power of two"),
        (
            "<video><model type='vga'><acceleration accel3d='yes'/></model></video>",
            "only virtio cards accelerate 3D",
        ),
        ("<video><model type='virtio'><acceleration accel2d='yes'/></model></video>", "do not accelerate 2D"),
        ("<video><driver iommu='on'/><model type='vga'/></video>", "are for virtio cards"),
        (
            "<audio id='1' type='none'><input><settings frequency='1'/></input></audio>",
            "<settings> needs fixedSettings='yes'",
        ),
    ]);
}

#[test]
fn other_devices() {
    refused_devices(&[
        (
            "<input type='mouse' bus='virtio' model='virtio-transitional'/>",
            "there is no mouse of model 'virtio-transitional'",
        ),
        (
            "<input type='evdev' bus='usb'><source dev='/dev/input/event0'/></input>",
            "there is no evdev on the usb bus",
        ),
        (
            "<tpm model='tpm-crb'><backend type='emulator' version='1.2'/></tpm>",
            "a TPM 1.2 has no command response buffer",
        ),
        ("<iommu model='intel'><driver eim='on'/></iommu>", "eim='on' needs intremap='on'"),
        ("<shmem name='s'><model type='ivshmem-doorbell'/></shmem>", "lacks the <server>"),
        (
            "<smartcard mode='host'><address type='ccid' controller='0' slot='1'/></smartcard>",
            "a smart card reader has only slot 0",
        ),
        ("<pstore backend='acpi-erst'/>", "<pstore> lacks its <size>"),
        ("<interface type='user'><mac address='52-54-00-00-00-01'/></interface>", "is not a MAC address"),
        ("<interface type='user'><mtu size='1400'/></interface>", "have no MTU of their own"),
        ("<interface type='user'><coalesce><rx/></coalesce></interface>", "do not coalesce interrupts"),
        ("<input type='tablet'><acpi index='0'/></input>", "ACPI indexes are 1 to 16383"),
    ]);
}

#[test]
fn controllers() {
    let pci = |model: &str, inside: &str| {
        format!("<controller type='pci' index='1' model='{model}'>{inside}</controller>")
    };
    refused_devices(&[
        ("<controller type='scsi' model='ibmvscsi'/>", "QEMU has no SCSI controller 'ibmvscsi' for x86_64"),
        (&pci("pcie-root-port", "<target chassis='300'/>"), "chassis is 255 at most"),
        (&pci("pcie-root-port", "<target chassisNr='3'/>"), "a pcie-root-port has no chassisNr"),
        (&pci("pci-bridge", "<target hotplug='off'/>"), "a pci-bridge has no hotplug"),
        (&pci("pci-bridge", "<target><node>0</node></target>"), "a pci-bridge belongs to no NUMA node"),
        (&pci("pcie-root-port", "<model name='pxb'/>"), "'pxb' is not a device that is a pcie-root-port"),
        (&pci("pcie-root-port", "<pcihole64>1</pcihole64>"), "have a window for 64-bit addresses"),
    ]);
}

#[test]
fn what_a_running_guest_prints_is_read() {
    let domain = accepted(
        "<devices><hostdev mode='subsystem' type='usb'><source startupPolicy='optional'><vendor id='0x1'/>\
         <product id='0x2'/><address bus='1' device='2'/></source></hostdev>\
         <interface type='user'><backenddomain name='d'/><target dev='vnet3'/><alias name='net0'/></interface>\
         <smartcard mode='host' type='spicevmc'/></devices>",
    );
    assert_eq!(domain.devices.hostdevs.len(), 1);
    assert_eq!(domain.devices.interfaces[0].target, None);
}
