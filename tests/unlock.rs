//! Raw LUKS disks that vmward unlocks instead of QEMU: which they are, that their data is what others write and read, and
//! that nothing of the opening is left.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod bare;
mod images;
mod slow;
mod user;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::json;
use vmward_crypt::{Cipher, Direction};

use bare::{Host, PASSPHRASE, SECRET};
use slow::{
    NbdServer, WORTHWHILE, can_unlock, deriving, disk, headers_beside, image, image_of_cryptsetup, inventory,
    qmp, unlocked,
};
use user::wait_until;

/// qemu-io on an encrypted image that no guest has open.
fn qemu_io(image: &Path, command: &str) {
    let options = format!("driver=luks,key-secret=s,file.driver=file,file.filename={}", image.display());
    let done = Command::new("qemu-io")
        .args([
            "--object",
            &format!("secret,id=s,data={PASSPHRASE}"),
            "--image-opts",
            &options,
            "-c",
            command,
        ])
        .output()
        .unwrap();
    let said = [done.stdout, done.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(done.status.success() && !said.contains("failed"), "{command}: {said}");
}

/// Writes as the guest would, through its device.
fn write_in_guest(host: &Host, guest: &str, alias: &str, command: &str) {
    let line = format!("qemu-io -d /machine/peripheral/{alias}/virtio-backend \"{command}\"");
    qmp(host, guest, "human-monitor-command", json!({ "command-line": line }));
}

/// What QEMU decrypts of a node, through a server that others read.
fn read_in_guest(host: &Host, guest: &str, node: &str) -> Vec<u8> {
    let socket = host.path("nbd.sock");
    let address = json!({ "type": "unix", "data": { "path": socket } });
    qmp(host, guest, "nbd-server-start", json!({ "addr": address }));
    let export = json!({ "type": "nbd", "id": "e", "node-name": node, "name": "x" });
    qmp(host, guest, "block-export-add", export);
    let out = host.path("decrypted");
    let from = format!("driver=nbd,export=x,server.type=unix,server.path={}", socket.display());
    let done = Command::new("qemu-img")
        .args(["convert", "--image-opts", &from, "-O", "raw"])
        .arg(&out)
        .status()
        .unwrap();
    assert!(done.success());
    qmp(host, guest, "nbd-server-stop", json!({}));
    let bytes = fs::read(&out).unwrap();
    fs::remove_file(out).unwrap();
    bytes
}

/// What qemu-img decrypts of an image with its own header and passphrase.
fn read_outside(host: &Host, image: &Path) -> Vec<u8> {
    let out = host.path("outside");
    let driver = if image.starts_with("/dev") { "host_device" } else { "file" };
    let options = format!("driver=luks,key-secret=s,file.driver={driver},file.filename={}", image.display());
    let done = Command::new("qemu-img")
        .args(["convert", "--object", &format!("secret,id=s,data={PASSPHRASE}"), "--image-opts", &options])
        .args(["-O", "raw"])
        .arg(&out)
        .status()
        .unwrap();
    assert!(done.success());
    let bytes = fs::read(&out).unwrap();
    fs::remove_file(out).unwrap();
    bytes
}

/// What the kernel decrypts of an image, where this process may ask it.
fn read_by_cryptsetup(host: &Host, image: &Path) -> Option<Vec<u8>> {
    let name = format!("vmward-test-{}", std::process::id());
    let mut open = Command::new("cryptsetup")
        .args(["open", "--type", "luks1", "--readonly", "--key-file", "-", image.to_str().unwrap(), &name])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let _ = open.stdin.take().unwrap().write_all(PASSPHRASE.as_bytes());
    if !open.wait().unwrap().success() {
        println!("skipped: cryptsetup opens no image here (it needs root and the kernel's device mapper)");
        return None;
    }
    let copy = host.path("by-cryptsetup");
    let read = fs::copy(format!("/dev/mapper/{name}"), &copy);
    assert!(Command::new("cryptsetup").args(["close", &name]).status().unwrap().success());
    read.unwrap();
    Some(fs::read(copy).unwrap())
}

/// What the volume key that cryptsetup derives opens, without the kernel's help.
fn read_with_key_of_cryptsetup(image: &Path) -> Option<Vec<u8>> {
    let key = slow::volume_key(image)?;
    let header = slow::header(image);
    let cipher = Cipher::from_names(&header.cipher, &header.mode).unwrap();
    let mut data = fs::read(image).unwrap().split_off(header.payload_offset as usize);
    cipher.apply(&key, Direction::Decrypt, &mut data).unwrap();
    Some(data)
}

fn attach(host: &Host, guest: &str, disk: &str) {
    host.user.ok(&["attach-device", guest, "-"], disk.as_bytes());
}

#[test]
fn slow_disks_are_unlocked_outside_and_others_are_not() {
    let host = Host::new();
    if !can_unlock(&host) {
        return;
    }
    let slow = [image(&host, "a", WORTHWHILE), image(&host, "b", WORTHWHILE)];
    let cheap = host.image("c", "raw", true);
    let qcow2 = host.image("d", "qcow2", true);
    let disks = [
        disk(&slow[0], "vda"),
        disk(&slow[1], "vdb"),
        disk(&cheap, "vdc"),
        bare::disk(&qcow2, "qcow2", Some(SECRET)).replace("vda", "vdd"),
    ];
    let guest = host.guest("mixed", &disks.concat());
    let images = slow.clone().map(|path| fs::read(path).unwrap());
    let run = host.running(&guest);
    let expected = [("vda", true), ("vdb", true), ("vdc", false), ("vdd", false)];
    assert_eq!(unlocked(&host, "mixed"), expected.map(|(target, by)| (target.to_owned(), by)));
    let shown = String::from_utf8(host.user.ok(&["status", "mixed"], b"")).unwrap();
    assert!(shown.contains("vda (virtio-disk0), encrypted, unlocked by vmward\n"), "{shown}");
    assert!(shown.contains("vdc (virtio-disk2), encrypted\n"), "{shown}");
    let info = |path: &Path| {
        String::from_utf8(host.user.ok(&["volume", "info", path.to_str().unwrap()], b"")).unwrap()
    };
    assert!(info(&slow[1]).contains("mixed as vdb, unlocked by vmward\n"), "{}", info(&slow[1]));
    assert!(info(&cheap).contains("mixed as vdc\n"), "{}", info(&cheap));
    // What was made for the opening is wiped as soon as it is done.
    let headers = headers_beside(run.qemu());
    assert!(!headers.is_empty() && headers.iter().all(|h| h.len() > 4096), "{}", headers.len());
    assert!(headers.iter().all(|header| header.iter().all(|byte| *byte == 0)));
    assert!(headers_beside(run.supervisor()).is_empty());
    let objects = qmp(&host, "mixed", "qom-list", json!({ "path": "/objects" })).to_string();
    assert!(!objects.contains("format-encryption-secret"), "{objects}");
    // Not a byte of the images has changed.
    assert_eq!(slow.map(|path| fs::read(path).unwrap()), images);
    run.signal(Signal::SIGTERM);
    run.ends(0);
}

#[test]
fn whoever_says_so_has_qemu_unlock_its_disks() {
    let host = Host::new();
    if !can_unlock(&host) {
        return;
    }
    let guest = host.guest("own", &disk(&image(&host, "a", WORTHWHILE), "vda"));
    let by_qemu = [("vda".to_owned(), false)];
    let mut run = host.start(&guest, &["--unlock=qemu"]);
    run.ready();
    assert_eq!(unlocked(&host, "own"), by_qemu);
    run.signal(Signal::SIGTERM);
    run.ends(0);
    fs::write(host.path("vmward.toml"), "keystore = 'file:secrets'\nunlock = 'qemu'\n").unwrap();
    let run = host.running(&guest);
    assert_eq!(unlocked(&host, "own"), by_qemu);
    run.signal(Signal::SIGTERM);
    run.ends(0);
    fs::write(host.path("vmward.toml"), "unlock = 'nobody'\n").unwrap();
    let said = host.fails(78, &guest);
    assert!(said.contains("'unlock'") && said.contains("auto or qemu"), "{said}");
}

#[test]
fn the_data_is_what_others_write_and_read() {
    let host = Host::new();
    if !can_unlock(&host) {
        return;
    }
    let (cold, hot) = (image(&host, "cold", WORTHWHILE), image_of_cryptsetup(&host, "hot", WORTHWHILE));
    for image in [&cold, &hot] {
        qemu_io(image, "write -P 0x11 0 1M");
    }
    let before = [&cold, &hot].map(|image| read_outside(&host, image));
    let run = host.running(&host.guest("data", &disk(&cold, "vda")));
    attach(&host, "data", &disk(&hot, "vdb"));
    assert_eq!(unlocked(&host, "data"), [("vda".to_owned(), true), ("vdb".to_owned(), true)]);
    for (node, before) in ["libvirt-1-format", "libvirt-2-format"].into_iter().zip(&before) {
        assert!(read_in_guest(&host, "data", node) == *before, "{node} reads something else");
    }
    let mut inside = Vec::new();
    for (alias, node) in [("virtio-disk0", "libvirt-1-format"), ("virtio-disk1", "libvirt-2-format")] {
        write_in_guest(&host, "data", alias, "write -P 0x22 512k 2M");
        write_in_guest(&host, "data", alias, "write -P 0x33 4095k 1k");
        inside.push(read_in_guest(&host, "data", node));
    }
    run.signal(Signal::SIGTERM);
    run.ends(0);
    for (image, inside) in [&cold, &hot].into_iter().zip(inside) {
        assert_eq!((inside[0], inside[600 << 10], inside[(4 << 20) - 1]), (0x11, 0x22, 0x33));
        assert!(read_outside(&host, image) == inside, "qemu-img reads something else");
        if let Some(read) = read_with_key_of_cryptsetup(image) {
            assert!(read == inside, "cryptsetup's key opens something else");
        }
        if let Some(read) = read_by_cryptsetup(&host, image) {
            assert!(read == inside, "cryptsetup reads something else");
        }
    }
}

#[test]
fn images_on_servers_are_unlocked_outside() {
    let host = Host::new();
    if !can_unlock(&host) {
        return;
    }
    let images =
        [image(&host, "cold", WORTHWHILE), host.image("cheap", "raw", true), image(&host, "hot", WORTHWHILE)];
    for image in &images {
        qemu_io(image, "write -P 0x11 0 1M");
    }
    let before = images.each_ref().map(|image| read_outside(&host, image));
    let header =
        |image: &Path| fs::read(image).unwrap()[..slow::header(image).payload_offset as usize].to_vec();
    let headers = images.each_ref().map(|image| header(image));
    let servers = images.each_ref().map(|image| NbdServer::of(image));
    let [cold, cheap, hot] = &servers;
    let disks = [cold.disk("vda"), cheap.disk("vdb").replace("</disk>", "<readonly/></disk>")].concat();
    let run = host.running(&host.guest("net", &disks));
    attach(&host, "net", &hot.disk("vdc"));
    let with_all = inventory(&host, &run, "net");
    let by = [("vda", true), ("vdb", false), ("vdc", true)].map(|(target, by)| (target.to_owned(), by));
    assert_eq!(unlocked(&host, "net"), by);
    let shown = String::from_utf8(host.user.ok(&["status", "net"], b"")).unwrap();
    assert!(shown.contains("vda (virtio-disk0), encrypted, unlocked by vmward\n"), "{shown}");
    let headers_in_qemu = headers_beside(run.qemu());
    assert!(!headers_in_qemu.is_empty() && headers_in_qemu.concat().iter().all(|byte| *byte == 0));
    assert!(headers_beside(run.supervisor()).is_empty());
    // The key slots are out of reach, and QEMU, which knows others, is not asked.
    let said = host.user.fails(77, &["volume", "rekey", "--force", "--domain", "net", "vda"], b"");
    assert!(said.contains("its image is not on this host"), "{said}");
    // Another supervisor knows it as well.
    run.signal(Signal::SIGKILL);
    run.ended();
    let run = host.running(&host.path("net.xml"));
    assert_eq!(unlocked(&host, "net"), by);
    let mut inside = Vec::new();
    for (alias, node, before) in
        [("virtio-disk0", "libvirt-2-format", &before[0]), ("virtio-disk2", "libvirt-3-format", &before[2])]
    {
        assert!(read_in_guest(&host, "net", node) == *before, "{node} reads something else");
        write_in_guest(&host, "net", alias, "write -P 0x22 512k 2M");
        inside.push(read_in_guest(&host, "net", node));
    }
    // The bare machine's firmware lets go of no PCI device: the disk stays until the end.
    assert_eq!(inventory(&host, &run, "net"), with_all);
    run.signal(Signal::SIGTERM);
    run.ends(0);
    drop(servers);
    for ((image, header_before), inside) in
        [(&images[0], &headers[0]), (&images[2], &headers[2])].into_iter().zip(inside)
    {
        assert!(read_outside(&host, image) == inside, "qemu-img reads something else");
        assert_eq!((inside[0], inside[600 << 10]), (0x11, 0x22));
        assert!(header(image) == *header_before, "the header has changed");
    }
}

#[test]
fn a_guest_goes_on_while_a_server_does_not_answer() {
    let host = Host::new();
    if !can_unlock(&host) {
        return;
    }
    let server = NbdServer::of(&image(&host, "a", WORTHWHILE));
    let run = host.running(&host.guest("stopped", "<controller type='usb' model='qemu-xhci'/>"));
    let before = inventory(&host, &run, "stopped");
    server.signal(Signal::SIGSTOP);
    let disk = server.disk("sda").replace("'virtio'", "'usb'");
    let mut attach = host.user.start(&["attach-device", "stopped", "-"], disk.as_bytes());
    wait_until("nobody reads from the server", || !server.readers().is_empty());
    // It is asked while the server is waited for.
    qmp(&host, "stopped", "query-status", json!({}));
    assert!(attach.try_wait().unwrap().is_none());
    server.signal(Signal::SIGCONT);
    let attached = attach.wait_with_output().unwrap();
    assert!(attached.status.success(), "{}", String::from_utf8_lossy(&attached.stderr));
    assert_eq!(unlocked(&host, "stopped"), [("sda".to_owned(), true)]);
    host.user.ok(&["detach-device", "stopped", "sda"], b"");
    assert_eq!(inventory(&host, &run, "stopped"), before);
    run.signal(Signal::SIGTERM);
    run.ends(0);
}

/// A loop device, which is a block device as any other.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn on(file: &Path) -> Option<Self> {
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        match made {
            Ok(made) if made.status.success() => {
                Some(Self(String::from_utf8(made.stdout).unwrap().trim_end().into()))
            }
            _ => {
                println!(
                    "skipped: no loop devices can be made here (that takes root, and a kernel that has them)"
                );
                None
            }
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn block_devices_are_unlocked_outside_and_rekeyed() {
    let host = Host::new();
    if !can_unlock(&host) {
        return;
    }
    let images = [image(&host, "cold", WORTHWHILE), image(&host, "hot", WORTHWHILE)];
    for image in &images {
        qemu_io(image, "write -P 0x11 0 1M");
    }
    let Some(devices) = images.iter().map(|image| LoopDevice::on(image)).collect::<Option<Vec<_>>>() else {
        return;
    };
    let block = |device: &LoopDevice, target: &str| {
        disk(&device.0, target).replace("type='file'", "type='block'").replace("file='", "dev='")
    };
    // The cold one past the cache. The hot one has a secret of its own, whose value changes alone.
    let cold = block(&devices[0], "vda").replace("type='raw'/>", "type='raw' cache='none'/>");
    let other = "3f0c2a55-5d43-4c6a-9a8e-5a1d1f0f7c21";
    host.secret(other, PASSPHRASE);
    let hot = block(&devices[1], "sda").replace("'virtio'", "'usb'").replace(SECRET, other);
    let guest = host.guest("block", &format!("<controller type='usb' model='qemu-xhci'/>{cold}"));
    let run = host.running(&guest);
    let before = inventory(&host, &run, "block");
    attach(&host, "block", &hot);
    assert_eq!(unlocked(&host, "block"), [("vda".to_owned(), true), ("sda".to_owned(), true)]);
    write_in_guest(&host, "block", "virtio-disk0", "write -P 0x22 512k 2M");
    let inside = read_in_guest(&host, "block", "libvirt-1-format");
    assert_eq!((inside[0], inside[600 << 10]), (0x11, 0x22));
    assert_eq!(read_in_guest(&host, "block", "libvirt-2-format")[0], 0x11);
    // In use.
    host.user.ok(&["volume", "rekey", "--domain", "block", "sda"], b"");
    host.user.ok(&["detach-device", "block", "sda"], b"");
    assert_eq!(inventory(&host, &run, "block"), before);
    attach(&host, "block", &hot);
    // With a generated key it is QEMU's again.
    assert_eq!(unlocked(&host, "block"), [("vda".to_owned(), true), ("sda".to_owned(), false)]);
    assert_eq!(read_in_guest(&host, "block", "libvirt-3-format")[0], 0x11);
    host.user.ok(&["detach-device", "block", "sda"], b"");
    assert_eq!(inventory(&host, &run, "block"), before);
    run.signal(Signal::SIGTERM);
    run.ends(0);
    // At rest.
    assert!(read_outside(&host, &devices[0].0) == inside, "qemu-img reads something else");
    host.user.ok(&["volume", "rekey", "--secret", SECRET, devices[0].0.to_str().unwrap()], b"");
    let run = host.running(&guest);
    assert_eq!(unlocked(&host, "block"), [("vda".to_owned(), false)]);
    assert!(read_in_guest(&host, "block", "libvirt-1-format") == inside);
    run.signal(Signal::SIGTERM);
    run.ends(0);
    // The file below has it, without the device.
    drop(devices);
    let value = String::from_utf8(host.user.ok(&["secret", "get-value", SECRET], b"")).unwrap();
    assert_ne!(value, PASSPHRASE);
    assert_eq!(images::opens(images[0].to_str().unwrap(), "raw", &value), Ok(()));
}

#[test]
fn nobody_else_writes_to_an_image_meanwhile() {
    let host = Host::new();
    if !can_unlock(&host) {
        return;
    }
    let (cold, hot) = (image(&host, "cold", WORTHWHILE), image(&host, "hot", WORTHWHILE));
    let run = host.running(&host.guest("locks", &disk(&cold, "vda")));
    attach(&host, "locks", &disk(&hot, "vdb"));
    let write = |image: &Path| {
        let written =
            Command::new("qemu-io").args(["-f", "raw", "-c", "write 0 512"]).arg(image).output().unwrap();
        String::from_utf8_lossy(&written.stderr).into_owned()
    };
    for image in [&cold, &hot] {
        let said = write(image);
        assert!(said.contains("Failed to get \"write\" lock"), "{said}");
    }
    // Nor does another guest.
    let said = host.fails(75, &host.guest("second", &disk(&cold, "vda")));
    assert!(said.contains("lock"), "{said}");
    run.signal(Signal::SIGTERM);
    run.ends(0);
    assert_eq!(write(&cold), "");
}

#[test]
fn read_only_disks_and_those_past_the_cache_are_opened_as_they_should_be() {
    let host = Host::new();
    if !can_unlock(&host) {
        return;
    }
    let (direct, read_only) = (image(&host, "direct", WORTHWHILE), image(&host, "read-only", WORTHWHILE));
    let disks = [
        disk(&direct, "vda").replace("type='raw'/>", "type='raw' cache='none'/>"),
        disk(&read_only, "vdb").replace("</disk>", "<readonly/></disk>"),
    ];
    let guest = host.guest("modes", &disks.concat());
    let mut run = host.start(&guest, &[]);
    run.ready();
    let by_vmward = unlocked(&host, "modes");
    let flags = |image: &Path| {
        let process = run.qemu();
        let entries = fs::read_dir(format!("/proc/{process}/fd")).unwrap().filter_map(Result::ok);
        let ours = entries.filter(|e| fs::read_link(e.path()).is_ok_and(|to| to == image));
        let flags = ours.map(|e| {
            let info =
                fs::read_to_string(format!("/proc/{process}/fdinfo/{}", e.file_name().display())).unwrap();
            let flags = info.lines().find_map(|l| l.strip_prefix("flags:")).unwrap().trim().to_owned();
            i32::from_str_radix(&flags, 8).unwrap()
        });
        flags.collect::<Vec<_>>()
    };
    use nix::libc::{O_ACCMODE, O_DIRECT, O_RDONLY, O_RDWR};
    let (of_direct, of_read_only) = (flags(&direct), flags(&read_only));
    assert!(!of_direct.is_empty() && !of_read_only.is_empty());
    assert!(of_direct.iter().all(|f| f & O_ACCMODE == O_RDWR && f & O_DIRECT != 0), "{of_direct:?}");
    assert!(of_read_only.iter().all(|f| f & O_ACCMODE == O_RDONLY), "{of_read_only:?}");
    assert_eq!(by_vmward, [("vda".to_owned(), true), ("vdb".to_owned(), true)]);
    run.signal(Signal::SIGTERM);
    run.ends(0);
}

#[test]
fn a_disk_that_is_taken_out_leaves_nothing() {
    let host = Host::new();
    if !can_unlock(&host) {
        return;
    }
    let guest = host.guest("out", "<controller type='usb' model='qemu-xhci'/>");
    let mut run = host.running(&guest);
    let before = inventory(&host, &run, "out");
    let usb = disk(&image(&host, "a", WORTHWHILE), "sda").replace("'virtio'", "'usb'");
    for killed in [false, true] {
        attach(&host, "out", &usb);
        if killed {
            run.signal(Signal::SIGKILL);
            run.ended();
            run = host.running(&guest);
        }
        assert_eq!(unlocked(&host, "out"), [("sda".to_owned(), true)]);
        assert_ne!(inventory(&host, &run, "out"), before);
        host.user.ok(&["detach-device", "out", "sda"], b"");
        assert_eq!(inventory(&host, &run, "out"), before);
    }
    run.signal(Signal::SIGTERM);
    run.ends(0);
}

#[test]
fn a_guest_goes_on_while_a_disk_is_unlocked() {
    let host = Host::new();
    if !can_unlock(&host) {
        return;
    }
    let run = host.running(&host.guest("on", ""));
    let slow = disk(&image(&host, "a", slow::LONG), "vda");
    let attach = host.user.start(&["attach-device", "on", "-"], slow.as_bytes());
    deriving(run.supervisor());
    // It is asked while the key is derived, and answers before that is done.
    qmp(&host, "on", "query-status", json!({}));
    assert!(unlocked(&host, "on").is_empty());
    let attached = attach.wait_with_output().unwrap();
    assert!(attached.status.success(), "{}", String::from_utf8_lossy(&attached.stderr));
    wait_until("the disk does not come", || unlocked(&host, "on") == [("vda".to_owned(), true)]);
    run.signal(Signal::SIGTERM);
    run.ends(0);
}

#[test]
fn check_says_what_takes_long_at_each_start() {
    let host = Host::new();
    if !bare::has_qemu_img() {
        return;
    }
    let (long, short) = (image(&host, "long", slow::LONG), image(&host, "short", WORTHWHILE));
    let guest = host.guest("check", &[disk(&long, "vda"), disk(&short, "vdb")].concat());
    let output = host.user.run(&["check", guest.to_str().unwrap()], b"");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    // 24 million blocks of the key, and some of the digest.
    assert!(said.contains(&format!("{} takes about 3.2 s to open", long.display())), "{said}");
    assert!(!said.contains(&format!("{} takes", short.display())), "{said}");
}
