//! TLS of displays and character devices: certificates whose key has a passphrase, seen by another program's client, and
//! read again while the guest runs.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod bare;
mod images;
mod port;
mod slow;
mod steps;
mod user;

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use bare::{Host, Run, disk, has_qemu_img, objects};
use port::free_port;
use steps::{CERTIFICATES, Scene, can_stop};

/// The secret with the passphrase of the keys.
const SECRET: &str = "0a7c5e52-0000-4000-8000-0000000000e1";
/// The secret with the display's password.
const PASSWORD: &str = "0a7c5e52-0000-4000-8000-0000000000d1";
const PASSPHRASE: &str = "the key's own passphrase";

/// A directory with a certificate authority, a client's certificate, and those of a server.
struct Pki(PathBuf);

impl Pki {
    /// `None`, and a word why, where there is no openssl.
    fn new(host: &Host) -> Option<Self> {
        if Command::new("openssl").arg("version").output().is_err() {
            println!("skipped: there is no openssl");
            return None;
        }
        let pki = Self(host.path("pki"));
        fs::create_dir(&pki.0).unwrap();
        pki.openssl("req -x509 -newkey rsa:2048 -nodes -subj /CN=authority -keyout ca-key.pem -out ca-cert.pem -days 2");
        pki.certificate("client", "a-client", false);
        pki.certificate("server", "one", true);
        Some(pki)
    }

    fn openssl(&self, arguments: &str) {
        let output =
            Command::new("openssl").args(arguments.split(' ')).current_dir(&self.0).output().unwrap();
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// A certificate for a name, in the place of the one that is there.
    fn certificate(&self, role: &str, name: &str, encrypted: bool) {
        self.openssl("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out new-key.pem");
        self.openssl(&format!("req -new -key new-key.pem -subj /CN={name} -out new.csr"));
        fs::write(
            self.0.join("extensions"),
            format!("extendedKeyUsage={role}Auth\nbasicConstraints=CA:FALSE\n"),
        )
        .unwrap();
        self.openssl(&format!(
            "x509 -req -in new.csr -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -days 2 \
             -extfile extensions -out {role}-cert.pem"
        ));
        if encrypted {
            fs::write(self.0.join("pass"), PASSPHRASE).unwrap();
            self.openssl(&format!("pkcs8 -topk8 -in new-key.pem -passout file:pass -out {role}-key.pem"));
        } else {
            fs::rename(self.0.join("new-key.pem"), self.0.join(format!("{role}-key.pem"))).unwrap();
        }
    }

    fn xml(&self) -> String {
        format!("<tls directory='{}'><secret type='passphrase' uuid='{SECRET}'/></tls>", self.0.display())
    }

    /// A client with a certificate, which verifies the server's.
    fn client(&self, port: u16) -> Command {
        let mut client = Command::new("openssl");
        client
            .args(["s_client", "-connect", &format!("127.0.0.1:{port}"), "-verify_return_error"])
            .args(["-CAfile", "ca-cert.pem", "-cert", "client-cert.pem", "-key", "client-key.pem"])
            .current_dir(&self.0);
        client
    }

    /// The name in the certificate of what listens on a port, which a client with a certificate has verified.
    fn name_at(&self, port: u16) -> String {
        let output = self.client(port).stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        // A connection from the moment of a change may be dropped.
        let verified = said.contains("Verify return code: 0 (ok)");
        let subject = said.lines().find_map(|l| l.strip_prefix("subject=")).filter(|_| verified);
        subject.map_or_else(
            || format!("{output:?}"),
            |s| s.trim_start_matches("CN").trim_start_matches([' ', '=']).to_owned(),
        )
    }

    /// The same of a VNC display.
    fn name_of_vnc(&self, socket: &Path) -> String {
        match port_of_vnc(socket) {
            Ok(port) => self.name_at(port),
            Err(e) => e.to_string(),
        }
    }

    /// A client that has been let in by a VNC display, and stays.
    fn stays_at_vnc(&self, socket: &Path) -> Child {
        let mut client = self.client(port_of_vnc(socket).unwrap());
        let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(client.stdout.as_mut().unwrap()).lines();
        assert!(said.any(|line| line.unwrap().contains("Verify return code: 0 (ok)")));
        client
    }
}

/// A port for one client, behind which a VNC display begins with TLS.
fn port_of_vnc(socket: &Path) -> io::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let vnc = ask_for_tls(socket)?;
    thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        pass_on(client, vnc);
    });
    Ok(port)
}

