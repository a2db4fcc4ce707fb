//! How `vmward run` starts a guest, and every way in which it does not.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod bare;
mod script;
mod user;

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use command_fds::CommandFdExt;
use landlock::{AccessFs, Ruleset, RulesetAttr};
use nix::sys::signal::Signal;
use nix::unistd::geteuid;

use bare::{Host, PASSPHRASE, SECRET, disk, has_qemu_img};

const OTHER: &str = "00000000-0000-4000-8000-000000000001";

/// Whether bytes are in there, as they are or in a common encoding.
fn shows(haystack: &[u8], secret: &[u8]) -> bool {
    let hex: String = secret.iter().map(|b| format!("{b:02x}")).collect();
    // Where it stands in a longer text, base64 of it looks different in its first and last characters.
    let base64 = STANDARD.encode(secret);
    let middle = base64.trim_end_matches('=').as_bytes();
    [secret, hex.as_bytes(), &middle[..middle.len() - 2]]
        .iter()
        .any(|needle| haystack.windows(needle.len()).any(|w| w == *needle))
}

fn assert_hidden(what: &str, bytes: &[u8], key: &[u8]) {
    assert!(!shows(bytes, PASSPHRASE.as_bytes()), "{what} shows the passphrase");
    assert!(!shows(bytes, key), "{what} shows the master key");
}

fn files_below(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    entries.flat_map(|p| if p.is_dir() { files_below(&p) } else { vec![p] }).collect()
}

#[test]
fn no_secret_shows_anywhere_and_nothing_stays() {
    if !has_qemu_img() {
        return;
    }
    let host = Host::new();
    let qcow2 = disk(&host.image("a.qcow2", "qcow2", true), "qcow2", Some(SECRET));
    let luks = disk(&host.image("b.luks", "raw", true), "raw", Some(SECRET)).replace("vda", "vdb");
    let guest = host.guest("hidden", &format!("{qcow2}{luks}"));
    let run = {
        let mut run = host.start(&guest, &["-vv"]);
        run.ready();
        run
    };
    let key = fs::read(run.lib_dir().join("master-key.aes")).unwrap();
    assert_eq!(key.len(), 32);
    assert_eq!(fs::metadata(run.lib_dir()).unwrap().mode() & 0o7777, 0o700);
    for file in files_below(run.lib_dir()) {
        let metadata = fs::symlink_metadata(&file).unwrap();
        assert_eq!(metadata.mode() & 0o077, 0, "{} is open to others", file.display());
        if metadata.is_file() && !file.ends_with("master-key.aes") {
            assert_hidden(&file.display().to_string(), &fs::read(&file).unwrap(), &key);
        }
    }
    for process in [run.supervisor(), run.qemu()] {
        for file in ["cmdline", "environ"] {
            let file = format!("/proc/{process}/{file}");
            assert_hidden(&file, &fs::read(&file).unwrap(), &key);
        }
        let limits = fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
        let core = limits.lines().find(|l| l.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    }
    // What opened the disks is gone from QEMU, the key that a hotplug needs is not.
    let objects = r#"{"execute": "qom-list", "arguments": {"path": "/objects"}}"#;
    let objects = host.user.ok(&["qmp", "hidden", objects], b"");
    let objects = String::from_utf8(objects).unwrap();
    assert!(objects.contains("masterKey0") && !objects.contains("encryption-secret"), "{objects}");
    run.signal(Signal::SIGTERM);
    let said = run.ends(0);
    assert_hidden("stderr", said.as_bytes(), &key);
    for file in files_below(host.user.home.path()) {
        if fs::symlink_metadata(&file).unwrap().is_file() {
            assert_hidden(&file.display().to_string(), &fs::read(&file).unwrap(), &key);
        }
    }
}

#[test]
fn qemu_inherits_nothing_that_the_supervisor_was_started_with() {
    let host = Host::new();
    let left_open = host.path("left-open");
    let file = fs::File::create(&left_open).unwrap();
    let mut run = host.start_with(&host.guest("inherits", ""), &[], |command| {
        command.preserved_fds(vec![file.into()]).env("LEFT", "over");
    });
    run.ready();
    let environment = fs::read(format!("/proc/{}/environ", run.qemu())).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("LEFT"));
    for entry in fs::read_dir(format!("/proc/{}/fd", run.qemu())).unwrap() {
        assert_ne!(fs::read_link(entry.unwrap().path()).unwrap_or_default(), left_open);
    }
    run.signal(Signal::SIGTERM);
    run.ends(0);
}

