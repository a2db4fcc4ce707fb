use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Instant;

use tempfile::TempDir;

use super::*;
use crate::keystore::file::IdentitySources;
use crate::keystore::{Failure, Keystores};
use crate::script;
use crate::secret::{MAX_VALUE_LEN, SecretRef};
use crate::xml::Span;

/// A shell script as a program.
struct Script {
    dir: TempDir,
}

impl Script {
    fn new(text: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("program");
        script::write(&path, text);
        Self { dir }
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("program")
    }

    fn uri(&self, query: &str) -> String {
        format!("exec:{}{query}", self.path().display())
    }

    fn value(&self, query: &str) -> Result<Option<SecretValue>, KeystoreError> {
        ExecValue::from_uri(&self.uri(query), &options(10)).unwrap().value()
    }

    fn printed(&self, query: &str) -> String {
        String::from_utf8(self.value(query).unwrap().unwrap().expose().to_vec()).unwrap()
    }

    /// How it fails, and what else is said about it.
    fn fails(&self) -> (Failure, Option<String>) {
        match self.value("").unwrap_err() {
            KeystoreError::Failed { failure, source, .. } => (failure, source.map(|s| s.to_string())),
            other => panic!("{other}"),
        }
    }
}

fn options(seconds: u64) -> StoreOptions {
    let identity = IdentitySources { credentials: None, key_file: "/nonexistent".into() };
    StoreOptions { timeout: Duration::from_secs(seconds), ..StoreOptions::new(identity) }
}

/// Whether a process that has written its number to a file is gone, or goes at once: a killed one takes its time.
fn ends(file: &Path) -> bool {
    let pid = fs::read_to_string(file).unwrap();
    let gone = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        // One that is dead and not collected yet does not run.
        stat.is_empty() || stat.contains(") Z ")
    };
    let started = Instant::now();
    while !gone() && started.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(10));
    }
    gone()
}

#[test]
fn what_a_program_prints_is_the_value() {
    let echo = Script::new("printf '%s\\n' \"$@\"");
    assert_eq!(echo.printed("?arg=a%26b&arg=&arg=c"), "a&b\n\nc\n");
    assert_eq!(echo.printed("?arg=a&strip-newline=yes"), "a");
    assert_eq!(echo.printed("?arg=a%0a&strip-newline=yes"), "a\n");
    assert_eq!(Script::new("printf a").printed("?strip-newline=yes"), "a");
    let long = Script::new("head -c 1048576 /dev/zero").value("").unwrap().unwrap();
    assert_eq!(long.len(), MAX_VALUE_LEN);
}

#[test]
fn it_has_nothing_of_this_process() {
    let file = tempfile::tempfile().unwrap();
    // As whoever started vmward may have left one open.
    let _left_open = rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty());
    let script = Script::new(
        "env | cut -d= -f1 | grep -vE '^(_|LANG)$' | sort | tr '\\n' ' '; ls /proc/self/fd | tr '\\n' ' '; cat; pwd",
    );
    // 3 is the directory that ls reads.
    assert_eq!(script.printed("?env=CARGO_MANIFEST_DIR"), "CARGO_MANIFEST_DIR HOME PATH PWD 0 1 2 3 /\n");
}

#[test]
fn each_way_to_fail_is_told_from_the_others() {
    let fails = |script: &str| Script::new(script).fails();
    let said = |text: &str| Some(text.to_owned());
    assert!(Script::new("exit 66").value("").unwrap().is_none());
    assert_eq!(
        fails("echo no >&2; exit 3"),
        (Failure::Other("it ended with exit code 3".into()), said("no"))
    );
    assert_eq!(fails("exit 1"), (Failure::Other("it ended with exit code 1".into()), None));
    assert_eq!(fails("kill -SEGV $$"), (Failure::Other("it was killed by SIGSEGV".into()), None));
    assert_eq!(fails("echo later >&2; exit 75"), (Failure::NotReady("later".into()), None));
    assert_eq!(fails("echo 'not you' >&2; exit 77"), (Failure::Denied, said("not you")));
    assert_eq!(
        fails("head -c 1048577 /dev/zero"),
        (Failure::BadAnswer("the value is longer than 1048576 bytes".into()), None)
    );
    assert!(matches!(fails("cat /dev/zero").0, Failure::BadAnswer(_)));
    let (_, words) = fails("i=0; while [ $i -lt 3000 ]; do echo line $i >&2; i=$((i+1)); done; exit 1");
    assert_eq!(words, said("line 2997; line 2998; line 2999"));
}

#[test]
fn a_value_in_its_words_is_not_shown() {
    let (_, words) = Script::new("set -x; echo hunter2; exit 1").fails();
    assert!(!words.unwrap().contains("hunter2"));
}

