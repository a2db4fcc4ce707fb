//! Every way in which a secret can be not to be had: its own message and exit code, whoever asks, and no other secret is
//! hidden by it.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod bare;
mod script;
mod user;

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use nix::unistd::geteuid;
use uuid::Uuid;

use bare::{Host, SECRET, has_qemu_img};
use user::{User, disk_xml};

/// A secret with something wrong with it.
struct Trouble {
    uuid: String,
    exit: i32,
    said: String,
}

fn value_file(user: &User, uuid: &str) -> std::path::PathBuf {
    user.store().join(format!("{uuid}.age"))
}

/// A secret of that value, which vmward itself would not take.
fn with_value(user: &User, value: &[u8]) -> String {
    let uuid = user.uuid(&["secret", "generate"], b"");
    let recipients = fs::read_to_string(user.store().join("recipients.txt")).unwrap();
    let recipient: age::x25519::Recipient = recipients.lines().last().unwrap().parse().unwrap();
    let recipients = std::iter::once(&recipient as &dyn age::Recipient);
    let mut sealed = Vec::new();
    let mut writer = age::Encryptor::with_recipients(recipients).unwrap().wrap_output(&mut sealed).unwrap();
    writer.write_all(value).unwrap();
    writer.finish().unwrap();
    fs::write(value_file(user, &uuid), sealed).unwrap();
    uuid
}

