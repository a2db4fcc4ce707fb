//! A keystore of several users, each of them tried as an attacker. Needs root, to be all of them.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod script;

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use nix::unistd::geteuid;
use tempfile::TempDir;
use uuid::Uuid;

/// The group of those who may add secrets. Users and groups have no accounts: numbers do.
const CREATORS: u32 = 61_000;

/// A user of the tests.
#[derive(Clone, Copy)]
struct Person {
    uid: u32,
    creator: bool,
}

const OFFICER: Person = Person { uid: 61_001, creator: true };
const CREATOR: Person = Person { uid: 61_002, creator: true };
const RIVAL: Person = Person { uid: 61_003, creator: true };
const GUEST: Person = Person { uid: 61_004, creator: false };
const OTHER_GUEST: Person = Person { uid: 61_005, creator: false };

/// A shared keystore, and root's key to all of it.
struct Shared {
    home: TempDir,
}

/// The program where everybody may run it: not everybody may look into the directory of a build.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = PROGRAM.get_or_init(|| {
        let dir = TempDir::new().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let path = dir.path().join("vmward");
        script::copy(env!("CARGO_BIN_EXE_vmward"), &path);
        (dir, path)
    });
    path
}

impl Shared {
    /// `None`, said, where this cannot be tried.
    fn new() -> Option<Self> {
        if !geteuid().is_root() || Command::new("setpriv").arg("--version").output().is_err() {
            println!("skipped: only root, with setpriv, is several users");
            return None;
        }
        let home = TempDir::new().unwrap();
        fs::set_permissions(home.path(), Permissions::from_mode(0o755)).unwrap();
        let shared = Self { home };
        fs::create_dir(shared.store()).unwrap();
        chown(shared.store(), Some(OFFICER.uid), Some(CREATORS)).unwrap();
        fs::set_permissions(shared.store(), Permissions::from_mode(0o3775)).unwrap();
        for uid in [0, OFFICER.uid, CREATOR.uid, RIVAL.uid, GUEST.uid, OTHER_GUEST.uid] {
            let dir = shared.home_of(uid);
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("vmward.toml"), format!("keystore = '{}'\n", shared.uri())).unwrap();
            chown(&dir, Some(uid), None).unwrap();
        }
        let root = shared.new_key(0);
        fs::write(shared.store().join("recipients.txt"), root).unwrap();
        Some(shared)
    }

    fn store(&self) -> PathBuf {
        self.home.path().join("secrets")
    }

    fn uri(&self) -> String {
        format!("file:{}?owner={}&group={CREATORS}", self.store().display(), OFFICER.uid)
    }

    fn home_of(&self, uid: u32) -> PathBuf {
        self.home.path().join(uid.to_string())
    }

    /// A new identity of a user; returns the public half.
    fn new_key(&self, uid: u32) -> String {
        // vmward makes one for its own store; it is told here which one to use for the shared one.
        let dir = self.home_of(uid);
        let own = format!("file:{}", dir.join("own").display());
        let made = self.run_as(uid, false, &["--keystore", &own, "secret", "generate"], b"");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let text = fs::read_to_string(dir.join("own/recipients.txt")).unwrap();
        text.lines().last().unwrap().to_owned()
    }

    fn command(&self, uid: u32, creator: bool, program: &Path) -> Command {
        let home = self.home_of(uid);
        let mut command = Command::new("setpriv");
        let groups = if creator { format!("--groups={CREATORS}") } else { "--clear-groups".to_owned() };
        command
            .args([format!("--reuid={uid}"), format!("--regid={uid}"), groups])
            .arg(program)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", &home)
            .env("VMWARD_CONFIG", home.join("vmward.toml"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run_as(&self, uid: u32, creator: bool, args: &[&str], input: &[u8]) -> Output {
        let mut child = self.command(uid, creator, program()).args(args).spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(input);
        child.wait_with_output().unwrap()
    }

    fn run(&self, person: Person, args: &[&str], input: &[u8]) -> Output {
        self.run_as(person.uid, person.creator, args, input)
    }

    fn ok(&self, person: Person, args: &[&str], input: &[u8]) -> String {
        let output = self.run(person, args, input);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    #[track_caller]
    fn fails(&self, exit: i32, said: &str, person: Person, args: &[&str], input: &[u8]) {
        let output = self.run(person, args, input);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(exit), "{args:?}: {message}");
        assert!(message.contains(said), "{args:?}: {message}");
    }

    /// What a user does by hand.
    fn sh(&self, person: Person, script: &str) -> bool {
        let mut command = self.command(person.uid, person.creator, Path::new("/bin/sh"));
        command.args(["-c", script]).current_dir(self.store()).output().unwrap().status.success()
    }

    /// Puts a file of his into the store.
    #[track_caller]
    fn plant(&self, person: Person, name: &str, content: &[u8]) {
        let mut command = self.command(person.uid, person.creator, Path::new("/usr/bin/tee"));
        let mut child = command.arg(name).current_dir(self.store()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(content).unwrap();
        assert!(child.wait_with_output().unwrap().status.success(), "{name}");
    }

    fn as_root(&self) -> Person {
        Person { uid: 0, creator: false }
    }
}

#[test]
fn who_has_the_public_half_adds_secrets_and_reads_none() {
    let Some(shared) = Shared::new() else { return };
    let root = shared.as_root();
    let mine = shared.ok(CREATOR, &["secret", "generate", "--usage-volume", "/images/a"], b"");
    shared.ok(CREATOR, &["secret", "set-value", &mine], b"set by hand");
    let theirs = shared.ok(RIVAL, &["secret", "generate", "--usage-volume", "/images/b"], b"");
    for uuid in [&mine, &theirs] {
        shared.fails(77, "no key to decrypt", CREATOR, &["secret", "get-value", uuid], b"");
        shared.fails(77, "no key to decrypt", OFFICER, &["secret", "get-value", uuid], b"");
    }
    // Nobody is left to make a key of his own the store's.
    assert!(!shared.home_of(CREATOR.uid).join("keystore.key").exists());
    assert_eq!(shared.ok(root, &["secret", "get-value", "/images/a"], b""), "set by hand");
    let before = shared.ok(root, &["secret", "get-value", &theirs], b"");
    assert_eq!(before.len(), 44);

    // What is another one's stays.
    let said = "belongs to the user 61003";
    shared.fails(77, said, CREATOR, &["secret", "set-value", &theirs], b"mine");
    shared.fails(77, said, CREATOR, &["secret", "undefine", &theirs], b"");
    let xml = format!(
        "<secret><uuid>{theirs}</uuid><usage type='volume'><volume>/images/b</volume></usage></secret>"
    );
    shared.fails(77, said, CREATOR, &["secret", "define", "-"], xml.as_bytes());
    shared.fails(65, "taken", CREATOR, &["secret", "generate", "--usage-volume", "/images/b"], b"");
    for file in [format!("{theirs}.xml"), format!("{theirs}.age"), "recipients.txt".to_owned()] {
        for by_hand in [format!("rm -f {file}"), format!(": >>{file}"), format!("echo x >x; mv -f x {file}")]
        {
            assert!(!shared.sh(CREATOR, &by_hand), "{by_hand}");
        }
    }
    assert_eq!(shared.ok(root, &["secret", "get-value", &theirs], b""), before);

    // The officer lists and deletes.
    let list = shared.ok(OFFICER, &["secret", "list"], b"");
    assert!(list.contains(&mine) && list.contains(&theirs), "{list}");
    shared.ok(OFFICER, &["secret", "undefine", &theirs], b"");
    let again = shared.ok(OFFICER, &["secret", "generate", "--usage-volume", "/images/b"], b"");
    assert_eq!(shared.ok(root, &["secret", "get-value", "/images/b"], b"").len(), 44);
    shared.fails(77, "belongs to the user 61001", CREATOR, &["secret", "undefine", &again], b"");
    // To whom it may concern: files are for those who may enter the directory, whatever the umask was.
    assert_eq!(fs::metadata(shared.store().join(format!("{mine}.age"))).unwrap().mode() & 0o7777, 0o644);
    shared.ok(CREATOR, &["secret", "undefine", &mine], b"");
    let left = fs::read_dir(shared.store()).unwrap().count();
    assert_eq!(left, 4 + 1, "the officer's secret, its claim, recipients.txt, and what `mv` was given");
}

#[test]
fn a_guest_has_a_key_to_its_own_secrets_only() {
    let Some(shared) = Shared::new() else { return };
    let (key, other) = (shared.new_key(GUEST.uid), shared.new_key(OTHER_GUEST.uid));
    let mine = shared.ok(CREATOR, &["secret", "generate", "--recipient", &key], b"");
    let theirs = shared.ok(CREATOR, &["secret", "generate", "--recipient", &other], b"");
    let value = shared.ok(GUEST, &["secret", "get-value", &mine], b"");
    assert_eq!(value, shared.ok(shared.as_root(), &["secret", "get-value", &mine], b""));
    shared.fails(77, "another key", GUEST, &["secret", "get-value", &theirs], b"");
    shared.fails(77, "Permission denied", GUEST, &["secret", "generate"], b"");
    shared.fails(77, "belongs to", GUEST, &["secret", "undefine", &mine], b"");
    // What is set later is for the same keys.
    shared.ok(CREATOR, &["secret", "set-value", &mine], b"new");
    assert_eq!(shared.ok(GUEST, &["secret", "get-value", &mine], b""), "new");
    shared.fails(77, "another key", OTHER_GUEST, &["secret", "get-value", &mine], b"");
    // Whose keys they are, only who made the secret decides: the officer gives no value to readers of others' choice.
    shared.fails(77, "chose the keys", OFFICER, &["secret", "set-value", &mine], b"the ceph key");
    let private = fs::read_to_string(shared.home_of(GUEST.uid).join("keystore.key")).unwrap();
    let private = private.lines().last().unwrap();
    let output = shared.run(CREATOR, &["secret", "generate", "--recipient", private], b"");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(65) && said.contains("recipient number 1"), "{said}");
    assert!(!said.contains("SECRET-KEY"), "{said}");
}

#[test]
fn what_a_member_plants_is_nobodys_secret() {
    let Some(shared) = Shared::new() else { return };
    let root = shared.as_root();
    let get =
        |uuid: &str, said: &str, exit| shared.fails(exit, said, root, &["secret", "get-value", uuid], b"");
    let age = |uuid: &str| format!("{uuid}.age");
    let xml = |uuid: &str, inner: &str| format!("<secret><uuid>{uuid}</uuid>{inner}</secret>");
    let new = || Uuid::new_v4().to_string();

    // A value for a secret that waits for one.
    let waiting = new();
    shared.ok(OFFICER, &["secret", "define", "-"], xml(&waiting, "").as_bytes());
    let rivals = shared.ok(RIVAL, &["secret", "generate"], b"");
    let known = fs::read(shared.store().join(age(&rivals))).unwrap();
    shared.plant(RIVAL, &age(&waiting), &known);
    get(&waiting, "belongs to the user 61003, the secret to the user 61001", 77);

    // A value that lies in wait for a secret.
    let expected = new();
    shared.plant(RIVAL, &age(&expected), &known);
    let definition = xml(&expected, "");
    shared.fails(77, "belongs to the user 61003", CREATOR, &["secret", "define", "-"], definition.as_bytes());

    // Another one's value as one's own, for somebody who can read it to use.
    let victim = shared.ok(CREATOR, &["secret", "generate"], b"");
    let stolen = fs::read(shared.store().join(age(&victim))).unwrap();
    let decoy = shared.ok(RIVAL, &["secret", "generate"], b"");
    shared.plant(RIVAL, &age(&decoy), &stolen);
    get(&decoy, "does not say that it is this secret's value", 77);

    // A definition that has its reader run or read something.
    let program = new();
    let inner = "<value uri='exec:/bin/true'/>";
    shared.plant(RIVAL, &format!("{program}.xml"), xml(&program, inner).as_bytes());
    get(&program, "must not say", 77);

    // A usage that is taken, given to another secret: by a claim of one's own, which cannot replace the first.
    let disk = shared.ok(CREATOR, &["secret", "generate", "--usage-volume", "/images/web"], b"");
    let claim = fs::read_dir(shared.store()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let claim = claim.into_iter().find(|name| name.ends_with(".usage")).unwrap();
    let usage = "<usage type='volume'><volume>/images/web</volume></usage>";
    let twin = new();
    shared.plant(RIVAL, &format!("{twin}.xml"), xml(&twin, usage).as_bytes());
    assert!(!shared.sh(RIVAL, &format!("echo {twin} >x; mv -f x {claim}")));
    assert_eq!(
        shared.ok(root, &["secret", "dumpxml", "/images/web"], b""),
        shared.ok(root, &["secret", "dumpxml", &disk], b"")
    );
    // And one that leads to another one's secret is void before it can lead elsewhere.
    shared.ok(CREATOR, &["secret", "undefine", &disk], b"");
    shared.plant(RIVAL, &claim, format!("{disk}\n").as_bytes());
    shared.fails(
        77,
        "belongs to the user 61003",
        CREATOR,
        &["secret", "generate", "--uuid", &disk, "--usage-volume", "/images/web"],
        b"",
    );
    shared.fails(66, "no secret", root, &["secret", "dumpxml", "/images/web"], b"");

    // What is no file, or has a reader wait, or is read by others under another name.
    for (how, said) in
        [("mkfifo NAME", "no file"), ("ln -s /etc/hostname NAME", "no file"), ("mkdir NAME", "no file")]
    {
        let uuid = new();
        let name = format!("{uuid}.xml");
        assert!(shared.sh(RIVAL, &how.replace("NAME", &name)), "{how}");
        get(&uuid, said, 65);
    }
    let (linked, twin) = (new(), new());
    shared.plant(RIVAL, &format!("{linked}.xml"), xml(&linked, "").as_bytes());
    assert!(shared.sh(RIVAL, &format!("ln {linked}.xml {twin}.xml")));
    get(&linked, "2 names", 77);

    // Commands for the terminal of who lists.
    let escape = new();
    shared.plant(
        RIVAL,
        &format!("{escape}.xml"),
        xml(&escape, "<description>\u{9b}2J</description>").as_bytes(),
    );
    let broken = new();
    shared.plant(RIVAL, &format!("{broken}.xml"), b"<secret private='\x1b[2J'/>");
    let list = shared.run(OFFICER, &["secret", "list"], b"");
    assert_eq!(list.status.code(), Some(65));
    let (out, said) = (String::from_utf8(list.stdout).unwrap(), String::from_utf8(list.stderr).unwrap());
    assert!(out.contains(&victim) && !out.contains(&escape) && said.contains(&escape), "{out}{said}");
    assert!(!format!("{out}{said}").contains(|c: char| c.is_control() && c != '\n'), "{said:?}");

    // Which files will not be taken is for the doctor to say.
    let doctor = String::from_utf8(shared.run(OFFICER, &["doctor"], b"").stdout).unwrap();
    assert!(doctor.contains("files will not be taken"), "{doctor}");

    // The secret that all of it was about is as it was.
    assert_eq!(shared.ok(root, &["secret", "get-value", &victim], b"").len(), 44);
}

#[test]
fn what_others_add_stands_in_for_nothing_of_ones_own() {
    let Some(shared) = Shared::new() else { return };
    let own = format!("file:{}", shared.home_of(0).join("own").display());
    let root = shared.as_root();
    let uuid = shared.ok(root, &["--keystore", &own, "secret", "generate"], b"");
    let value = shared.ok(root, &["--keystore", &own, "secret", "get-value", &uuid], b"");
    shared.ok(RIVAL, &["secret", "generate", "--uuid", &uuid], b"");
    // Named first, and asked last.
    let both = ["--keystore", &shared.uri(), "--keystore", &own];
    let get = [&both[..], &["secret", "get-value", &uuid]].concat();
    assert_eq!(shared.ok(root, &get, b""), value);
}

#[test]
fn the_officer_cannot_make_a_key_of_his_own_the_stores() {
    let Some(shared) = Shared::new() else { return };
    let key = shared.new_key(OFFICER.uid);
    let before = shared.ok(CREATOR, &["secret", "generate"], b"");
    shared.fails(77, "another key", OFFICER, &["secret", "get-value", &before], b"");
    // The directory is his, and so he can replace what is in it, but not in root's name.
    assert!(shared.sh(OFFICER, "mv recipients.txt gone"));
    shared.fails(66, "no recipients.txt", CREATOR, &["secret", "generate"], b"");
    shared.plant(OFFICER, "recipients.txt", key.as_bytes());
    shared.fails(77, "not to root", CREATOR, &["secret", "generate"], b"");
    shared.fails(77, "not to root", CREATOR, &["secret", "set-value", &before], b"x");
    // A secret of the same name that he defines is not taken for one's own.
    shared.sh(OFFICER, "mv -f gone recipients.txt");
    shared.ok(OFFICER, &["secret", "undefine", &before], b"");
    let xml = format!("<secret><uuid>{before}</uuid><recipient>{key}</recipient></secret>");
    shared.ok(OFFICER, &["secret", "define", "-"], xml.as_bytes());
    shared.fails(77, "belongs to the user 61001", CREATOR, &["secret", "set-value", &before], b"x");
}

#[test]
fn a_directory_that_protects_nobody_is_not_shared() {
    let Some(shared) = Shared::new() else { return };
    shared.ok(CREATOR, &["secret", "generate"], b"");
    let list = |uri: &str, exit, said: &str| {
        shared.fails(exit, said, CREATOR, &["--keystore", uri, "secret", "list"], b"");
    };
    let dir = shared.store();
    let dir = dir.display();
    list(&format!("file:{dir}"), 77, "not safe to use");
    list(&format!("file:{dir}?group={CREATORS}"), 77, "belongs to the user 61001");
    list(&format!("file:{dir}?owner={}&group=1", OFFICER.uid), 77, "its group is 61000, not 1");
    list(&format!("file:{dir}x?group={CREATORS}"), 77, "not there");
    for query in [
        "",
        "group",
        "group=no-such-group",
        "owner=no-such-user&group=0",
        "owner=0",
        "group=0&x=1",
        "group=0&group=0",
    ] {
        list(&format!("file:{dir}?{query}"), 78, "is not a keystore");
    }
    for mode in [0o775, 0o2775, 0o1775, 0o3777] {
        fs::set_permissions(shared.store(), Permissions::from_mode(mode)).unwrap();
        list(&shared.uri(), 77, &format!("its mode is {mode:04o}"));
    }
    // Without others, and without a list for anybody but by name.
    fs::set_permissions(shared.store(), Permissions::from_mode(0o3731)).unwrap();
    let uuid = shared.ok(CREATOR, &["secret", "generate", "--usage-volume", "/a"], b"");
    shared.ok(GUEST, &["secret", "dumpxml", "/a"], b"");
    shared.ok(GUEST, &["secret", "dumpxml", &uuid], b"");
    shared.fails(77, "could not be read", GUEST, &["secret", "list"], b"");
    fs::set_permissions(shared.store(), Permissions::from_mode(0o3770)).unwrap();
    shared.fails(77, "could not be read", GUEST, &["secret", "dumpxml", &uuid], b"");
}

#[test]
fn of_many_who_want_a_usage_one_has_it() {
    let Some(shared) = Shared::new() else { return };
    let people = [CREATOR, RIVAL, OFFICER];
    let children: Vec<_> = (0..9)
        .map(|n| {
            let person = people[n % 3];
            let mut command = shared.command(person.uid, person.creator, program());
            command.args(["secret", "generate", "--usage-volume", "/one"]).spawn().unwrap()
        })
        .collect();
    let won = children.into_iter().filter_map(|c| {
        let output = c.wait_with_output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
    });
    let won: Vec<_> = won.collect();
    assert_eq!(won.len(), 1, "{won:?}");
    let found = shared.ok(OFFICER, &["secret", "list", "--json"], b"");
    let found: serde_json::Value = serde_json::from_str(&found).unwrap();
    let of_store = |r: &&serde_json::Value| r["keystore"].as_str().unwrap().starts_with("file:");
    let found: Vec<_> = found.as_array().unwrap().iter().filter(of_store).collect();
    assert!(found.len() == 1 && found[0]["uuid"] == won[0].as_str(), "{found:?}");
}