#[test]
fn the_supervisor_waits_for_the_guest_before_it_ends_it() {
    let host = Host::new();
    let mut run = host.start(&host.guest("deaf", ""), &["--stop-timeout", "1"]);
    run.ready();
    run.signal(Signal::SIGTERM);
    assert!(run.ends(0).contains("did not power off within 1 s"));
}

#[test]
fn a_wrong_passphrase_says_whose_it_is() {
    if !has_qemu_img() {
        return;
    }
    let host = Host::new();
    let guest = host.encrypted_guest("wrong");
    host.user.ok(&["secret", "set-value", SECRET], b"something else");
    let said = host.fails(77, &guest);
    assert!(said.contains("cannot unlock any keyslot") && said.contains("secret set-value"), "{said}");
}

#[test]
fn secrets_that_are_not_to_be_had_are_all_named_before_anything_starts() {
    if !has_qemu_img() {
        return;
    }
    let host = Host::new();
    let image = host.image("i.qcow2", "qcow2", true);
    host.user.define(&format!("<uuid>{OTHER}</uuid><usage type='ceph'><name>client.x</name></usage>"));
    let missing = disk(&image, "qcow2", Some("00000000-0000-4000-8000-000000000002"));
    let other = disk(&image, "qcow2", Some(OTHER)).replace("vda", "vdb");
    let said = host.fails(66, &host.guest("both", &format!("{missing}{other}")));
    assert!(said.contains("000000000002 is defined") && said.contains("both.xml:"), "{said}");
    assert!(said.contains("is for ceph client.x"), "{said}");
    assert!(said.contains("vmward secret define"), "{said}");
    let said = host.fails(65, &host.guest("usage", &other));
    assert!(said.contains("a secret for volume is needed"), "{said}");
}

#[test]
fn an_image_that_is_not_what_the_xml_says_is_refused_at_its_line() {
    if !has_qemu_img() {
        return;
    }
    let host = Host::new();
    for (n, (format, encrypted, secret, words)) in [
        ("qcow2", true, None, "is encrypted, and the XML does not say so"),
        ("raw", true, None, "is encrypted, and the XML does not say so"),
        ("qcow2", false, Some(SECRET), "is not encrypted, and the XML says it is"),
        ("raw", false, Some(SECRET), "no header of an encrypted image"),
    ]
    .into_iter()
    .enumerate()
    {
        let image = host.image(&format!("i{n}"), format, encrypted);
        let name = format!("mismatch{n}");
        let said = host.fails(65, &host.guest(&name, &disk(&image, format, secret)));
        assert!(said.contains(words) && said.contains(&format!("{name}.xml:")), "{said}");
    }
    let said = host.fails(66, &host.guest("missing", &disk(&host.path("none"), "raw", None)));
    assert!(said.contains("there is no image"), "{said}");
    let file = host.guest("firmware", "");
    let xml = fs::read_to_string(&file).unwrap();
    fs::write(&file, xml.replace("</os>", "<loader type='pflash'>/nowhere/code.fd</loader></os>")).unwrap();
    let said = host.fails(66, &file);
    assert!(said.contains("the image /nowhere/code.fd could not be opened for reading"), "{said}");
    // QEMU's words have the path, and not what QEMU knows it by.
    let plain = disk(&host.image("plain", "raw", false), "raw", None);
    let device = plain.replace("type='file'", "type='block'").replace("source file=", "source dev=");
    let said = host.fails(69, &host.guest("device", &device));
    assert!(said.contains(&format!("requires '{}'", host.path("plain").display())), "{said}");
}