/// All of them, in one keystore.
fn troubles(user: &User) -> Vec<Trouble> {
    let generate = || user.uuid(&["secret", "generate"], b"");
    let mut troubles = Vec::new();
    let mut trouble = |uuid: String, exit, said: &str| {
        let said = said.replace("<>", &uuid);
        troubles.push(Trouble { uuid, exit, said });
    };
    trouble(Uuid::new_v4().to_string(), 66, "no volume secret with UUID <> is defined");
    trouble(user.define(""), 66, "the secret <> has no value");
    trouble(user.define("<usage type='tls'><name>x</name></usage>"), 65, "the secret <> is for tls x");

    let other = User::new();
    let theirs = other.uuid(&["secret", "generate"], b"");
    let wrong_key = generate();
    fs::copy(value_file(&other, &theirs), value_file(user, &wrong_key)).unwrap();
    fs::set_permissions(value_file(user, &wrong_key), Permissions::from_mode(0o600)).unwrap();
    trouble(wrong_key, 77, "<> is encrypted to another key");

    let open = generate();
    fs::set_permissions(value_file(user, &open), Permissions::from_mode(0o666)).unwrap();
    trouble(open, 77, "<>.age is not safe to use: others may write it");
    let open = generate();
    fs::set_permissions(user.store().join(format!("{open}.xml")), Permissions::from_mode(0o662)).unwrap();
    trouble(open, 77, "<>.xml is not safe to use");

    let cut = generate();
    let content = fs::read(value_file(user, &cut)).unwrap();
    fs::write(value_file(user, &cut), &content[..content.len() / 2]).unwrap();
    trouble(cut, 65, "<>.age is damaged");
    let broken = generate();
    fs::write(user.store().join(format!("{broken}.xml")), "<secret").unwrap();
    trouble(broken, 65, "<>.xml is damaged");
    let huge = generate();
    fs::write(value_file(user, &huge), vec![b'x'; 2 << 20]).unwrap();
    trouble(huge, 65, "<>.age is damaged: it is too long");
    let pipe = generate();
    fs::remove_file(value_file(user, &pipe)).unwrap();
    nix::unistd::mkfifo(&value_file(user, &pipe), nix::sys::stat::Mode::S_IRUSR).unwrap();
    trouble(pipe, 65, "<>.age is damaged: it is no file");

    let unusable = "the value of the secret <> cannot be used: the value ";
    trouble(with_value(user, b""), 65, &format!("{unusable}is empty"));
    trouble(with_value(user, b"hunter2 \0 hunter2"), 65, &format!("{unusable}is no passphrase"));
    trouble(with_value(user, b"hunter2 \xff hunter2"), 65, &format!("{unusable}is no passphrase"));
    trouble(with_value(user, &[b'h'; (1 << 20) + 1]), 65, &format!("{unusable}is longer than 1048576"));
    troubles
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn each_has_its_own_message_and_hides_no_other() {
    if !has_qemu_img() {
        return;
    }
    let host = Host::new();
    let image = host.image("a.qcow2", "qcow2", true);
    let image = image.to_str().unwrap();
    let troubles = troubles(&host.user);
    let disk = |uuid: &str, n: usize| {
        disk_xml(image, "qcow2", uuid, &format!("vd{}", char::from(b'a' + n as u8)), "virtio")
    };

    // All of them in one guest, with a good one among them.
    let uuids = troubles.iter().map(|t| t.uuid.as_str()).chain([SECRET]);
    let disks: Vec<_> = uuids.enumerate().map(|(n, uuid)| disk(uuid, n)).collect();
    let guest = host.guest("all", &disks.join("\n"));
    let message = host.fails(66, &guest);
    for (n, trouble) in troubles.iter().enumerate() {
        assert!(message.contains(&trouble.said), "{} is not in: {message}", trouble.said);
        // Each at its line.
        let line =
            fs::read_to_string(&guest).unwrap().lines().position(|l| l.contains(&trouble.uuid)).unwrap() + 1;
        assert!(message.contains(&format!("all.xml:{line}:")), "{n}: {message}");
    }
    assert_eq!(message.matches("\nerror: ").count(), troubles.len(), "{message}");
    assert!(!message.contains(SECRET) && !message.contains("hunter2"), "{message}");
    // What `check` says is what `run` would.
    let guest_path = guest.to_str().unwrap();
    host.user.ok(&["check", guest_path], b"");
    let checked = host.user.fails(66, &["check", "--secrets", guest_path], b"");
    assert!(message.ends_with(&checked), "{checked}\n{message}");
    assert_eq!(host.user.fails(66, &["argv", guest_path], b""), checked);

    // Each by itself.
    let running = host.running(&host.guest("one", ""));
    for trouble in &troubles {
        let guest = host.guest("alone", &disk(&trouble.uuid, 0));
        let checked = host.user.fails(trouble.exit, &["check", "--secrets", guest.to_str().unwrap()], b"");
        let attached =
            host.user.fails(trouble.exit, &["attach-device", "one", "-"], disk(&trouble.uuid, 0).as_bytes());
        for message in [checked, attached] {
            assert!(message.contains(&trouble.said) && !message.contains("hunter2"), "{message}");
        }
    }
    // The guest and the good secret are as they were.
    host.user.ok(&["attach-device", "one", "-"], disk(SECRET, 0).as_bytes());
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.ends(0);

    // Without any key, all that have a value say so, and only they.
    fs::rename(host.user.key(), host.path("away")).unwrap();
    let good = host.guest("good", &disk(SECRET, 0));
    let good = good.to_str().unwrap();
    let message = host.user.fails(77, &["check", "--secrets", good], b"");
    assert!(message.contains("no key to decrypt") && message.contains("keystore.key"), "{message}");
    fs::rename(host.path("away"), host.user.key()).unwrap();
    host.user.ok(&["check", "--secrets", good], b"");
    // A directory that others can write is no keystore of anything.
    fs::set_permissions(host.user.store(), Permissions::from_mode(0o777)).unwrap();
    assert!(host.user.fails(77, &["check", "--secrets", good], b"").contains("secrets is not safe to use"));
}

/// Runs a script as root in a mount namespace of its own; `None`, said, where that cannot be.
fn mounted(user: &User, script: &str) -> Option<Output> {
    let namespace = |script: &str| {
        let mut command = user.command(&[]);
        let environment: Vec<_> =
            command.get_envs().map(|(k, v)| (k.to_owned(), v.unwrap().to_owned())).collect();
        command = Command::new("unshare");
        command.args(["--mount", "sh", "-ec", script]).env_clear().envs(environment);
        command.env("VMWARD", env!("CARGO_BIN_EXE_vmward")).env("STORE", user.store()).output()
    };
    if !geteuid().is_root() || !namespace("mount -t tmpfs none /mnt").is_ok_and(|o| o.status.success()) {
        println!("skipped: nothing can be mounted here");
        return None;
    }
    Some(namespace(script).unwrap())
}

#[test]
fn a_store_that_cannot_be_written_still_gives_what_it_has() {
    let user = User::new();
    let uuid = user.uuid(&["secret", "generate", "--usage-volume", "/a"], b"");
    // The index is stale and cannot be made anew.
    fs::remove_dir_all(user.store().join(".by-usage")).unwrap();
    let read_only = "mount --bind $STORE $STORE; mount -o remount,bind,ro $STORE; ";
    let Some(read) = mounted(&user, &format!("{read_only}exec $VMWARD secret get-value /a")) else { return };
    assert!(read.status.success() && read.stdout.len() == 44, "{}", said(&read));
    for write in [
        format!("set-value {uuid} --file /etc/hostname --keep-newline"),
        "generate".to_owned(),
        format!("undefine {uuid}"),
    ] {
        let failed = mounted(&user, &format!("{read_only}exec $VMWARD secret {write}")).unwrap();
        assert_eq!(failed.status.code(), Some(69), "{write}: {}", said(&failed));
        assert!(
            said(&failed).contains("Read-only file system") && said(&failed).contains("secrets"),
            "{}",
            said(&failed)
        );
    }
    assert_eq!(user.ok(&["secret", "get-value", "/a"], b"").len(), 44);
}

#[test]
fn a_full_disk_leaves_what_was_there() {
    let user = User::new();
    let script = "mkdir -p $STORE; mount -t tmpfs -o size=256k,mode=0700 none $STORE; \
        uuid=$($VMWARD secret generate --usage-volume /a); before=$($VMWARD secret get-value /a); \
        head -c 1M /dev/zero >$STORE/.filler 2>/dev/null || true; \
        $VMWARD secret set-value /a --file /proc/self/cmdline 2>&1 && exit 1; echo code $?; \
        $VMWARD secret generate --usage-volume /b 2>&1 && exit 1; echo code $?; \
        rm $STORE/.filler; test \"$($VMWARD secret get-value /a)\" = \"$before\"; \
        $VMWARD secret list; $VMWARD secret generate --usage-volume /b; echo left: $(ls -A $STORE)";
    let Some(output) = mounted(&user, script) else { return };
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(output.status.success(), "{text}{}", said(&output));
    assert_eq!(text.matches("No space left on device").count(), 2, "{text}");
    assert_eq!(text.matches("code 69").count(), 2, "{text}");
    let (_, left) = text.split_once("left: ").unwrap();
    assert!(!left.contains(".tmp-"), "{text}");
}

/// Whether another user's keyring can be had here, and an ephemeral secret in it.
fn other_user(dir: &Path, args: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new("setpriv")
        .args(["--reuid=61020", "--regid=61020", "--clear-groups", "--"])
        .arg(dir.join("vmward"))
        .args(args)
        .env_clear()
        .env("HOME", dir)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

#[test]
fn a_keyring_says_what_does_not_fit() {
    let user = User::new();
    let usage = format!("/test/{}", Uuid::new_v4());
    let made = user.run(&["secret", "generate", "--ephemeral", "--usage-volume", &usage], b"");
    if !made.status.success() {
        println!("skipped: there is no kernel keyring here");
        return;
    }
    let message = user.fails(65, &["secret", "set-value", &usage], &[b'x'; 32768]);
    assert!(message.contains("too long for keyring:, which takes 32767 bytes"), "{message}");
    assert_eq!(user.ok(&["secret", "get-value", &usage], b"").len(), 44);
    user.ok(&["secret", "undefine", &usage], b"");

    // The quota is a user's, and root has none to speak of.
    if !geteuid().is_root() {
        println!("skipped: only root is another user");
        return;
    }
    let dir = tempfile::TempDir::new().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
    script::copy(env!("CARGO_BIN_EXE_vmward"), &dir.path().join("vmward"));
    let made = other_user(dir.path(), &["secret", "generate", "--ephemeral", "--usage-volume", &usage], b"");
    assert!(made.status.success(), "{}", said(&made));
    let full = other_user(dir.path(), &["secret", "set-value", &usage], &[b'x'; 32000]);
    assert_eq!(full.status.code(), Some(69), "{}", said(&full));
    assert!(
        said(&full).contains("keyring of this user is full") && said(&full).contains("maxbytes"),
        "{}",
        said(&full)
    );
    let kept = other_user(dir.path(), &["secret", "get-value", &usage], b"");
    assert!(kept.stdout.len() == 44, "{}", said(&kept));
    assert!(other_user(dir.path(), &["secret", "undefine", &usage], b"").status.success());
}
