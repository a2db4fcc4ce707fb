//! Different guests, each started by `vmward run` on a real QEMU and ended: what is understood is also what runs.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod bare;
mod user;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use bare::{Host, SECRET, has_qemu_img};

const TPM_SECRET: &str = "7a1e3c52-0000-4000-8000-00000000cafe";

/// Why a guest cannot be started here.
fn missing(xml: &str) -> Option<String> {
    let has = |program: &str| {
        let path = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&path).any(|dir| dir.join(program).is_file())
    };
    if xml.contains("<tpm") && !(has("swtpm") && has("swtpm_setup")) {
        return Some("there is no swtpm".to_owned());
    }
    if xml.contains("@VIRTIOFSD@") && virtiofsd().is_none() {
        return Some("there is no virtiofsd".to_owned());
    }
    if xml.contains("<sound model='virtio'") && !emulator_has("virtio-sound-pci") {
        return Some("this QEMU has no virtio-sound".to_owned());
    }
    if xml.contains("<vsock") && !Path::new("/dev/vhost-vsock").exists() {
        return Some("this kernel has no vhost-vsock".to_owned());
    }
    None
}

/// Whether the QEMU under test has a device.
fn emulator_has(device: &str) -> bool {
    let emulator = env::var("VMWARD_TEST_EMULATOR").unwrap_or_else(|_| "qemu-system-x86_64".to_owned());
    let devices = Command::new(emulator).args(["-device", "help"]).output().unwrap();
    String::from_utf8_lossy(&devices.stdout).contains(&format!("\"{device}\""))
}

fn virtiofsd() -> Option<PathBuf> {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/virtiofsd/bin/virtiofsd");
    let places = ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"].map(PathBuf::from);
    places.into_iter().chain([made]).find(|path| path.exists())
}

/// The images that the guests have.
fn make_images(host: &Host) {
    host.image("secret.qcow2", "qcow2", true);
    host.image("secret.luks", "raw", true);
    host.image("base.qcow2", "qcow2", false);
    for name in ["plain.raw", "other.raw"] {
        host.image(name, "raw", false);
    }
    fs::write(host.path("floppy.raw"), vec![0; 1_474_560]).unwrap();
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
        .args([host.path("base.qcow2"), host.path("top.qcow2")])
        .status();
    assert!(made.unwrap().success());
}

/// Starts a guest of the fixtures, looks at it, and ends it.
fn starts(fixture: &Path) {
    let name = fixture.file_stem().unwrap().to_str().unwrap();
    let xml = fs::read_to_string(fixture).unwrap();
    if let Some(why) = missing(&xml) {
        println!("skipped: {name}: {why}");
        return;
    }
    let host = Host::new();
    make_images(&host);
    host.user.define(&format!("<uuid>{TPM_SECRET}</uuid><usage type='vtpm'><name>t</name></usage>"));
    host.user.ok(&["secret", "set-value", TPM_SECRET], b"the key of a TPM");
    let emulator = env::var("VMWARD_TEST_EMULATOR")
        .map_or_else(|_| String::new(), |path| format!("<emulator>{path}</emulator>"));
    let xml = xml
        .replace("@DIRECTORY@", host.user.home.path().to_str().unwrap())
        .replace("@SECRET@", SECRET)
        .replace("@TPM-SECRET@", TPM_SECRET)
        .replace("@VIRTIOFSD@", virtiofsd().unwrap_or_default().to_str().unwrap())
        .replace("<devices>", &format!("<devices>{emulator}"));
    // The supervisor's directory is that of the guest's name.
    let inner = xml.split("<name>").nth(1).unwrap().split('<').next().unwrap();
    let file = host.path(&format!("{inner}.xml"));
    fs::write(&file, &xml).unwrap();
    let run = host.running(&file);
    let status: serde_json::Value =
        serde_json::from_slice(&host.user.ok(&["status", "--json", inner], b"")).unwrap();
    assert_eq!(status["state"], "running", "{name}: {status}");
    let helpers = status["helpers"].as_array().unwrap();
    assert!(helpers.iter().all(|helper| helper["process"].is_u64()), "{name}: {status}");
    // libvirt's users find what was assigned in the live XML.
    let live = String::from_utf8(host.user.ok(&["dumpxml", inner], b"")).unwrap();
    assert!(live.contains("<alias name=") || !xml.contains("<disk"), "{live}");
    run.signal(Signal::SIGTERM);
    run.ends(0);
}

/// Makes a test of each fixture.
macro_rules! guests {
    ($($test:ident = $fixture:literal,)+) => {
        $(#[test]
        fn $test() {
            if has_qemu_img() {
                starts(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join($fixture));
            }
        })+

        #[test]
        fn no_guest_is_forgotten() {
            let listed = [$($fixture),+];
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/start");
            for entry in fs::read_dir(dir).unwrap() {
                let name = format!("start/{}", entry.unwrap().file_name().to_str().unwrap());
                assert!(listed.contains(&name.as_str()), "{name}");
            }
        }
    };
}

guests! {
    a_q35_machine_with_every_device = "devices/q35.xml",
    an_i440fx_machine_with_every_device = "devices/i440fx.xml",
    virtio_disks = "start/disks-virtio.xml",
    ide_disks_and_a_floppy = "start/disks-ide-floppy.xml",
    scsi_disks = "start/disks-scsi.xml",
    sata_and_usb_disks = "start/disks-sata-usb.xml",
    memory_in_numa_cells = "start/memory-numa.xml",
    a_processor_and_a_clock = "start/processor-clock.xml",
    character_devices = "start/character-devices.xml",
    a_virtio_sound_card = "start/sound-virtio.xml",
    graphics_and_sound = "start/graphics-sound.xml",
    network_interfaces = "start/interfaces.xml",
    devices_behind_switches_and_bridges = "start/express-devices.xml",
    a_directory_over_9p = "start/shared-directory-9p.xml",
    programs_beside_qemu = "start/helpers.xml",
    a_vsock = "start/vsock.xml",
}