#[test]
fn an_image_that_cannot_be_written_is_refused_at_its_line() {
    let host = Host::new();
    fs::create_dir(host.path("images")).unwrap();
    let image = host.path("images/plain.raw");
    fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let guest = host.guest("unwritable", &disk(&image, "raw", None));
    let run = host.user.command(&["run", guest.to_str().unwrap()]);
    let mut shell = Command::new("unshare");
    shell
        .args(["--mount", "sh", "-c"])
        .arg("mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" || exit 99; exec \"$@\"")
        .arg(host.path("images"))
        .arg(run.get_program())
        .args(run.get_args())
        .env_clear()
        .envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = shell.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    if output.status.code() == Some(99) || said.starts_with("unshare:") {
        println!("skipped: nothing can be mounted here ({said})");
        return;
    }
    assert_eq!(output.status.code(), Some(77), "{said}");
    assert!(said.contains("unwritable.xml:") && said.contains("cannot be written"), "{said}");
    assert!(said.contains("<readonly/>"), "{said}");
}

#[test]
fn an_image_that_is_in_use_stays_with_the_one_who_uses_it() {
    if !has_qemu_img() {
        return;
    }
    let host = Host::new();
    let first = host.running(&host.encrypted_guest("first"));
    let image = host.path("first.qcow2");
    let said = host.fails(75, &host.guest("second", &disk(&image, "qcow2", Some(SECRET))));
    assert!(said.contains("another guest or qemu-img has the image open"), "{said}");
    first.signal(Signal::SIGTERM);
    first.ends(0);
}

#[test]
fn a_qemu_that_is_not_there_is_named() {
    let host = Host::new();
    let said = host.fails(69, &host.guest("noqemu", "<emulator>/nowhere/qemu</emulator>"));
    assert!(said.contains("/nowhere/qemu"), "{said}");
}

#[test]
fn a_guest_runs_once() {
    let host = Host::new();
    let guest = host.guest("once", "");
    let first = host.running(&guest);
    let second = host.start(&guest, &[]).ended();
    assert_eq!(second.status.code(), Some(75), "{}", second.said);
    assert!(second.said.contains("is running already"), "{}", second.said);
    // It took nothing from the one that runs.
    host.user.ok(&["status", "once"], b"");
    first.signal(Signal::SIGTERM);
    first.ends(0);
}

#[test]
fn root_runs_qemu_as_somebody_else() {
    if !geteuid().is_root() {
        println!("skipped: only root can change the user");
        return;
    }
    if !has_qemu_img() {
        return;
    }
    let host = Host::new();
    // QEMU's user has to get to the lib dir, and to no image.
    fs::set_permissions(host.user.home.path(), fs::Permissions::from_mode(0o711)).unwrap();
    fs::DirBuilder::new().mode(0o700).create(host.path("images")).unwrap();
    let image = host.image("images/encrypted.qcow2", "qcow2", true);
    let guest = host.guest("other-user", &disk(&image, "qcow2", Some(SECRET)));
    let user = ["--user", "nobody"];
    // What the XML does not name QEMU finds by itself, or not.
    let (base, top) = (host.image("images/base.raw", "raw", false), host.path("images/top.qcow2"));
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base.raw"])
        .arg(&top)
        .status();
    assert!(made.unwrap().success());
    let unnamed = disk(&top, "qcow2", None);
    let refused = host.start(&host.guest("unnamed", &unnamed), &user).ends(77);
    assert!(refused.contains("Permission denied") && refused.contains("top.qcow2"), "{refused}");
    assert!(refused.contains("'nobody'") && refused.contains("<backingStore>"), "{refused}");
    let named = format!(
        "<backingStore type='file'><format type='raw'/><source file='{}'/></backingStore></disk>",
        base.display()
    );
    let mut run = host.start(&host.guest("named", &unnamed.replace("</disk>", &named)), &user);
    run.ready();
    host.user.ok(&["destroy", "named"], b"");
    run.ends(0);
    let mut run = host.start(&guest, &user);
    run.ready();
    let status = fs::read_to_string(format!("/proc/{}/status", run.qemu())).unwrap();
    let line = |name: &str| status.lines().find(|l| l.starts_with(name)).unwrap().split_whitespace();
    assert_eq!(line("Uid:").skip(1).collect::<Vec<_>>(), ["65534"; 4]);
    assert_eq!(line("NoNewPrivs:").nth(1), Some("1"));
    assert_eq!(line("CapEff:").nth(1), Some("0000000000000000"));
    assert_eq!(fs::metadata(run.lib_dir()).unwrap().uid(), 65534);
    run.signal(Signal::SIGTERM);
    run.ends(0);
    let said = host.start(&guest, &["--user", "no-such-user"]).ends(78);
    assert!(said.contains("no user 'no-such-user'"), "{said}");
}

