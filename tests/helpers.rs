//! Programs beside QEMU: how they come, go, and fail.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod bare;
mod script;
mod user;

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use bare::{
    Host, PASSPHRASE, Run, SECRET, disk, has_qemu_img, helpers_of, installed, nothing_left, processes_of,
    ssh_disk,
};
use user::wait_until;

const UUID: &str = "6f1e3c52-0000-4000-8000-00000000beef";
const KEY: &str = "7a1e3c52-0000-4000-8000-00000000cafe";
const KEY_VALUE: &str = "vmward-test-Tpm-Key-1";

fn has_swtpm() -> bool {
    installed(&["swtpm", "swtpm_setup"])
}

/// The XML of a guest with a UUID, whose memory is shared.
fn guest(host: &Host, name: &str, devices: &str) -> PathBuf {
    let path = host.guest(name, devices);
    let xml = fs::read_to_string(&path).unwrap().replace(
        "<memory unit",
        &format!(
            "<uuid>{UUID}</uuid><memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>\
             <memory unit"
        ),
    );
    fs::write(&path, xml).unwrap();
    path
}

/// The XML of a TPM with its state in the host's home.
fn tpm(host: &Host, inner: &str) -> String {
    format!(
        "<tpm model='tpm-crb'><backend type='emulator' version='2.0'>\n<source type='dir' path='{}'/>\n{inner}\
         </backend></tpm>",
        host.path("tpms/tpm2").display()
    )
}

fn encryption() -> String {
    format!("<encryption secret='{KEY}'/>")
}

/// A secret for TPMs.
fn define_key(host: &Host, value: &str) {
    host.user.define(&format!("<uuid>{KEY}</uuid><usage type='vtpm'><name>guest</name></usage>"));
    host.user.ok(&["secret", "set-value", KEY], value.as_bytes());
}

/// A directory for the guest, and a virtiofsd that is that script.
fn shared_by(host: &Host, script: &str) -> String {
    let program = host.path("virtiofsd");
    script::write(&program, &format!("[ \"$1\" != --print-capabilities ] || exit 0\n{script}"));
    format!(
        "<filesystem type='mount'><driver type='virtiofs'/><binary path='{}'/><source dir='{}'/><target dir='s'/>\
         </filesystem>",
        program.display(),
        host.user.home.path().display()
    )
}

fn status(host: &Host, name: &str) -> serde_json::Value {
    serde_json::from_slice(&host.user.ok(&["status", "--json", name], b"")).unwrap()
}

/// The process of the only helper.
fn helper(host: &Host, name: &str) -> i32 {
    let status = status(host, name);
    let helpers = status["helpers"].as_array().unwrap();
    assert_eq!(helpers.len(), 1, "{status}");
    helpers[0]["process"].as_i64().unwrap().try_into().unwrap()
}

fn is_gone(process: i32) -> bool {
    // A process that nobody has collected yet has no arguments any more.
    fs::read(format!("/proc/{process}/cmdline")).map_or(true, |arguments| arguments.is_empty())
}

fn stop(run: Run) -> String {
    run.signal(Signal::SIGTERM);
    run.ends(0)
}

