//! Disks on a real QEMU: what storage plans is what QEMU takes, encrypted images are opened with their secret, and
//! headers say what [`storage::image`] thinks they say.
#![allow(clippy::unwrap_used, reason = "this is a test")]

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use vmward::domain::Domain;
use vmward::domain::disk::{Bus, all_from_xml};
use vmward::qemu::{Argument, Capabilities, CommandLine, storage};
use vmward::secret::{MASTER_KEY_ID, MasterKey, SecretValue, os_random};
use vmward::xml::{self, Diagnostics};

/// The QEMU to try.
fn qemu() -> PathBuf {
    env::var_os("VMWARD_TEST_EMULATOR").unwrap_or_else(|| "/usr/bin/qemu-system-x86_64".into()).into()
}

const PASSPHRASE: &str = "not the passphrase of anything real";

/// Whether the programs are there; a machine without them cannot run these tests, and says so.
fn has_programs() -> bool {
    let there = qemu().exists() && Command::new("qemu-img").arg("--version").output().is_ok();
    if !there {
        eprintln!("skipped: {} and qemu-img are needed", qemu().display());
    }
    there
}

/// Makes an image with qemu-img; `options` follow `-o`.
fn create(path: &Path, format: &str, options: &str) {
    let mut passphrase = tempfile::NamedTempFile::new().unwrap();
    passphrase.write_all(PASSPHRASE.as_bytes()).unwrap();
    let object = format!("secret,id=s,file={}", passphrase.path().display());
    let make = || {
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-f", format, "--object", &object]);
        if !options.is_empty() {
            command.args(["-o", options]);
        }
        command.arg(path).arg("4M").status().unwrap().success()
    };
    // Old versions give up on LUKS where the machine is too busy to time the key derivation.
    assert!((0..20).any(|_| make()));
}

/// QEMU with disks, stopped before the guest's first instruction, and its monitor on its standard streams.
struct Running {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Running {
    fn start(domain: &Domain, passphrase: &str, directory: &Path) -> Self {
        let master = MasterKey::generate(&mut os_random()).unwrap();
        let key_file = directory.join("master-key.aes");
        std::fs::write(&key_file, master.value().expose()).unwrap();
        let mut diagnostics = Diagnostics::new();
        let capabilities = Capabilities::probe(&qemu()).unwrap();
        let mut line = CommandLine::default();
        for plan in storage::plan_disks(domain, &capabilities, &mut diagnostics) {
            line.disk(plan);
        }
        assert!(diagnostics.is_empty());
        let value = SecretValue::copy_of(passphrase.as_bytes()).unwrap();
        let seal = |_: &_| Ok::<_, ()>(master.seal(&value, &mut os_random()));
        let mut child = Command::new(qemu())
            .args(["-M", "pc", "-m", "64", "-nodefaults", "-display", "none", "-S", "-qmp", "stdio"])
            .args(["-object", &format!("secret,id={MASTER_KEY_ID},format=raw,file={}", key_file.display())])
            .args(["-device", "virtio-scsi-pci,id=scsi0", "-device", "qemu-xhci,id=usb"])
            .args(line.render(seal).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        assert!(!line.arguments.iter().any(|a| matches!(a, Argument::Text(_, t) if t.contains(passphrase))));
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut running = Self { child, lines };
        running.lines.next();
        running
    }

    /// The answer to a command; `None` if QEMU has ended.
    fn ask(&mut self, command: &str, arguments: Value) -> Option<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.child.stdin.as_mut()?, "{request}").ok()?;
        loop {
            let answer: Value = serde_json::from_str(&self.lines.next()?.ok()?).ok()?;
            if answer.get("event").is_none() {
                return Some(answer);
            }
        }
    }

