//! What vmward adds to a disk that is plugged in and out, beside raw QMP that does the same steps by turns in the same run;
//! and how long a guest whose QEMU is killed takes to be gone, its key wiped.
#![allow(clippy::unwrap_used, reason = "this is a bench")]

mod host;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use host::{Host, median};
use serde_json::{Value, json};

/// Times that a disk goes in and out, each way.
const TURNS: usize = 61;
/// Guests whose QEMU is killed.
const KILLS: usize = 21;

/// A connection that speaks JSON, each message ended by the same byte.
struct Line {
    stream: BufReader<UnixStream>,
    end: u8,
}

impl Line {
    fn connect(path: &str, end: u8) -> Self {
        let stream = UnixStream::connect(path).expect("a socket");
        stream.set_read_timeout(Some(host::DEADLINE)).expect("a deadline");
        Self { stream: BufReader::new(stream), end }
    }

    fn say(&mut self, message: &Value) {
        let mut bytes = message.to_string().into_bytes();
        bytes.push(self.end);
        self.stream.get_mut().write_all(&bytes).expect("the socket");
    }

    fn hear(&mut self) -> Value {
        let mut reply = Vec::new();
        self.stream.read_until(self.end, &mut reply).expect("an answer");
        reply.pop().expect("an answer");
        serde_json::from_slice(&reply).expect("JSON")
    }

    /// What vmward answers.
    fn call(&mut self, method: &str, parameters: Value) {
        self.say(&json!({ "method": format!("org.vmward.Domain.{method}"), "parameters": parameters }));
        let reply = self.hear();
        assert!(reply.get("error").is_none(), "{method}: {reply}");
    }

    /// Waits for what QEMU says.
    fn until(&mut self, is_it: impl Fn(&Value) -> bool) {
        loop {
            let message = self.hear();
            assert!(message.get("error").is_none(), "{message}");
            if is_it(&message) {
                return;
            }
        }
    }

    fn execute(&mut self, command: &str, arguments: Value) {
        self.say(&json!({ "execute": command, "arguments": arguments }));
        self.until(|message| message.get("return").is_some());
    }
}

fn raw_attach(monitor: &mut Line, path: &str, value: &str) {
    monitor.execute("object-add", json!({ "qom-type": "secret", "id": "s", "data": value }));
    monitor.execute("blockdev-add", json!({ "driver": "file", "node-name": "f", "filename": path }));
    let luks = json!({ "driver": "luks", "node-name": "l", "file": "f", "key-secret": "s" });
    monitor.execute("blockdev-add", luks);
    monitor.execute("device_add", json!({ "driver": "scsi-hd", "id": "d", "drive": "l" }));
    monitor.execute("object-del", json!({ "id": "s" }));
}

fn raw_detach(monitor: &mut Line) {
    monitor.say(&json!({ "execute": "device_del", "arguments": { "id": "d" } }));
    // Reply and event come in any order.
    let mut left = 2;
    while left > 0 {
        monitor.until(|m| m.get("return").is_some() || m["data"]["device"] == "d");
        left -= 1;
    }
    for node in ["l", "f"] {
        monitor.execute("blockdev-del", json!({ "node-name": node }));
    }
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn report(what: &str, vmward: Vec<Duration>, raw: Vec<Duration>) {
    let (vmward, raw) = (median(vmward), median(raw));
    println!("  {what}   vmward {vmward:7.2} ms   raw QMP {raw:7.2} ms   ({:.2} times)", vmward / raw);
}

fn main() {
    let host = Host::new();
    let path = host.path("hot.luks");
    let uuid = host.output(&["secret", "generate", "--usage-volume", &path]);
    host.output(&["volume", "create", &path, "--format", "raw", "--size", "64M", "--secret", &uuid]);
    let value = host.output(&["secret", "get-value", &uuid]);
    let disk = format!(
        "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{path}'>\
         <encryption format='luks'><secret type='passphrase' uuid='{uuid}'/></encryption></source>\
         <target dev='sda' bus='scsi'/></disk>"
    );
    host.guest("<controller type='scsi' model='virtio-scsi'/>");
    let arguments = host.qemu_arguments(&[]);
    let (supervisor, _) = host.start(&[]);
    let (mut bare, _) = host.start_bare(&arguments);
    let mut control = Line::connect(&host.path("run/bench/control.sock"), 0);
    let mut monitor = Line::connect(&host.path("bare.sock"), b'\n');
    monitor.until(|greeting| greeting.get("QMP").is_some());
    monitor.execute("qmp_capabilities", json!({}));
    let [mut attach, mut raw_in, mut detach, mut raw_out] = [const { Vec::new() }; 4];
    for _ in 0..TURNS {
        attach.push(timed(|| control.call("AttachDevice", json!({ "xml": disk }))));
        detach.push(timed(|| control.call("DetachDevice", json!({ "target": "sda", "timeout": 30 }))));
        raw_in.push(timed(|| raw_attach(&mut monitor, &path, &value)));
        raw_out.push(timed(|| raw_detach(&mut monitor)));
    }
    println!("an encrypted disk, generated key, median of {TURNS}:");
    report("attach", attach, raw_in);
    report("detach", detach, raw_out);
    bare.kill().expect("QEMU");
    bare.wait().expect("QEMU");
    host.stop(supervisor);

    let ends = (0..KILLS).map(|_| {
        let (mut supervisor, _) = host.start(&[]);
        let status: Value = serde_json::from_str(&host.output(&["status", "--json", "bench"])).expect("JSON");
        let mut kill = Command::new("kill");
        kill.args(["-9", &status["qemu"].to_string()]).stdin(Stdio::null());
        timed(|| {
            assert!(kill.status().expect("kill").success());
            supervisor.wait().expect("vmward");
            assert!(fs::metadata(host.path("run/bench")).is_err(), "something is left");
        })
    });
    println!("QEMU killed, to the supervisor gone and its key wiped, median of {KILLS}:");
    println!("  {:7.1} ms   with the start of `kill`", median(ends.collect()));
}
