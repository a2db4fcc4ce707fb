//! Guests with every kind of device on a real QEMU: it takes what is printed, on both chipsets.
#![allow(clippy::unwrap_used, reason = "this is a test")]

use std::env;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use command_fds::{CommandFdExt, FdMapping};
use serde_json::{Value, json};
use vmward::domain::Domain;
use vmward::qemu::{self, Capabilities, CommandLine, Resource, SecretSource, SocketPath};
use vmward::secret::{MASTER_KEY_ID, MasterKey, os_random};
use vmward::xml::{self, Diagnostics};

fn emulator() -> Option<PathBuf> {
    let path: PathBuf =
        env::var_os("VMWARD_TEST_EMULATOR").unwrap_or_else(|| "/usr/bin/qemu-system-x86_64".into()).into();
    if !path.exists() {
        eprintln!("skipped: there is no {}", path.display());
        return None;
    }
    Some(path)
}

/// A fixture as a domain with its command line. What is wrong with it is shown.
fn build(fixture: &str, capabilities: &Capabilities, directory: &Path) -> (Domain, CommandLine) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/devices").join(fixture);
    let source = fs::read_to_string(&path).unwrap();
    let source = source.replace("@DIRECTORY@", directory.to_str().unwrap());
    let mut diagnostics = Diagnostics::new();
    let built = xml::parse(&source, &mut diagnostics).and_then(|root| {
        let mut domain = Domain::from_xml(&root, &mut diagnostics)?;
        let line = qemu::build(&mut domain, capabilities, &mut diagnostics)?;
        Some((domain, line))
    });
    assert!(!diagnostics.has_errors(), "{}", diagnostics.render(fixture, &source));
    built.unwrap()
}

/// What the supervisor would open.
fn open(line: &CommandLine, directory: &Path) -> Vec<FdMapping> {
    let mut mappings = Vec::new();
    for descriptor in &line.descriptors {
        let parent_fd: OwnedFd = match &descriptor.resource {
            Resource::UnixListener(SocketPath::Given(path)) => UnixListener::bind(path).unwrap().into(),
            Resource::UnixListener(SocketPath::InLibDir(name)) => {
                UnixListener::bind(directory.join(name)).unwrap().into()
            }
            Resource::File { path, .. } => {
                OpenOptions::new().create(true).append(true).open(path).unwrap().into()
            }
            other => panic!("the fixture needs {other:?}"),
        };
        mappings.push(FdMapping { parent_fd, child_fd: descriptor.numbers[0] });
    }
    mappings
}

/// Starts QEMU, asks it for its state and its devices, and ends it.
fn start(fixture: &str) {
    let Some(emulator) = emulator() else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut capabilities = Capabilities::of_program(&emulator, &directory.path().join("cache")).unwrap();
    capabilities.host.runtime_dir = directory.path().to_owned();
    let (domain, line) = build(fixture, &capabilities, directory.path());
    fs::create_dir(directory.path().join(domain.name())).unwrap();

    let master = MasterKey::generate(&mut os_random()).unwrap();
    let key = directory.path().join("key");
    fs::write(&key, master.value().expose()).unwrap();
    let arguments = line
        .render(|secret| match &secret.source {
            SecretSource::Xml(value) | SecretSource::Once(value) => Ok(master.seal(value, &mut os_random())),
            SecretSource::Keystore(_) => Err("the fixtures use no keystore"),
        })
        .unwrap();

    let mut command = Command::new(&emulator);
    command
        .args(["-S", "-no-user-config", "-nodefaults", "-chardev", "stdio,id=monitor"])
        .args(["-mon", "chardev=monitor,mode=control"])
        .args(["-object", &format!("secret,id={MASTER_KEY_ID},format=raw,file={}", key.display())])
        .args(&arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.fd_mappings(open(&line, directory.path())).unwrap();
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    for question in [
        json!({"execute": "qmp_capabilities"}),
        json!({"execute": "query-status"}),
        json!({"execute": "qom-list", "arguments": {"path": "/machine/peripheral"}}),
        json!({"execute": "quit"}),
    ] {
        writeln!(input, "{question}").unwrap();
    }
    let answers: Vec<Value> = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
        .filter_map(|line| serde_json::from_str::<Value>(&line).ok()?.get("return").cloned())
        .collect();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "QEMU ended with {}: {said}\n{arguments:#?}", output.status);
    assert_eq!(answers[1]["status"], "prelaunch", "{said}");
    // QEMU knows devices by the aliases that were assigned.
    let there: Vec<_> =
        answers[2].as_array().unwrap().iter().filter_map(|device| device["name"].as_str()).collect();
    let devices = &domain.devices;
    let infos = devices
        .interfaces
        .iter()
        .map(|d| &d.info)
        .chain(devices.channels.iter().map(|d| &d.info))
        .chain(devices.serials.iter().map(|d| &d.info))
        .chain(devices.sounds.iter().map(|d| &d.info))
        .chain(devices.inputs.iter().map(|d| &d.info))
        .chain(devices.memballoon.iter().map(|d| &d.info));
    for info in infos {
        let alias = info.alias.as_deref().unwrap();
        assert!(there.contains(&alias), "{alias} is not among {there:?}");
    }
}

#[test]
fn q35_with_every_device() {
    start("q35.xml");
}

#[test]
fn i440fx_with_every_device() {
    start("i440fx.xml");
}