/// `CAP_CHOWN`, `CAP_DAC_OVERRIDE`, `CAP_FOWNER`, `CAP_KILL`, `CAP_SETGID`, `CAP_SETUID`, `CAP_NET_BIND_SERVICE` (of a QEMU
/// that is root's), `CAP_IPC_LOCK`: by their numbers in linux/capability.h.
const KEPT: u64 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 10 | 1 << 14;

/// A line of `/proc/PID/status` of each thread of a process.
fn each_thread(process: i32, name: &str) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap().map(|e| e.unwrap().path());
    let statuses = threads.filter_map(|thread| fs::read_to_string(thread.join("status")).ok());
    let line = |status: String| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    statuses.map(line).collect()
}

/// Whether each thread of a process has no more than what is kept.
fn assert_confined(process: i32) {
    let own = each_thread(std::process::id().try_into().unwrap(), "CapPrm:").remove(0);
    let own = u64::from_str_radix(&own, 16).unwrap();
    let is_of_another = fs::metadata(format!("/proc/{process}/task")).unwrap().uid() != geteuid().as_raw();
    assert!(each_thread(process, "NoNewPrivs:").iter().all(|value| value == "1"));
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        for value in each_thread(process, set) {
            let value = u64::from_str_radix(&value, 16).unwrap();
            match set {
                // Only root can make that smaller, and nobody who has nothing gets more out of it.
                "CapBnd:" if own == 0 || is_of_another => {}
                _ => assert_eq!(value & !(KEPT & own), 0, "{set} {value:x}"),
            }
        }
    }
    for set in ["CapInh:", "CapAmb:"] {
        assert!(
            each_thread(process, set).iter().all(|value| u64::from_str_radix(value, 16) == Ok(0)),
            "{set}"
        );
    }
}

/// Whether the kernel rules on files.
fn has_landlock(host: &Host) -> bool {
    let findings = host.user.run(&["doctor", "--json"], b"").stdout;
    let findings: serde_json::Value = serde_json::from_slice(&findings).unwrap();
    let finding = findings.as_array().unwrap().iter().find(|f| f["about"] == "confinement").unwrap().clone();
    if finding["state"] != "ok" {
        println!("skipped in part: {}", finding["message"]);
    }
    finding["state"] == "ok"
}

/// Whether a supervisor says that something is not within its bounds, and where that is.
fn assert_outside(said: &str, directory: &Path) {
    assert!(said.contains("outside of what this guest's supervisor may"), "{said}");
    assert!(said.contains("[confinement]") && said.contains(directory.to_str().unwrap()), "{said}");
}

/// QEMU does not get to a file: the kernel says so, whoever asks.
fn assert_out_of_reach(host: &Host, guest: &str, file: &Path) {
    let node = format!(
        "{{\"execute\": \"blockdev-add\", \"arguments\": {{\"driver\": \"file\", \"node-name\": \"n\", \"filename\": \"{}\"}}}}",
        file.display()
    );
    let said = host.user.fails(69, &["qmp", guest, &node], b"");
    assert!(said.contains("Permission denied"), "{said}");
}

