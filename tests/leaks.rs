//! What everything that is done with a running guest leaves of the secrets, where others could read it: in arguments and
//! environments, in the lib dir, in what was said, and in the supervisor's memory. Only root may look into that.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod bare;
mod user;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use nix::sys::signal::Signal;
use vmward::supervisor::STOP_AT;

use bare::{Host, Run, has_qemu_img, helpers_of, processes_of};
use user::disk;

/// A password of the display. VNC takes eight characters of it.
const PASSWORD: &str = "q7Zx!k2W";

/// A value that nobody may see, and what it is.
struct Known {
    name: String,
    value: Vec<u8>,
}

impl Known {
    fn is_in(&self, bytes: &[u8]) -> bool {
        bytes.windows(self.value.len()).any(|w| w[0] == self.value[0] && w == self.value)
    }
}

/// Everything that a process could have written a value to, with what it is; nothing, and a word why, for who may not look.
fn memory(pid: i32) -> Vec<(String, Vec<u8>)> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"));
    let (Ok(maps), Ok(mut memory)) = (maps, File::open(format!("/proc/{pid}/mem"))) else {
        println!("skipped in part: only root may look into a supervisor");
        return Vec::new();
    };
    let mut found = Vec::new();
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (start, end) = line.split_whitespace().next().unwrap().split_once('-').unwrap();
        let [start, end] = [start, end].map(|n| u64::from_str_radix(n, 16).unwrap());
        memory.seek(SeekFrom::Start(start)).unwrap();
        // The kernel's own pages cannot be read.
        let mut image = Vec::new();
        let _ = (&mut memory).take(end - start).read_to_end(&mut image);
        found.push((format!("the supervisor's memory, {line}"), image));
    }
    let len: usize = found.iter().map(|(_, image)| image.len()).sum();
    assert!(len > 1 << 20, "{len} bytes only");
    found
}

fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(files(&entry.path()));
        } else if kind.is_file() {
            found.push((entry.path().display().to_string(), fs::read(entry.path()).unwrap()));
        }
    }
    found
}

/// The value of a secret as it is now.
fn value(host: &Host, name: &str) -> Known {
    let value = host.user.ok(&["secret", "get-value", name], b"");
    assert!(value.len() > 16);
    Known { name: name.to_owned(), value }
}

/// None of them is in sight.
fn nothing_seen(run: &Run, known: &[Known], when: &str) {
    let mut places = files(run.lib_dir());
    assert!(places.iter().any(|(path, _)| path.ends_with("state.json")), "{when}");
    let mut processes = [processes_of(run.lib_dir()), helpers_of(run.lib_dir())].concat();
    processes.push(run.supervisor());
    assert!(processes.len() > 1, "{when}");
    for pid in processes {
        for file in ["cmdline", "environ"] {
            places.push((format!("{file} of {pid}"), fs::read(format!("/proc/{pid}/{file}")).unwrap()));
        }
    }
    places.extend(memory(run.supervisor()));
    for (place, bytes) in places {
        for known in known {
            assert!(!known.is_in(&bytes), "{when}: {} is in {place}", known.name);
        }
    }
}

#[test]
fn what_is_done_with_a_guest_leaves_no_value_in_sight() {
    if !has_qemu_img() {
        return;
    }
    let host = Host::new();
    let (a, b) = (disk(&host.user, "a.luks", "sda", "scsi"), disk(&host.user, "b.qcow2", "sdb", "scsi"));
    let [path_a, path_b] = ["a.luks", "b.qcow2"].map(|name| host.path(name).display().to_string());
    let display = format!(
        "<controller type='scsi' model='virtio-scsi'/>{a}\
         <graphics type='vnc' passwd=''><listen type='socket' socket='{}'/></graphics>",
        host.path("vnc.sock").display()
    );
    let guest = host.guest("leaks", &display);
    let mut run = host.start_with(&guest, &[], |command| {
        command.env(STOP_AT, "Ended").arg("-vv");
    });
    run.ready();
    let mut known = vec![value(&host, &path_a), value(&host, &path_b)];
    nothing_seen(&run, &known, "start");
    host.user.ok(&["attach-device", "leaks", "-"], b.as_bytes());
    nothing_seen(&run, &known, "attach");
    for target in ["sda", "sdb"] {
        host.user.ok(&["volume", "rekey", "--domain", "leaks", target], b"");
        known.extend([value(&host, &path_a), value(&host, &path_b)]);
        nothing_seen(&run, &known, "rekey");
    }
    host.user.ok(&["snapshot", "create", "leaks", "one", "--disk", "sdb"], b"");
    nothing_seen(&run, &known, "snapshot");
    host.user.ok(&["set-password", "leaks", "vnc"], PASSWORD.as_bytes());
    known.push(Known { name: "the display's password".to_owned(), value: PASSWORD.as_bytes().to_vec() });
    nothing_seen(&run, &known, "set-password");
    host.user.ok(&["detach-device", "leaks", "sdb"], b"");
    nothing_seen(&run, &known, "detach");

    let key = fs::read(run.lib_dir().join("master-key.aes")).unwrap();
    assert_eq!(key.len(), 32);
    known.push(Known { name: "the master key".to_owned(), value: key });
    run.signal(Signal::SIGTERM);
    if cfg!(debug_assertions) {
        run.stopped("Ended");
        for (place, image) in memory(run.supervisor()) {
            for known in &known {
                assert!(!known.is_in(&image), "stop: {} is in {place}", known.name);
            }
        }
        run.signal(Signal::SIGCONT);
    }
    let said = run.ends(0);
    assert!(said.contains("DEBUG") || said.contains("TRACE"), "{said}");
    for known in &known {
        assert!(!known.is_in(said.as_bytes()), "{} was said", known.name);
    }
}