    /// What QEMU said when it ended by itself.
    fn last_words(mut self) -> String {
        drop(self.child.stdin.take());
        let status = self.child.wait().unwrap();
        assert!(!status.success());
        let mut words = String::new();
        std::io::Read::read_to_string(&mut self.child.stderr.take().unwrap(), &mut words).unwrap();
        words
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A guest with these disks, each where its name says.
fn guest(disks: &str) -> Domain {
    let source = format!("<devices>{disks}</devices>");
    let mut diagnostics = Diagnostics::new();
    let root = xml::parse(&source, &mut diagnostics).unwrap();
    let mut domain = Domain::default();
    domain.devices.disks = all_from_xml(&root, &mut diagnostics);
    assert!(!diagnostics.has_errors(), "{}", diagnostics.render("disks.xml", &source));
    for disk in &mut domain.devices.disks {
        let unit = disk.index();
        let place = match disk.bus {
            Bus::Virtio => json!({ "bus": "pci.0", "addr": format!("{:#x}", unit + 8) }),
            Bus::Scsi => json!({ "bus": "scsi0.0", "channel": 0, "scsi-id": 0, "lun": unit }),
            Bus::Usb => json!({ "bus": "usb.0", "port": "1" }),
            _ => json!({ "bus": format!("ide.{}", unit / 2), "unit": unit % 2 }),
        };
        disk.info.alias = Some(format!("{}-{unit}", disk.bus.as_str()));
        disk.info.place = place.as_object().unwrap().clone();
    }
    domain
}

const ENCRYPTION: &str = "<encryption format='luks'><secret type='passphrase' usage='test'/></encryption>";

#[test]
fn encrypted_images_open_with_their_secret_and_only_so() {
    if !has_programs() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    create(&path("base.qcow2"), "qcow2", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10");
    let backing = format!(
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,backing_fmt=raw,backing_file={}",
        path("raw").display()
    );
    for name in ["raw", "plain", "usb"] {
        std::fs::write(path(name), vec![0; 4 << 20]).unwrap();
    }
    create(&path("top.qcow2"), "qcow2", &backing);
    create(&path("raw.luks"), "luks", "key-secret=s,iter-time=10");
    let d = directory.path().display();
    let disks = format!(
        "<disk><driver name='qemu' type='qcow2' cache='none' discard='unmap' detect_zeroes='unmap' copy_on_read='on'/>
           <source file='{d}/top.qcow2'>{ENCRYPTION}</source>
           <backingStore type='file'><format type='raw'/><source file='{d}/raw'/><backingStore/></backingStore>
           <target dev='vda' bus='virtio'/><serial>one</serial>
           <iotune><total_bytes_sec>1000000</total_bytes_sec><total_bytes_sec_max>2000000</total_bytes_sec_max></iotune></disk>
         <disk><driver name='qemu' type='raw' io='threads' error_policy='stop'/><source file='{d}/raw.luks'>{ENCRYPTION}</source>
           <target dev='sda' bus='scsi' rotation_rate='1'/><wwn>5000c50015ea71aa</wwn><vendor>VENDOR</vendor></disk>
         <disk><driver name='qemu' type='qcow2'/><source file='{d}/base.qcow2'/>{ENCRYPTION}<target dev='hda' bus='ide'/></disk>
         <disk device='cdrom'><target dev='hdc' bus='ide'/></disk>
         <disk><source file='{d}/usb'/><target dev='sdb' bus='usb' removable='on'/>
           <iotune><read_iops_sec>100</read_iops_sec><group_name>g</group_name></iotune></disk>
         <disk><source file='{d}/plain'/><target dev='sdc' bus='scsi'/><shareable/>
           <iotune><read_iops_sec>100</read_iops_sec><group_name>g</group_name></iotune></disk>"
    );
    let domain = guest(&disks);
    let mut qemu = Running::start(&domain, PASSPHRASE, directory.path());
    qemu.ask("qmp_capabilities", json!({})).expect("QEMU runs");
    let nodes = qemu.ask("query-named-block-nodes", json!({ "flat": true })).unwrap();
    let encrypted: Vec<_> = nodes["return"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|n| n["encrypted"] == true)
        .map(|n| n["node-name"].as_str().unwrap().to_owned())
        .collect();
    for name in ["libvirt-6-format", "libvirt-5-format", "libvirt-3-format"] {
        assert!(encrypted.iter().any(|n| n == name), "{name} is not among the encrypted {encrypted:?}");
    }
    let plans = storage::plan_disks(&domain, &Capabilities::latest(), &mut Diagnostics::new());
    for throttle in plans.into_iter().filter_map(|plan| plan.throttle) {
        let answer = qemu.ask("block_set_io_throttle", Value::Object(throttle)).unwrap();
        assert!(answer.get("return").is_some(), "{answer}");
    }
    drop(qemu);

    let words = Running::start(&domain, "another passphrase", directory.path()).last_words();
    assert!(words.contains("Invalid password"), "{words}");
}

#[test]
fn headers_are_what_qemu_img_writes() {
    if !has_programs() {
        return;
    }
    use storage::image::{Crypt, Kind, SNIFF_LEN, sniff};
    let directory = tempfile::tempdir().unwrap();
    let sniffed = |name: &str, format: &str, options: &str| {
        let path = directory.path().join(name);
        create(&path, format, options);
        let bytes = std::fs::read(path).unwrap();
        sniff(&bytes[..bytes.len().min(SNIFF_LEN)])
    };
    assert_eq!(sniffed("a", "luks", "key-secret=s,iter-time=10"), Kind::Luks(1));
    assert_eq!(
        sniffed("b", "qcow2", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"),
        Kind::Qcow2(Crypt::Luks)
    );
    assert_eq!(sniffed("c", "qcow2", ""), Kind::Qcow2(Crypt::None));
    assert_eq!(sniffed("d", "raw", ""), Kind::Other);
    assert_eq!(sniffed("e", "vmdk", ""), Kind::Other);
}