#[test]
fn at_its_deadline_it_and_its_children_are_killed() {
    for script in
        ["printf part; sleep 60", "exec >&-; sleep 60", "sleep 60 & wait", "while :; do echo x >&2; done"]
    {
        let script = Script::new(&format!("echo $$ >$(dirname $0)/pid; {script}"));
        let started = Instant::now();
        let error = ExecValue::from_uri(&script.uri(""), &options(3)).unwrap().value().unwrap_err();
        let KeystoreError::Failed { failure, .. } = error else { panic!("{error}") };
        assert_eq!(failure, Failure::TimedOut(Duration::from_secs(3)));
        assert!(failure.is_temporary() && started.elapsed() < Duration::from_secs(30));
        assert!(ends(&script.dir.path().join("pid")));
    }
    let script = Script::new("sleep 60 & echo $! >$(dirname $0)/pid; wait");
    ExecValue::from_uri(&script.uri(""), &options(3)).unwrap().value().unwrap_err();
    assert!(ends(&script.dir.path().join("pid")));
}

#[test]
fn what_it_leaves_running_is_not_waited_for() {
    let script = Script::new("sleep 60 & echo $! >$(dirname $0)/pid; printf value");
    let started = Instant::now();
    assert_eq!(script.printed(""), "value");
    assert!(started.elapsed() < Duration::from_secs(30));
    assert!(ends(&script.dir.path().join("pid")));
}

#[test]
fn a_program_that_others_can_change_is_not_run() {
    let script = Script::new("printf value");
    for mode in [0o722, 0o770] {
        fs::set_permissions(script.path(), Permissions::from_mode(mode)).unwrap();
        assert!(matches!(script.value(""), Err(KeystoreError::Unsafe { .. })), "{mode:o}");
    }
    fs::set_permissions(script.path(), Permissions::from_mode(0o600)).unwrap();
    assert!(matches!(script.value(""), Err(KeystoreError::Unsafe { .. })));
    fs::remove_file(script.path()).unwrap();
    assert!(matches!(script.value(""), Err(KeystoreError::Io { what: "run", .. })));
    fs::create_dir(script.path()).unwrap();
    assert!(matches!(script.value(""), Err(KeystoreError::Unsafe { .. })));
}

#[test]
fn as_a_store_it_is_asked_once_for_each_secret() {
    let script = Script::new(
        "echo \"$*\" >>$(dirname $0)/asked
         case \"$*\" in
             'of vmward uuid 00000000-0000-0000-0000-000000000007') printf by-uuid ;;
             'of vmward usage volume /images/a b.qcow2') printf by-usage ;;
             *' twice') printf x ;;
             *) exit 66 ;;
         esac",
    );
    let stores = Keystores::open(&[script.uri("?arg=of&arg=vmward")], &options(10)).unwrap();
    let volume = |lookup| SecretRef { lookup, kind: UsageKind::Volume, text: true, span: Span::default() };
    let by_uuid = volume(SecretLookup::Uuid(Uuid::from_u128(7)));
    let by_usage = volume(SecretLookup::Usage("/images/a b.qcow2".to_owned()));
    let resolved = stores.resolve(&[by_uuid.clone(), by_usage.clone()]).unwrap();
    assert_eq!(resolved.get(&by_uuid).unwrap().expose(), b"by-uuid");
    assert_eq!(resolved.get(&by_usage).unwrap().expose(), b"by-usage");
    assert_eq!(fs::read_to_string(script.dir.path().join("asked")).unwrap().lines().count(), 2);
    let find = |id: &str| stores.find(&SecretLookup::Usage(id.to_owned()), None);
    let found = find("/images/a b.qcow2").unwrap();
    assert_eq!(found.definition.usage.as_ref().unwrap().kind, UsageKind::Volume);
    assert!(found.has_value().unwrap());
    assert!(matches!(find("twice"), Err(KeystoreError::Ambiguous { .. })));
    assert!(matches!(find("nothing"), Err(KeystoreError::NotDefined { .. })));
    assert!(matches!(
        found.set_value(&SecretValue::zeroed(1).unwrap()),
        Err(KeystoreError::Unsupported { .. })
    ));
    assert!(matches!(found.store.list(), Err(KeystoreError::Unsupported { .. })));
}

#[test]
fn uris_are_read_strictly() {
    for wrong in [
        "exec:",
        "exec:pass",
        "exec:/bin/true?",
        "exec:/bin/true?args=x",
        "exec:/bin/true?env=",
        "exec:/bin/true?env=TOKEN=hunter2",
        "exec:/bin/true?strip-newline=maybe",
    ] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
}