#[test]
fn a_supervisor_and_its_qemu_keep_what_the_guest_needs() {
    if !has_qemu_img() {
        return;
    }
    let host = Host::new();
    let root = disk(&host.image("root.qcow2", "qcow2", true), "qcow2", Some(SECRET));
    let more = disk(&host.image("more.qcow2", "qcow2", true), "qcow2", Some(SECRET)).replace("vda", "vdb");
    let cdrom = "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>";
    let bus = "<controller type='sata' index='0'/>";
    let guest = host.guest("held", &format!("{root}{bus}{cdrom}"));
    let mut run = host.running(&guest);
    assert_confined(run.supervisor());
    assert_confined(run.qemu());
    // Its secret is fetched in a thread of its own.
    host.user.ok(&["attach-device", "held", "-"], more.as_bytes());
    assert_confined(run.supervisor());
    assert_confined(run.qemu());

    let elsewhere = tempfile::tempdir().unwrap();
    let outside = elsewhere.path().join("outside.qcow2");
    fs::copy(host.path("more.qcow2"), &outside).unwrap();
    let disk_outside = disk(&outside, "qcow2", Some(SECRET)).replace("vda", "vdc");
    let overlay = format!("vda={}", elsewhere.path().join("overlay.qcow2").display());
    let snapshot = ["snapshot", "create", "held", "one", "--disk", &overlay];
    let attach = ["attach-device", "held", "-"];
    let before = || fs::read_dir(elsewhere.path()).unwrap().count();
    let has_landlock = has_landlock(&host);
    for again in [false, true] {
        if again {
            // Whoever takes the guest back holds itself to the same.
            run.signal(Signal::SIGKILL);
            run.ended();
            run = host.running(&guest);
            assert_confined(run.supervisor());
        }
        if !has_landlock {
            continue;
        }
        let refused = [
            host.user.fails(77, &attach, disk_outside.as_bytes()),
            host.user.fails(77, &["change-media", "held", "sda", outside.to_str().unwrap()], b""),
            host.user.fails(77, &snapshot, b""),
        ];
        refused.iter().for_each(|said| assert_outside(said, elsewhere.path()));
        assert_eq!(before(), 1);
        assert_out_of_reach(&host, "held", &outside);
    }
    host.user.ok(&["snapshot", "create", "held", "two"], b"");
    run.signal(Signal::SIGTERM);
    run.ends(0);

    // What vmward.toml opens is open, and without bounds there are none.
    let toml = host.path("vmward.toml");
    let plain = fs::read_to_string(&toml).unwrap();
    fs::write(&toml, format!("{plain}[confinement]\nwrite = ['{}']\n", elsewhere.path().display())).unwrap();
    let guest = host.guest("free", "");
    let run = host.running(&guest);
    let free = |words: [&str; 3]| words.map(|word| word.replace("held", "free"));
    host.user.ok(&free(attach).each_ref().map(String::as_str), disk_outside.as_bytes());
    run.signal(Signal::SIGTERM);
    run.ends(0);
    fs::write(&toml, format!("{plain}[confinement]\nmode = 'off'\n")).unwrap();
    let run = host.running(&guest);
    let own: i32 = std::process::id().try_into().unwrap();
    for line in ["CapPrm:", "CapBnd:", "NoNewPrivs:"] {
        assert_eq!(each_thread(run.supervisor(), line)[0], each_thread(own, line)[0], "{line}");
    }
    host.user.ok(&free(attach).each_ref().map(String::as_str), disk_outside.as_bytes());
    run.signal(Signal::SIGTERM);
    run.ends(0);
    fs::write(&toml, format!("{plain}[confinement]\nread = ['images']\n")).unwrap();
    let said = host.fails(78, &guest);
    assert!(said.contains("'images' in [confinement] has to begin with '/'"), "{said}");
}

/// Nobody's, who has no account here either.
const ORDINARY: u32 = 61_006;

/// The same command of an ordinary user, whose program is that copy of it.
fn as_ordinary(command: &Command, program: &Path) -> Command {
    let mut other = Command::new("setpriv");
    other.args([format!("--reuid={ORDINARY}"), format!("--regid={ORDINARY}"), "--clear-groups".to_owned()]);
    other.arg(program).args(command.get_args()).env_clear();
    other.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    other.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    other
}

