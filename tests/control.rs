//! The control socket and the commands that speak over it, with a real QEMU whose machine runs no system.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod machine;
mod mutations;
mod user;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use machine::Machine;
use mutations::{Numbers, corpus, mutated};
use user::{User, wait_until};

fn machine() -> Machine {
    Machine::start("")
}

fn socket(guest: &Machine) -> PathBuf {
    guest.lib_dir().join("control.sock")
}

fn connect(guest: &Machine) -> UnixStream {
    let stream = UnixStream::connect(socket(guest)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

/// One varlink call over a connection of its own.
fn call(guest: &Machine, method: &str, parameters: &Value) -> Value {
    let mut stream = connect(guest);
    let message = json!({ "method": method, "parameters": parameters });
    stream.write_all(format!("{message}\0").as_bytes()).unwrap();
    answer(&stream)
}

fn answer(stream: &UnixStream) -> Value {
    let mut reply = Vec::new();
    BufReader::new(stream).read_until(0, &mut reply).unwrap();
    serde_json::from_slice(reply.strip_suffix(b"\0").unwrap()).unwrap()
}

fn state(guest: &Machine) -> String {
    guest.status()["state"].as_str().unwrap().to_owned()
}

#[test]
fn the_commands_of_a_running_guest() {
    let guest = machine();
    let user = &guest.user;
    let list = String::from_utf8(user.ok(&["list"], b"")).unwrap();
    assert!(list.lines().nth(1).unwrap().starts_with("guest  running"), "{list}");
    assert_eq!(state(&guest), "running");
    user.ok(&["suspend", "guest"], b"");
    assert_eq!(state(&guest), "paused");
    user.ok(&["resume", "guest"], b"");
    assert_eq!(state(&guest), "running");
    user.ok(&["reset", "guest"], b"");
    let shown = String::from_utf8(user.ok(&["status", "guest"], b"")).unwrap();
    assert!(shown.contains("State       running"), "{shown}");
    let xml = String::from_utf8(user.ok(&["dumpxml", "guest"], b"")).unwrap();
    assert!(xml.contains(&format!("<uuid>{}</uuid>", guest.status()["uuid"].as_str().unwrap())), "{xml}");
    let status = user.ok(&["qmp", "guest", "query-status"], b"");
    assert_eq!(serde_json::from_slice::<Value>(&status).unwrap()["running"], true);
    let said = user.fails(69, &["qmp", "guest", "no-such-command"], b"");
    assert!(said.contains("no-such-command"), "{said}");
    user.fails(64, &["qmp", "guest", "{"], b"");
    guest.end();
}

#[test]
fn a_shutdown_that_the_guest_ignores_can_be_waited_for_and_given_up() {
    let guest = machine();
    let said = guest.user.fails(75, &["shutdown", "--wait", "--timeout", "1", "guest"], b"");
    assert!(said.contains("vmward destroy"), "{said}");
    guest.user.ok(&["destroy", "guest"], b"");
    // When `destroy` returns there is nothing left.
    assert!(!guest.lib_dir().exists());
}

#[test]
fn a_guest_that_is_not_there() {
    let user = User::new();
    for command in ["status", "dumpxml", "shutdown", "destroy", "reset", "suspend", "resume", "events"] {
        let said = user.fails(66, &[command, "nobody"], b"");
        assert!(said.contains("'nobody'") && said.contains("vmward list"), "{said}");
    }
    user.fails(66, &["detach-device", "nobody", "vda"], b"");
    user.fails(64, &["status", "../x"], b"");
    assert_eq!(user.ok(&["list", "--json"], b""), b"[]\n");
}

#[test]
fn what_a_killed_supervisor_left_is_listed_as_dead() {
    let user = User::new();
    let dir = user.home.path().join("run/ghost");
    fs::create_dir_all(&dir).unwrap();
    drop(UnixListener::bind(dir.join("control.sock")).unwrap());
    let list: Value = serde_json::from_slice(&user.ok(&["list", "--json"], b"")).unwrap();
    assert_eq!(list, json!([{ "name": "ghost", "state": "dead" }]));
    let said = user.fails(69, &["status", "ghost"], b"");
    assert!(said.contains("vmward run"), "{said}");
}

#[test]
fn the_interface_describes_itself() {
    let guest = machine();
    let info = call(&guest, "org.varlink.service.GetInfo", &json!({}));
    assert_eq!(info["parameters"]["interfaces"], json!(["org.vmward.Domain", "org.varlink.service"]));
    let described = call(
        &guest,
        "org.varlink.service.GetInterfaceDescription",
        &json!({ "interface": "org.vmward.Domain" }),
    );
    let text = described["parameters"]["description"].as_str().unwrap();
    for line in [
        "interface org.vmward.Domain",
        "method DumpXML() -> (",
        "method AttachDevice(xml: string, unsupported: ?bool)",
        "method DetachDevice(target: string, timeout: ?int) -> ()",
        "error WrongKey",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    guest.end();
}

#[test]
fn errors_have_a_name_a_message_and_a_hint() {
    let guest = machine();
    let error = call(&guest, "org.vmward.Domain.DetachDevice", &json!({ "target": "sda" }));
    assert_eq!(error["error"], "org.vmward.Domain.NoSuchDevice");
    assert!(error["parameters"]["message"].as_str().unwrap().contains("'sda'"), "{error}");
    assert!(error["parameters"]["hint"].is_string(), "{error}");
    let error = call(&guest, "org.vmward.Domain.AttachDevice", &json!({ "xml": "<disk/>" }));
    assert_eq!(error["error"], "org.vmward.Domain.InvalidXml");
    assert_eq!(error["parameters"]["problems"][0]["severity"], "error");
    let error = call(
        &guest,
        "org.vmward.Domain.Qmp",
        &json!({ "command": "device_del", "arguments": { "id": "x" } }),
    );
    assert_eq!(error["error"], "org.vmward.Domain.QemuRefused");
    let mut stream = connect(&guest);
    stream.write_all(b"{\"method\":\"org.vmward.Domain.NoSuchMethod\"}\0").unwrap();
    assert_eq!(answer(&stream)["error"], "org.varlink.service.MethodNotFound");
    guest.end();
}

#[test]
fn qemu_gets_no_secret_in_the_clear() {
    let guest = machine();
    let plain = json!({
        "execute": "object-add",
        "arguments": { "qom-type": "secret", "id": "x", "data": "hunter2" },
    });
    let said = guest.user.fails(77, &["qmp", "guest", &plain.to_string()], b"");
    assert!(said.contains("in the clear") && !said.contains("hunter2"), "{said}");
    guest.end();
}

#[test]
fn events_are_shown_until_the_guest_ends() {
    let guest = machine();
    let mut events = guest.user.command(&["events", "guest"]).spawn().unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    // The listener is there when it has been told of something: until then, there is something to tell.
    let first = std::thread::spawn(move || (lines.next().unwrap().unwrap(), lines));
    while !first.is_finished() {
        guest.user.ok(&["suspend", "guest"], b"");
        guest.user.ok(&["resume", "guest"], b"");
    }
    let (first, lines) = first.join().unwrap();
    let first: Value = serde_json::from_str(&first).unwrap();
    assert!(first["event"] == "STOP" || first["event"] == "RESUME", "{first}");
    // The first may have been the last of the loop's: there has to be something after it.
    guest.user.ok(&["suspend", "guest"], b"");
    guest.user.ok(&["resume", "guest"], b"");
    guest.end();
    let names: Vec<Value> =
        lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap()["event"].clone()).collect();
    assert!(names.contains(&json!("RESUME")), "{names:?}");
    assert!(events.wait().unwrap().success());
}

#[test]
fn clients_that_are_slow_silent_or_hostile_hold_up_nobody() {
    let guest = machine();
    // Connected and silent; listening and never reading; in the middle of a message; not varlink at all.
    let silent: Vec<_> = (0..10).map(|_| connect(&guest)).collect();
    let mut deaf = connect(&guest);
    deaf.write_all(b"{\"method\":\"org.vmward.Domain.Events\",\"more\":true}\0").unwrap();
    let mut half = connect(&guest);
    half.write_all(b"{\"method\":\"org.vmw").unwrap();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n\0"[..], b"\0\0\0", b"[]\0", b"{\"method\":5}\0", b"\xff\xfe\0"]
    {
        let mut stream = connect(&guest);
        stream.write_all(garbage).unwrap();
        let _ = stream.shutdown(Shutdown::Write);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    }
    for _ in 0..20 {
        guest.user.ok(&["suspend", "guest"], b"");
        guest.user.ok(&["resume", "guest"], b"");
    }
    assert_eq!(state(&guest), "running");
    // Who has only stopped sending still gets an answer.
    let mut polite = connect(&guest);
    polite.write_all(b"{\"method\":\"org.vmward.Domain.DumpXML\"}\0").unwrap();
    polite.shutdown(Shutdown::Write).unwrap();
    assert!(answer(&polite)["parameters"]["xml"].is_string());
    drop((silent, deaf, half));
    guest.end();
}

#[test]
fn requests_that_nobody_would_write_change_nothing() {
    const REQUESTS: usize = 3000;
    let guest = machine();
    // What came in one message may be a whole request with nonsense in it, or none.
    let corpus = corpus("varlink-request");
    let mut numbers = Numbers::new();
    let disks = guest.status()["disks"].clone();
    let mut answered = 0;
    for _ in 0..REQUESTS {
        let mut stream = connect(&guest);
        stream.write_all(&[&mutated(&corpus, &mut numbers)[..], b"\0"].concat()).unwrap();
        // Events have no end of their own.
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let _ = stream.shutdown(Shutdown::Write);
        let mut reply = [0];
        answered += usize::from(stream.read(&mut reply).is_ok_and(|n| n > 0));
    }
    println!("{answered} of {REQUESTS} requests were understood well enough for an answer");
    assert!(answered > 0 && answered < REQUESTS, "{answered}");
    assert_eq!(guest.status()["disks"], disks);
    assert_eq!(state(&guest), "running");
    guest.end();
}

#[test]
fn listeners_that_hang_up_are_forgotten() {
    let guest = machine();
    let pid = guest.status()["supervisor"].clone();
    let descriptors = || fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let before = descriptors();
    // More than are served at once: each must make place for the next, though no event ever comes.
    for _ in 0..200 {
        let mut stream = connect(&guest);
        stream.write_all(b"{\"method\":\"org.vmward.Domain.Events\",\"more\":true}\0").unwrap();
        drop(stream);
        assert_eq!(state(&guest), "running");
    }
    wait_until("connections are still open", || descriptors() <= before);
    guest.end();
}

#[test]
fn too_many_clients_are_turned_away_and_the_rest_is_served() {
    let guest = machine();
    let many: Vec<_> = (0..100).map(|_| connect(&guest)).collect();
    // The first ones are served.
    let mut first = &many[0];
    first.write_all(b"{\"method\":\"org.vmward.Domain.DumpXML\"}\0").unwrap();
    assert!(answer(first)["parameters"]["xml"].is_string());
    // The last one hears that it is not.
    assert_eq!((&many[99]).read(&mut [0]).unwrap(), 0);
    drop(many);
    while guest.user.run(&["status", "guest"], b"").status.code() != Some(0) {}
    guest.end();
}

#[test]
fn other_users_are_kept_out() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can be another user");
        return;
    }
    let guest = machine();
    let socket = socket(&guest);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o077;
    assert_eq!((mode(&socket), mode(socket.parent().unwrap())), (0, 0));
    // Even where the modes would let them in.
    let run = guest.user.home.path().join("run");
    for path in [guest.user.home.path(), &run, &run.join("guest")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = guest.user.command(&["status", "guest"]);
    match command.uid(65534).gid(65534).output() {
        Ok(output) => assert_eq!(output.status.code(), Some(69), "{output:?}"),
        Err(e) => println!("skipped in part: the program cannot be run by another user here ({e})"),
    }
    assert_eq!(state(&guest), "running");
    guest.end();
}

#[test]
fn no_socket_of_a_guest_is_another_users() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can be another user");
        return;
    }
    let swtpm = std::process::Command::new("swtpm").arg("--version").output().is_ok();
    let user = user::User::new();
    let tpm = format!(
        "<tpm model='tpm-crb'><backend type='emulator' version='2.0'><source type='dir' path='{}'/></backend></tpm>",
        user.home.path().join("tpm").display()
    );
    if !swtpm {
        println!("skipped in part: there is no swtpm");
    }
    let guest = Machine::start_as(user, if swtpm { &tpm } else { "" });
    // The directories above are no hurdle here: on a host with QEMUs of another user others may pass through them.
    for path in [guest.user.home.path().to_owned(), guest.user.home.path().join("run")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let sockets = || {
        let entries = fs::read_dir(guest.lib_dir()).unwrap().map(|e| e.unwrap());
        let sockets = entries.filter(|e| std::os::unix::fs::FileTypeExt::is_socket(&e.file_type().unwrap()));
        sockets.map(|e| e.path()).collect::<Vec<_>>()
    };
    let names: Vec<_> =
        sockets().iter().map(|p| p.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    for name in ["control.sock", "machine.sock", "monitor.sock"] {
        assert!(names.iter().any(|n| n == name), "{names:?}");
    }
    assert!(!swtpm || names.iter().any(|n| n.starts_with("helper-")), "{names:?}");
    // A process of that user's tries. Debian's perl-base is on every machine.
    let connect = "use Socket; socket(my $s, PF_UNIX, SOCK_STREAM, 0) or exit 2; \
                   exit(connect($s, pack_sockaddr_un($ARGV[0])) ? 0 : $!{EACCES} ? 13 : 3)";
    let tries = |socket: &Path, uid: u32| {
        let mut command = std::process::Command::new("perl");
        command.args(["-MErrno", "-e", connect]).arg(socket).uid(uid).gid(uid);
        command.status().unwrap().code()
    };
    // What it can do for this user, so that the refusals mean something.
    assert_eq!(tries(&socket(&guest), 0), Some(0));
    for socket in sockets() {
        assert_eq!(tries(&socket, 65534), Some(13), "{}", socket.display());
    }
    // Nor does the directory let him in where he can guess.
    let open = |dir: &Path| fs::metadata(dir).unwrap().permissions().mode() & 0o077;
    assert_eq!(open(&guest.lib_dir()), 0);
    guest.end();
}