/// The words before TLS begins on a VNC connection: security type VeNCrypt, in it X509VNC or X509None.
fn ask_for_tls(socket: &Path) -> io::Result<UnixStream> {
    const VENCRYPT: u8 = 19;
    let mut vnc = UnixStream::connect(socket)?;
    vnc.set_read_timeout(Some(Duration::from_secs(60)))?;
    let version: [u8; 12] = read(&mut vnc)?;
    vnc.write_all(&version)?;
    assert_eq!(read(&mut vnc)?, [1, VENCRYPT]);
    vnc.write_all(&[VENCRYPT])?;
    assert_eq!(read(&mut vnc)?, [0, 2]);
    vnc.write_all(&[0, 2])?;
    assert_eq!(read(&mut vnc)?, [0, 1], "the version is understood, and there is one way in");
    let way: [u8; 4] = read(&mut vnc)?;
    assert!([260, 261].contains(&u32::from_be_bytes(way)), "{way:?}");
    vnc.write_all(&way)?;
    assert_eq!(read(&mut vnc)?, [1]);
    Ok(vnc)
}

fn read<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn pass_on(mut client: TcpStream, mut vnc: UnixStream) {
    let (mut to_client, mut from_vnc) = (client.try_clone().unwrap(), vnc.try_clone().unwrap());
    let back = thread::spawn(move || {
        let _ = io::copy(&mut from_vnc, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    let _ = io::copy(&mut client, &mut vnc);
    let _ = vnc.shutdown(Shutdown::Both);
    back.join().unwrap();
}

fn reload(host: &Host) -> String {
    let output = host.user.run(&["reload-tls", "guest"], b"");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    said
}

/// Returns what the supervisor has said.
fn destroyed(host: &Host, run: Run) -> String {
    host.user.ok(&["destroy", "guest"], b"");
    run.ends(0)
}

fn vnc_guest(host: &Host, inside: &str) -> (PathBuf, PathBuf) {
    let socket = host.path("vnc.sock");
    let display = format!(
        "<graphics type='vnc'><listen type='socket' socket='{}'/>{inside}</graphics>",
        socket.display()
    );
    (host.guest("guest", &display), socket)
}

/// A guest whose VNC display has a certificate for `one`; with its socket.
fn display() -> Option<(Host, Pki, PathBuf, Run)> {
    let host = Host::new();
    let pki = Pki::new(&host)?;
    host.secret(SECRET, PASSPHRASE);
    let (xml, socket) = vnc_guest(&host, &pki.xml());
    let run = host.running(&xml);
    Some((host, pki, socket, run))
}

#[test]
fn a_displays_certificates_are_read_again() {
    let Some((host, pki, socket, run)) = display() else { return };
    assert_eq!(pki.name_of_vnc(&socket), "one");
    assert_eq!(objects(&host), ["masterKey0", "vnc-tls-creds0"]);
    pki.certificate("server", "two", true);
    assert_eq!(pki.name_of_vnc(&socket), "one");
    assert!(reload(&host).contains("VNC uses the new certificates"));
    assert_eq!(pki.name_of_vnc(&socket), "two");
    assert_eq!(objects(&host), ["masterKey0", "vnc-tls-creds0"]);
    // The signal that daemons take for this.
    pki.certificate("server", "three", true);
    run.signal(Signal::SIGHUP);
    let start = Instant::now();
    loop {
        let name = pki.name_of_vnc(&socket);
        if name == "three" {
            break;
        }
        // The port may be closed at that moment.
        assert!(start.elapsed() < Duration::from_secs(60), "the signal is not heard: {name}");
        thread::sleep(Duration::from_millis(50));
    }
    destroyed(&host, run);
}

/// What QEMU answers.
fn qmp(host: &Host, command: &str) -> serde_json::Value {
    serde_json::from_slice(&host.user.ok(&["qmp", "guest", command], b"")).unwrap()
}

/// Whether this QEMU may crash when certificates are exchanged under a client that is connecting.
fn frees_certificates(host: &Host) -> bool {
    let version = qmp(host, "query-version");
    let part = |name: &str| version["qemu"][name].as_u64().unwrap();
    (part("major"), part("minor")) < (10, 2)
}

#[test]
fn certificates_are_not_exchanged_under_a_client_that_is_connecting() {
    let Some((host, pki, socket, run)) = display() else { return };
    pki.certificate("server", "two", true);
    let waits = ask_for_tls(&socket).unwrap();
    if frees_certificates(&host) {
        let said = host.user.fails(75, &["reload-tls", "guest"], b"");
        assert!(said.contains("the old ones stay in use: 1 client(s)") && said.contains("10.2"), "{said}");
        assert_eq!(pki.name_of_vnc(&socket), "one");
        assert_eq!(objects(&host), ["masterKey0", "vnc-tls-creds0"]);
        // It is waited for.
        let goes = thread::spawn(move || {
            thread::sleep(Duration::from_secs(1));
            drop(waits);
        });
        assert!(reload(&host).contains("VNC uses the new certificates"));
        goes.join().unwrap();
    } else {
        assert!(reload(&host).contains("VNC uses the new certificates"));
        drop(waits);
    }
    assert_eq!(pki.name_of_vnc(&socket), "two");
    destroyed(&host, run);
}

#[test]
fn who_is_connected_already_is_in_nobodys_way() {
    let host = Host::new();
    let Some(pki) = Pki::new(&host) else { return };
    host.secret(SECRET, PASSPHRASE);
    for verify in [true, false] {
        let xml = if verify { pki.xml() } else { pki.xml().replace("<tls", "<tls verify='no'") };
        let (xml, socket) = vnc_guest(&host, &xml);
        let run = host.running(&xml);
        let mut client = pki.stays_at_vnc(&socket);
        // Without certificates of clients QEMU does not tell who is through.
        if !verify && frees_certificates(&host) {
            let said = host.user.fails(75, &["reload-tls", "guest"], b"");
            assert!(said.contains("verify='no'"), "{said}");
        } else {
            reload(&host);
        }
        assert_eq!(client.try_wait().unwrap(), None);
        client.kill().unwrap();
        client.wait().unwrap();
        reload(&host);
        destroyed(&host, run);
    }
}

#[test]
fn certificates_are_exchanged_again_and_again_under_clients() {
    let Some((host, pki, socket, run)) = display() else { return };
    thread::scope(|scope| {
        let clients = scope.spawn(|| {
            let mut let_in = 0;
            while let_in < 40 {
                // Whoever comes while the port is closed is not let in. Whoever is, is served.
                if let Ok(port) = port_of_vnc(&socket) {
                    assert_eq!(pki.name_at(port), "one");
                    let_in += 1;
                }
            }
        });
        while !clients.is_finished() {
            run.signal(Signal::SIGHUP);
            thread::sleep(Duration::from_millis(10));
        }
    });
    destroyed(&host, run);
}

#[test]
fn exchange_killed() {
    let scene = Scene::new("qcow2");
    let host = &scene.host;
    let Some(pki) = Pki::new(host).filter(|_| can_stop()) else { return };
    host.secret(SECRET, PASSPHRASE);
    let run = host.running(&scene.guest);
    let closes = frees_certificates(host);
    destroyed(host, run);
    if !closes {
        println!("skipped: this QEMU exchanges certificates without closing its port");
        return;
    }
    let socket = host.path("vnc.sock");
    let listen = format!("<listen type='socket' socket='{}'/>", socket.display());
    let (on_socket, on_port) = ("<graphics type='vnc'>", "<graphics type='vnc' autoport='yes'>");
    scene.add(&format!("{on_socket}{listen}{}</graphics>", pki.xml()));
    let again = |_: &Run, at: &str| {
        assert_eq!(pki.name_of_vnc(&socket), "one", "{at}");
        reload(host);
        assert_eq!(pki.name_of_vnc(&socket), "one", "{at}");
        assert_eq!(objects(host), ["masterKey0", "vnc-tls-creds0"], "{at}");
    };
    scene.at_each(CERTIFICATES, &["reload-tls", "guest"], "", again, || {});
    scene.replace(on_socket, on_port);
    scene.replace(&listen, "");
    let again = |_: &Run, at: &str| {
        let before = qmp(host, "query-vnc");
        assert_eq!((&before["enabled"], &before["host"]), (&true.into(), &"127.0.0.1".into()), "{at}");
        reload(host);
        assert_eq!(qmp(host, "query-vnc"), before, "{at}");
    };
    scene.at_each(CERTIFICATES, &["reload-tls", "guest"], "", again, || {});
}

#[test]
fn a_port_that_is_lost_meanwhile_is_taken_again() {
    let host = Host::new();
    let Some(pki) = Pki::new(&host).filter(|_| can_stop()) else { return };
    host.secret(SECRET, PASSPHRASE);
    let port = free_port();
    let display = format!("<graphics type='vnc' port='{port}' autoport='no'>{}</graphics>", pki.xml());
    let guest = host.guest("guest", &display);
    let at = "DisplayClosed:1";
    let mut run = steps::start(&host, &guest, at);
    run.ready();
    if !frees_certificates(&host) {
        println!("skipped: this QEMU exchanges certificates without closing its port");
        destroyed(&host, run);
        return;
    }
    let client = host.user.start(&["reload-tls", "guest"], b"");
    run.stopped(at);
    let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    run.signal(Signal::SIGCONT);
    let output = client.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains("VNC does not listen any more") && said.contains("reload-tls"), "{said}");
    drop(taken);
    reload(&host);
    let service = qmp(&host, "query-vnc")["service"].clone();
    assert_eq!(service, port.to_string());
    destroyed(&host, run);
}

#[test]
fn certificates_that_are_of_no_use_leave_the_old_ones() {
    let Some((host, pki, socket, mut run)) = display() else { return };
    let fails = |exit: i32| {
        let said = host.user.fails(exit, &["reload-tls", "guest"], b"");
        assert_eq!(pki.name_of_vnc(&socket), "one");
        assert_eq!(objects(&host), ["masterKey0", "vnc-tls-creds0"]);
        assert!(!said.contains(PASSPHRASE), "{said}");
        said
    };
    pki.certificate("server", "two", true);
    host.user.ok(&["secret", "set-value", SECRET], b"wrong");
    let said = fails(69);
    assert!(said.contains("the old ones stay in use") && said.contains("<secret>"), "{said}");
    host.user.ok(&["secret", "undefine", SECRET], b"");
    fails(66);
    host.secret(SECRET, PASSPHRASE);
    fs::write(pki.0.join("server-cert.pem"), "no certificate").unwrap();
    fails(69);
    // A signal that comes to nothing does not end the guest.
    run.signal(Signal::SIGHUP);
    run.told("RELOADING=1");
    run.told("READY=1");
    assert_eq!(pki.name_of_vnc(&socket), "one");
    assert!(destroyed(&host, run).contains("ERROR the guest's certificates were not reloaded"));
}

#[test]
fn a_key_that_does_not_open_starts_nothing() {
    let host = Host::new();
    let Some(pki) = Pki::new(&host) else { return };
    let (xml, _) = vnc_guest(&host, &pki.xml());
    assert!(host.fails(66, &xml).contains(SECRET));
    host.secret(SECRET, "wrong");
    let said = host.fails(77, &xml);
    assert!(said.contains("server-key.pem") && !said.contains("wrong"), "{said}");
}

#[test]
fn a_character_devices_certificates_are_read_again() {
    let host = Host::new();
    let Some(pki) = Pki::new(&host) else { return };
    host.secret(SECRET, PASSPHRASE);
    let [port, fixed] = [free_port(), free_port()];
    let device = |kind: &str, port: u16| {
        format!(
            "<{kind} type='tcp'><source mode='bind' host='127.0.0.1' service='{port}' tls='yes'>{}</source>\
             <protocol type='raw'/></{kind}>",
            pki.xml()
        )
    };
    let devices = [device("serial", port), device("parallel", fixed)].concat();
    let run = host.running(&host.guest("guest", &devices));
    let names = || (pki.name_at(port), pki.name_at(fixed));
    let named = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(names(), named("one", "one"));
    let objects_are = || {
        assert_eq!(objects(&host), ["masterKey0", "objcharparallel0_tls0", "objcharserial0_tls0"]);
    };
    objects_are();
    pki.certificate("server", "two", true);
    is_connected(&host, "charserial0", false);
    is_connected(&host, "charparallel0", false);
    let said = reload(&host);
    assert!(said.contains("the character device serial0 uses the new certificates"), "{said}");
    assert!(
        said.contains("stay with the character device parallel0, until the guest's next start"),
        "{said}"
    );
    assert_eq!(names(), named("two", "one"));
    objects_are();
    // Who is connected is not thrown out.
    pki.certificate("server", "three", true);
    is_connected(&host, "charserial0", false);
    let mut client = pki.client(port).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    is_connected(&host, "charserial0", true);
    let said = reload(&host);
    assert!(said.contains("serial0, to which somebody is connected, until then"), "{said}");
    assert_eq!(client.try_wait().unwrap(), None);
    client.kill().unwrap();
    client.wait().unwrap();
    is_connected(&host, "charserial0", false);
    reload(&host);
    assert_eq!(names(), named("three", "one"));
    objects_are();
    // Of no use, and of use again.
    fs::write(pki.0.join("server-cert.pem"), "no certificate").unwrap();
    is_connected(&host, "charserial0", false);
    let said = host.user.fails(69, &["reload-tls", "guest"], b"");
    assert!(said.contains("the old ones stay in use"), "{said}");
    assert_eq!(names(), named("three", "one"));
    pki.certificate("server", "four", true);
    is_connected(&host, "charserial0", false);
    reload(&host);
    assert_eq!(names(), named("four", "one"));
    objects_are();
    destroyed(&host, run);
}

/// Waits until somebody is, or nobody is, connected to a character device.
fn is_connected(host: &Host, id: &str, connected: bool) {
    let start = Instant::now();
    loop {
        let known = qmp(host, "query-chardev");
        let this = known.as_array().unwrap().iter().find(|c| c["label"] == id).unwrap();
        if this["filename"].as_str().unwrap().starts_with("disconnected:") != connected {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{id}: {this}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_guest_without_certificates_has_none_to_reload() {
    let host = Host::new();
    let (xml, _) = vnc_guest(&host, "");
    let run = host.running(&xml);
    assert!(reload(&host).contains("nothing of the guest uses certificates"));
    destroyed(&host, run);
}

#[test]
fn no_secret_stays_in_qemu_when_what_it_opens_is_open() {
    let host = Host::new();
    let Some(pki) = Pki::new(&host).filter(|_| has_qemu_img()) else { return };
    host.secret(SECRET, PASSPHRASE);
    host.secret(PASSWORD, "hunter2");
    let port = free_port();
    let encrypted = |name: &str, format: &str, target: &str, bus: &str| {
        let image = host.image(name, format, true);
        disk(&image, format, Some(bare::SECRET))
            .replace("'vda' bus='virtio'", &format!("'{target}' bus='{bus}'"))
    };
    let devices = [
        encrypted("a.qcow2", "qcow2", "vda", "virtio"),
        encrypted("b.luks", "raw", "vdb", "virtio"),
        encrypted("c.luks", "raw", "hda", "ide").replace("device='disk'", "device='cdrom'"),
        "<controller type='usb' model='qemu-xhci'/>".to_owned(),
        format!(
            "<graphics type='vnc'><listen type='socket' socket='{}'/>\
             <secret type='passphrase' uuid='{PASSWORD}'/>{}</graphics>",
            host.path("vnc.sock").display(),
            pki.xml()
        ),
        format!(
            "<serial type='tcp'><source mode='bind' host='127.0.0.1' service='{port}' tls='yes'>{}</source>\
             <protocol type='raw'/></serial>",
            pki.xml()
        ),
    ];
    let run = host.running(&host.guest("guest", &devices.concat()));
    // What stays: the key of all secrets, and certificates, for connections that are yet to come.
    let open = |after: &str| {
        assert_eq!(objects(&host), ["masterKey0", "objcharserial0_tls0", "vnc-tls-creds0"], "{after}");
    };
    open("the start");
    let plugged = encrypted("d.luks", "raw", "sda", "usb");
    host.user.ok(&["attach-device", "guest", "-"], plugged.as_bytes());
    open("an attach");
    let medium = encrypted("e.qcow2", "qcow2", "hda", "ide").replace("device='disk'", "device='cdrom'");
    host.user.ok(&["change-media", "guest", "hda", "-"], medium.as_bytes());
    open("a change of media");
    host.user.ok(&["blockresize", "guest", "vdb", "8M"], b"");
    open("growth");
    host.user.ok(&["snapshot", "create", "guest", "s1"], b"");
    open("a snapshot");
    host.user.ok(&["snapshot", "delete", "guest", "s1"], b"");
    open("the end of a snapshot");
    host.user.ok(&["set-password", "guest", "vnc"], b"hunter3");
    open("a new password");
    reload(&host);
    open("new certificates");
    host.user.ok(&["detach-device", "guest", "sda"], b"");
    open("a detach");
    destroyed(&host, run);
}