#[test]
fn an_ordinary_users_supervisor_is_confined_as_well() {
    if !geteuid().is_root() || Command::new("setpriv").arg("--version").output().is_err() {
        println!("skipped: only root, with setpriv, is somebody else");
        return;
    }
    if !has_qemu_img() {
        return;
    }
    let emulator =
        std::env::var("VMWARD_TEST_EMULATOR").unwrap_or_else(|_| "/usr/bin/qemu-system-x86_64".into());
    let mut version = Command::new(&emulator);
    if !as_ordinary(version.arg("--version"), Path::new(&emulator)).status().unwrap().success() {
        println!("skipped: not everybody may run {emulator}");
        return;
    }
    let host = Host::new();
    let root = disk(&host.image("root.qcow2", "qcow2", true), "qcow2", Some(SECRET));
    let more = host.image("more.qcow2", "qcow2", true);
    let plugged_in = disk(&more, "qcow2", Some(SECRET)).replace("vda", "vdb");
    let guest = host.guest("ordinary", &root);
    // Not everybody may look into the directory of a build. Of what is elsewhere, only the bounds keep him.
    let elsewhere = tempfile::tempdir().unwrap();
    let (program, outside) = (elsewhere.path().join("vmward"), elsewhere.path().join("outside.qcow2"));
    script::copy(env!("CARGO_BIN_EXE_vmward"), &program);
    fs::copy(&more, &outside).unwrap();
    fs::set_permissions(elsewhere.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o666)).unwrap();
    let given = Command::new("chown").args(["-R", &ORDINARY.to_string()]).arg(host.user.home.path()).status();
    assert!(given.unwrap().success());
    let start = || {
        let mut run = host.start_with(&guest, &[], |command| {
            chown(host.path("ordinary.notify"), Some(ORDINARY), None).unwrap();
            *command = as_ordinary(command, &program);
        });
        run.ready();
        run
    };
    let attach = ["attach-device", "ordinary", "-"];
    let mut run = start();
    host.user.ok(&attach, plugged_in.as_bytes());
    let has_landlock = has_landlock(&host);
    for again in [false, true] {
        if again {
            run.signal(Signal::SIGKILL);
            run.ended();
            run = start();
        }
        for process in [run.supervisor(), run.qemu()] {
            assert_eq!(each_thread(process, "Uid:")[0], ORDINARY.to_string());
            assert_confined(process);
        }
        if has_landlock {
            let disk = disk(&outside, "qcow2", Some(SECRET)).replace("vda", "vdc");
            assert_outside(&host.user.fails(77, &attach, disk.as_bytes()), elsewhere.path());
            assert_out_of_reach(&host, "ordinary", &outside);
        }
    }
    run.signal(Signal::SIGTERM);
    run.ends(0);
}

/// How many sets of rules Landlock lays over each other (LANDLOCK_MAX_NUM_LAYERS of the kernel's security/landlock/limits.h).
const LAYERS: usize = 16;

/// Does something where so many sets of rules are in force already, none of which forbids anything that matters.
fn within<T: Send>(layers: usize, work: impl FnOnce() -> T + Send) -> T {
    let confined = || {
        for _ in 0..layers {
            let rules = Ruleset::default().handle_access(AccessFs::MakeBlock).unwrap().create().unwrap();
            rules.restrict_self().unwrap();
        }
        work()
    };
    std::thread::scope(|scope| scope.spawn(confined).join().unwrap())
}

#[test]
fn who_cannot_be_confined_starts_nothing_and_takes_nothing_back() {
    if !has_qemu_img() {
        return;
    }
    let host = Host::new();
    if !has_landlock(&host) {
        return;
    }
    let guest = host.encrypted_guest("loose");
    let said = within(LAYERS, || host.fails(69, &guest));
    assert!(said.contains("cannot be confined") && said.contains("--confinement off"), "{said}");
    // The supervisor still can be, its QEMU cannot.
    let said = within(LAYERS - 1, || host.fails(69, &guest));
    assert!(said.contains("could not be started") && said.contains("restrict"), "{said}");

    // A guest that runs goes on without.
    let run = host.running(&guest);
    let qemu = run.qemu();
    run.signal(Signal::SIGKILL);
    run.ended();
    let ended = within(LAYERS, || host.start(&guest, &[]).ended());
    assert_eq!(ended.status.code(), Some(69), "{}", ended.said);
    let run = host.running(&guest);
    assert_eq!(run.qemu(), qemu);
    run.signal(Signal::SIGTERM);
    run.ends(0);

    let mut run = within(LAYERS, || host.start(&guest, &["--confinement", "off"]));
    run.ready();
    run.signal(Signal::SIGTERM);
    run.ends(0);
}