#[test]
fn a_tpm_comes_with_the_guest_and_keeps_its_state() {
    if !has_swtpm() {
        return;
    }
    let host = Host::new();
    let guest = guest(&host, "tpm", &tpm(&host, "<active_pcr_banks><sha256/><sha384/></active_pcr_banks>"));
    let run = host.running(&guest);
    let status = status(&host, "tpm");
    assert_eq!(status["helpers"][0]["program"], "swtpm", "{status}");
    assert_eq!(status["helpers"][0]["device"], "tpm0", "{status}");
    assert_eq!(helpers_of(run.lib_dir()).len(), 2, "swtpm, and QEMU which is connected to it");
    let asked = host.user.ok(&["qmp", "tpm", r#"{"execute": "query-tpm"}"#], b"");
    assert!(String::from_utf8_lossy(&asked).contains("tpm-crb"));
    let swtpm = helper(&host, "tpm");
    let limits = fs::read_to_string(format!("/proc/{swtpm}/limits")).unwrap();
    let core = limits.lines().find(|l| l.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    stop(run);
    let state = host.path("tpms/tpm2/tpm2-00.permall");
    let made = fs::metadata(&state).unwrap();
    assert_eq!(made.mode() & 0o077 & !0o040, 0, "{:o}", made.mode());
    assert_eq!(fs::metadata(host.path("tpms/tpm2")).unwrap().mode() & 0o777, 0o700);
    assert_eq!(fs::read_dir(host.path("tpms")).unwrap().count(), 1, "what it was made in is left");

    // The same TPM again: its banks are set, but no keys are made.
    let mut run = host.start(&guest, &["-v"]);
    run.ready();
    let said = stop(run);
    assert!(
        said.contains("reconfiguration")
            && !said.contains("created RSA")
            && !said.contains("swtpm, which gave"),
        "{said}"
    );
}

#[test]
fn the_key_of_a_tpm_shows_nowhere_and_has_to_be_the_right_one() {
    if !has_swtpm() {
        return;
    }
    let host = Host::new();
    define_key(&host, KEY_VALUE);
    let guest = guest(&host, "sealed", &tpm(&host, &encryption()));
    let mut run = host.start(&guest, &["-vv"]);
    run.ready();
    for process in [run.supervisor(), run.qemu(), helper(&host, "sealed")] {
        for file in ["cmdline", "environ"] {
            let bytes = fs::read(format!("/proc/{process}/{file}")).unwrap();
            assert!(!String::from_utf8_lossy(&bytes).contains(KEY_VALUE), "{file} of {process}");
        }
    }
    let state = fs::read(run.lib_dir().join("state.json")).unwrap();
    assert!(!String::from_utf8_lossy(&state).contains(KEY_VALUE));
    let said = stop(run);
    assert!(!said.contains(KEY_VALUE), "{said}");

    host.user.ok(&["secret", "set-value", KEY], b"another");
    let said = host.fails(77, &guest);
    assert!(said.contains("Verification of HMAC failed") && said.contains("secret set-value"), "{said}");
    // An encrypted state is opened encrypted or not at all, and so is a plain one.
    fs::write(&guest, fs::read_to_string(&guest).unwrap().replace(&encryption(), "")).unwrap();
    let said = host.fails(65, &guest);
    assert!(said.contains("the TPM's state is encrypted"), "{said}");
}

#[test]
fn a_plain_tpm_is_not_taken_for_an_encrypted_one() {
    if !has_swtpm() {
        return;
    }
    let host = Host::new();
    define_key(&host, KEY_VALUE);
    let guest = guest(&host, "plain", &tpm(&host, ""));
    stop(host.running(&guest));
    fs::write(
        &guest,
        fs::read_to_string(&guest).unwrap().replace("</backend>", &format!("{}</backend>", encryption())),
    )
    .unwrap();
    let said = host.fails(65, &guest);
    assert!(said.contains("the TPM's state is not encrypted"), "{said}");
}

#[test]
fn a_key_that_is_not_there_is_named_with_its_line() {
    let host = Host::new();
    let said = host.fails(66, &guest(&host, "nokey", &tpm(&host, &encryption())));
    assert!(said.contains(KEY) && said.contains("nokey.xml:"), "{said}");
}

#[test]
fn a_helper_that_is_not_installed_is_named_with_its_package() {
    let host = Host::new();
    let interface = "<interface type='user'><backend type='passt'/><model type='virtio'/></interface>";
    let filesystem = "<filesystem type='mount'><driver type='virtiofs'/><binary path='/nowhere/virtiofsd'/>\
                      <source dir='/'/><target dir='s'/></filesystem>";
    let guest = guest(&host, "missing", &format!("{}\n{interface}\n{filesystem}", tpm(&host, "")));
    let run = host.start_with(&guest, &[], |command| {
        command.env("PATH", "/nonexistent");
    });
    let said = run.ends(69);
    let checked = host.user.command(&["check", guest.to_str().unwrap()]).env("PATH", "/nonexistent").output();
    let checked = checked.unwrap();
    assert_eq!(checked.status.code(), Some(65));
    for said in [said, String::from_utf8(checked.stderr).unwrap()] {
        for words in
            ["no swtpm on", "(Debian: swtpm)", "no passt on", "(Debian: passt)", "no /nowhere/virtiofsd"]
        {
            assert!(said.contains(words), "{words}: {said}");
        }
        assert!(said.contains("missing.xml:8:"), "{said}");
    }
}

#[test]
fn a_disk_whose_helper_does_not_come_is_not_plugged_in() {
    let host = Host::new();
    let guest = host.guest("bare", "");
    let disk = ssh_disk(&host, "vdb", "virtio");
    // The programs that are found: QEMU, and after a while something that is called nbdkit.
    let programs = host.path("bin");
    fs::create_dir(&programs).unwrap();
    let path = env::var_os("PATH").unwrap_or_default();
    let qemu = env::split_paths(&path).map(|dir| dir.join("qemu-system-x86_64")).find(|path| path.is_file());
    std::os::unix::fs::symlink(qemu.unwrap(), programs.join("qemu-system-x86_64")).unwrap();
    let mut run = host.start_with(&guest, &[], |command| {
        command.env("PATH", &programs);
    });
    run.ready();
    let attach = ["attach-device", "bare", "-"];
    let said = host.user.fails(69, &attach, disk.as_bytes());
    assert!(said.contains("<stdin>:1:") && said.contains("there is no nbdkit on this host"), "{said}");
    assert!(said.contains("(Debian: nbdkit)"), "{said}");

    script::write(&programs.join("nbdkit"), "echo 'no such plugin' >&2; exit 3\n");
    let said = host.user.fails(69, &attach, disk.as_bytes());
    assert!(said.contains("nbdkit, which is to give the guest the file /disk on 127.0.0.1"), "{said}");
    assert!(said.contains("ended with exit code 3") && said.contains("no such plugin"), "{said}");
    assert_eq!(status(&host, "bare")["helpers"], serde_json::json!([]));

    host.user.ok(&["secret", "undefine", "ssh"], b"");
    let said = host.user.fails(66, &attach, disk.as_bytes());
    assert!(said.contains("'ssh'"), "{said}");
    stop(run);
}

#[test]
fn a_tpm_without_anything_to_find_it_by_is_refused() {
    if !has_swtpm() {
        return;
    }
    let host = Host::new();
    let said =
        host.fails(65, &host.guest("nameless", "<tpm model='tpm-crb'><backend type='emulator'/></tpm>"));
    assert!(said.contains("by the guest's UUID") && said.contains("nameless.xml:"), "{said}");
}

#[test]
fn a_helper_that_ends_at_once_is_quoted() {
    let host = Host::new();
    let said = host.fails(69, &guest(&host, "atonce", &shared_by(&host, "echo 'it is Monday' >&2; exit 3")));
    assert!(said.contains("virtiofsd, which is to give the guest the directory"), "{said}");
    assert!(said.contains("ended with exit code 3") && said.contains("it is Monday"), "{said}");
}

#[test]
fn a_helper_that_never_listens_is_given_up() {
    let host = Host::new();
    // It does not end when it is asked to either, nor does what it has started.
    let pid = host.path("started");
    let deaf =
        format!("trap '' TERM; echo 'soon' >&2; sleep 1000 & echo $! >{}; wait; sleep 1000", pid.display());
    let deaf = shared_by(&host, &deaf);
    let said = host.fails(69, &guest(&host, "never", &deaf));
    assert!(said.contains("was not ready within 10 s") && said.contains("soon"), "{said}");
    assert!(said.contains("it is killed"), "{said}");
    let started = fs::read_to_string(pid).unwrap();
    wait_until("what it has started stays", || !Path::new("/proc").join(started.trim()).exists());
}

#[test]
fn a_start_can_be_stopped_while_a_helper_starts() {
    let host = Host::new();
    let run = host.start(&guest(&host, "waiting", &shared_by(&host, "exec sleep 1000")), &[]);
    wait_until("a helper", || !helpers_of(run.lib_dir()).is_empty() || has_child(run.supervisor(), "sleep"));
    run.signal(Signal::SIGINT);
    run.ends(130);
}

/// Whether a process has a child of that name.
fn has_child(parent: i32, name: &str) -> bool {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    let named =
        |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name);
    children.split_whitespace().any(named)
}

#[test]
fn a_qemu_that_does_not_start_takes_its_helpers_along() {
    if !has_swtpm() || !has_qemu_img() {
        return;
    }
    let host = Host::new();
    let image = host.image("i.qcow2", "qcow2", true);
    let guest =
        guest(&host, "stillborn", &format!("{}{}", disk(&image, "qcow2", Some(SECRET)), tpm(&host, "")));
    host.user.ok(&["secret", "set-value", SECRET], b"something else");
    let said = host.fails(77, &guest);
    assert!(said.contains("cannot unlock any keyslot"), "{said}");
    host.user.ok(&["secret", "set-value", SECRET], PASSPHRASE.as_bytes());
    stop(host.running(&guest));
}

#[test]
fn a_helper_that_dies_is_told_of_and_the_guest_goes_on() {
    if !has_swtpm() {
        return;
    }
    let host = Host::new();
    let run = host.running(&guest(&host, "bereaved", &tpm(&host, "")));
    kill(Pid::from_raw(helper(&host, "bereaved")), Signal::SIGKILL).unwrap();
    wait_until("the status", || status(&host, "bereaved")["helpers"][0]["process"].is_null());
    let status = status(&host, "bereaved");
    assert_eq!(status["state"], "running");
    assert_eq!(status["helpers"][0]["ended"], "was killed by SIGKILL");
    let shown = String::from_utf8(host.user.ok(&["status", "bereaved"], b"")).unwrap();
    assert!(shown.contains("swtpm (tpm0), was killed by SIGKILL"), "{shown}");
    let said = stop(run);
    assert!(said.contains("swtpm, which gave the guest its TPM 2.0, was killed by SIGKILL"), "{said}");
    assert!(said.contains("the guest has no TPM until it is started anew"), "{said}");
}

#[test]
fn helpers_are_taken_back_with_their_guest() {
    if !has_swtpm() {
        return;
    }
    let host = Host::new();
    let guest = guest(&host, "back", &tpm(&host, ""));
    let mut run = host.running(&guest);
    let swtpm = helper(&host, "back");
    run.signal(Signal::SIGKILL);
    run.ended();
    run = host.running(&guest);
    assert_eq!(helper(&host, "back"), swtpm);
    // It is watched again.
    kill(Pid::from_raw(swtpm), Signal::SIGKILL).unwrap();
    wait_until("the status", || status(&host, "back")["helpers"][0]["process"].is_null());
    stop(run);

    let mut run = host.running(&guest);
    let swtpm = helper(&host, "back");
    run.signal(Signal::SIGKILL);
    run.ended();
    kill(Pid::from_raw(swtpm), Signal::SIGKILL).unwrap();
    wait_until("its end", || is_gone(swtpm));
    run = host.running(&guest);
    assert_eq!(status(&host, "back")["helpers"][0]["ended"], "ended");
    assert!(stop(run).contains("the guest has no TPM"));

    let mut run = host.running(&guest);
    run.signal(Signal::SIGKILL);
    run.ended();
    run = host.running(&guest);
    let swtpm = helper(&host, "back");
    stop(run);
    assert!(is_gone(swtpm));
}

#[test]
fn helpers_of_a_guest_that_is_gone_are_ended() {
    let host = Host::new();
    let stuck = guest(&host, "cut", &shared_by(&host, "sleep 1000 # \"$@\""));
    let run = host.start(&stuck, &[]);
    wait_until("a helper", || !helpers_of(run.lib_dir()).is_empty());
    run.signal(Signal::SIGKILL);
    let lib_dir = run.lib_dir().to_owned();
    run.ended();
    assert!(!helpers_of(&lib_dir).is_empty());
    // Its next start is without the helper, and ends what is left of the last one.
    let run = host.running(&host.guest("cut", ""));
    assert!(helpers_of(run.lib_dir()).is_empty());
    stop(run);

    if !has_swtpm() {
        return;
    }
    let guest = guest(&host, "alone", &tpm(&host, ""));
    let run = host.running(&guest);
    let (qemu, swtpm) = (run.qemu(), helper(&host, "alone"));
    run.signal(Signal::SIGKILL);
    let lib_dir = run.lib_dir().to_owned();
    run.ended();
    // swtpm would go with QEMU's connection: stopped, it has to be killed.
    kill(Pid::from_raw(swtpm), Signal::SIGSTOP).unwrap();
    kill(Pid::from_raw(qemu), Signal::SIGKILL).unwrap();
    wait_until("QEMU's end", || processes_of(&lib_dir).is_empty());
    let run = host.running(&host.guest("alone", ""));
    assert!(is_gone(swtpm));
    stop(run);
}

#[test]
fn tpms_are_where_libvirt_has_them() {
    if !has_swtpm() {
        return;
    }
    struct Gone(PathBuf);
    impl Drop for Gone {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
    let host = Host::new();
    let uuid = uuid::Uuid::new_v4().to_string();
    let (states, kind) = match nix::unistd::geteuid().is_root() {
        true => (Path::new("/var/lib/libvirt/swtpm").join(&uuid), "tpm2"),
        false => (host.path("home/.config/libvirt/qemu/swtpm").join(&uuid), "tpm2"),
    };
    let _gone = Gone(states.clone());
    let guest = guest(&host, "usual", "<tpm model='tpm-crb'><backend type='emulator'/></tpm>");
    fs::write(&guest, fs::read_to_string(&guest).unwrap().replace(UUID, &uuid)).unwrap();
    stop(host.running(&guest));
    assert!(states.join(kind).join("tpm2-00.permall").exists());
    nothing_left(&host.lib_dir("usual"));
}
