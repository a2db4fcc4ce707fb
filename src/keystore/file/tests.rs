use std::fs;
use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::*;
use crate::keystore::Keystores;
use crate::secret::{DefinitionError, SecretRef, Usage, ValueError};
use crate::xml::Span;

fn sources(home: &TempDir) -> IdentitySources {
    IdentitySources { credentials: None, key_file: home.path().join("etc/keystore.key") }
}

fn store(home: &TempDir) -> FileStore {
    FileStore::new(home.path().join("secrets"), sources(home))
}

fn secret(n: u128, kind: UsageKind, id: &str) -> SecretDefinition {
    SecretDefinition {
        uuid: Uuid::from_u128(n),
        ephemeral: false,
        private: false,
        description: None,
        value_uri: None,
        recipients: Vec::new(),
        usage: Some(Usage { kind, id: id.to_owned() }),
    }
}

fn value(text: &str) -> SecretValue {
    SecretValue::copy_of(text.as_bytes()).unwrap()
}

fn by_usage(store: &FileStore, kind: UsageKind, id: &str) -> Option<u128> {
    let found = store.find(&SecretLookup::Usage(id.to_owned()), Some(kind)).unwrap();
    found.map(|d| d.uuid.as_u128())
}

#[test]
fn a_secret_comes_back_as_it_was_put_in() {
    let home = TempDir::new().unwrap();
    let store = store(&home);
    let disk = secret(1, UsageKind::Volume, "/images/a.qcow2");
    store.define(&disk).unwrap();
    assert!(store.value(&disk).unwrap().is_none());
    store.set_value(&disk, &value("first")).unwrap();
    store.set_value(&disk, &value("second")).unwrap();
    assert_eq!(store.value(&disk).unwrap(), Some(value("second")));
    assert_eq!(store.find(&SecretLookup::Uuid(disk.uuid), None).unwrap(), Some(disk.clone()));
    assert_eq!(by_usage(&store, UsageKind::Volume, "/images/a.qcow2"), Some(1));
    assert_eq!(by_usage(&store, UsageKind::Ceph, "/images/a.qcow2"), None);
    store.undefine(&disk).unwrap();
    assert_eq!(by_usage(&store, UsageKind::Volume, "/images/a.qcow2"), None);
    assert!(store.list().unwrap().definitions.is_empty());
    assert!(matches!(store.undefine(&disk), Err(KeystoreError::NotDefined { .. })));
}

#[test]
fn the_index_follows_files_that_come_and_go_by_other_means() {
    let home = TempDir::new().unwrap();
    let store = store(&home);
    store.define(&secret(1, UsageKind::Volume, "a")).unwrap();
    assert!(store.index_is_current());
    let stranger = secret(2, UsageKind::Volume, "b");
    let path = store.definition_path(stranger.uuid);
    fs::write(&path, stranger.to_xml().to_string()).unwrap();
    assert_eq!(by_usage(&store, UsageKind::Volume, "b"), Some(2));
    let rival = secret(3, UsageKind::Volume, "b");
    assert!(matches!(
        store.define(&rival),
        Err(KeystoreError::Definition(DefinitionError::UsageTaken(u))) if u == stranger.uuid
    ));
    fs::remove_file(path).unwrap();
    assert_eq!(by_usage(&store, UsageKind::Volume, "b"), None);
    store.define(&rival).unwrap();
    assert_eq!(by_usage(&store, UsageKind::Volume, "b"), Some(3));
}

#[test]
fn a_broken_definition_is_no_missing_one_and_hides_no_other() {
    let home = TempDir::new().unwrap();
    let store = store(&home);
    for n in 1..=3 {
        store.define(&secret(n, UsageKind::Ceph, &format!("client.{n}"))).unwrap();
    }
    fs::write(store.definition_path(Uuid::from_u128(2)), "<secret><uuid>").unwrap();
    assert_eq!(by_usage(&store, UsageKind::Ceph, "client.3"), Some(3));
    let lost = store.find(&SecretLookup::Usage("client.2".into()), Some(UsageKind::Ceph));
    assert!(matches!(lost, Err(KeystoreError::Damaged { .. })), "{lost:?}");
    let listing = store.list().unwrap();
    assert_eq!((listing.definitions.len(), listing.broken.len()), (2, 1));
}

#[test]
fn without_the_right_key_a_value_is_an_error_of_its_own() {
    let home = TempDir::new().unwrap();
    let store = store(&home);
    let (one, two) = (secret(1, UsageKind::Volume, "a"), secret(2, UsageKind::Volume, "b"));
    store.define(&one).unwrap();
    store.define(&two).unwrap();
    store.set_value(&one, &value("x")).unwrap();
    let key = home.path().join("etc/keystore.key");
    fs::rename(&key, home.path().join("away")).unwrap();
    assert!(matches!(store.value(&one), Err(KeystoreError::NoIdentity { .. })));
    assert!(matches!(store.value(&two), Ok(None)));
    // Setting needs the public half alone, and makes no new key.
    store.set_value(&one, &value("y")).unwrap();
    assert!(!key.exists());
    store.identity.recipients_or_new().unwrap();
    assert!(matches!(store.value(&one), Err(KeystoreError::WrongIdentity { .. })));
    fs::rename(home.path().join("away"), &key).unwrap();
    assert_eq!(store.value(&one).unwrap(), Some(value("y")));
}

#[test]
fn what_others_could_have_written_is_refused() {
    let home = TempDir::new().unwrap();
    let store = store(&home);
    let secret = secret(1, UsageKind::Volume, "a");
    let uuid = secret.uuid;
    store.define(&secret).unwrap();
    store.set_value(&secret, &value("x")).unwrap();
    let refused = |path: &std::path::Path, mode: u32| {
        let before = fs::metadata(path).unwrap().permissions();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let found = store.find(&SecretLookup::Uuid(uuid), None).and_then(|_| store.value(&secret));
        assert!(matches!(found, Err(KeystoreError::Unsafe { .. })), "{}: {found:?}", path.display());
        fs::set_permissions(path, before).unwrap();
    };
    refused(&store.dir, 0o777);
    refused(&store.definition_path(uuid), 0o664);
    refused(&store.value_path(uuid), 0o606);
    refused(&store.identity.key_file, 0o640);
    assert_eq!(store.value(&secret).unwrap(), Some(value("x")));
}

#[test]
fn all_that_is_missing_is_said_at_once() {
    let home = TempDir::new().unwrap();
    let store = store(&home);
    let one = secret(1, UsageKind::Volume, "a");
    store.define(&one).unwrap();
    store.set_value(&one, &value("x")).unwrap();
    store.define(&secret(2, UsageKind::Ceph, "b")).unwrap();
    let stores = Keystores::open(&[store.uri()], &StoreOptions::new(sources(&home))).unwrap();
    let uuid = |n| SecretLookup::Uuid(Uuid::from_u128(n));
    let wanted = |lookup, kind| SecretRef { lookup, kind, text: true, span: Span::default() };
    let good = [
        wanted(uuid(1), UsageKind::Volume),
        wanted(SecretLookup::Usage("a".into()), UsageKind::Volume),
        wanted(uuid(1), UsageKind::Volume),
    ];
    let resolved = stores.resolve(&good).unwrap();
    assert!(good.iter().all(|s| resolved.get(s) == Some(&value("x"))));
    let bad = [
        wanted(uuid(1), UsageKind::Ceph),
        wanted(uuid(2), UsageKind::Ceph),
        wanted(uuid(1), UsageKind::Volume),
        wanted(SecretLookup::Usage("b".into()), UsageKind::Volume),
        wanted(uuid(2), UsageKind::Ceph),
    ];
    let unresolved = stores.resolve(&bad).unwrap_err();
    let errors: Vec<_> = unresolved.iter().map(|u| &*u.error).collect();
    assert!(
        matches!(
            errors[..],
            [
                KeystoreError::OtherUsage { .. },
                KeystoreError::NoValue { .. },
                KeystoreError::NotDefined { .. }
            ]
        ),
        "{errors:?}"
    );
}

/// A store with one secret whose files can be spoilt.
fn one_secret(home: &TempDir) -> (FileStore, SecretDefinition) {
    let (store, secret) = (store(home), secret(1, UsageKind::Volume, "a"));
    store.define(&secret).unwrap();
    store.set_value(&secret, &value("hunter2 hunter2 hunter2")).unwrap();
    (store, secret)
}

/// Everything that reads the files. None of it may panic, and no error shows a value.
fn read_all(store: &FileStore, secret: &SecretDefinition) -> Option<SecretValue> {
    let shown = |e: KeystoreError| assert!(!format!("{e:?} {e}").contains("hunter2"));
    let _ = store.find(&SecretLookup::Uuid(secret.uuid), None).map_err(shown);
    let _ = store.find(&SecretLookup::Usage("a".into()), Some(UsageKind::Volume)).map_err(shown);
    let _ = store.list().map_err(shown);
    store.value(secret).map_err(shown).ok().flatten()
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(32))]

    #[test]
    fn any_bytes_in_any_file_are_an_error_at_worst(which in 0..5, content: Vec<u8>) {
        let home = TempDir::new().unwrap();
        let (store, secret) = one_secret(&home);
        let path = match which {
            0 => store.definition_path(secret.uuid),
            1 => store.value_path(secret.uuid),
            2 => store.identity.key_file.clone(),
            3 => store.dir.join(RECIPIENTS),
            _ => store.dir.join(".by-usage/stamp"),
        };
        fs::write(path, content).unwrap();
        read_all(&store, &secret);
        let _ = store.set_value(&secret, &value("x"));
    }

    #[test]
    fn a_value_with_a_changed_byte_is_never_another_value(at: proptest::sample::Index, bit in 0u8..8) {
        let home = TempDir::new().unwrap();
        let (store, secret) = one_secret(&home);
        let mut content = fs::read(store.value_path(secret.uuid)).unwrap();
        let at = at.index(content.len());
        content[at] ^= 1 << bit;
        fs::write(store.value_path(secret.uuid), content).unwrap();
        proptest::prop_assert!(read_all(&store, &secret).is_none());
    }

    #[test]
    fn a_value_cut_short_is_never_a_shorter_value(at: proptest::sample::Index) {
        let home = TempDir::new().unwrap();
        let (store, secret) = one_secret(&home);
        let content = fs::read(store.value_path(secret.uuid)).unwrap();
        fs::write(store.value_path(secret.uuid), &content[..at.index(content.len())]).unwrap();
        proptest::prop_assert!(read_all(&store, &secret).is_none());
    }
}

#[test]
fn a_value_that_qemu_would_not_take_is_said_before_it_is_asked() {
    let home = TempDir::new().unwrap();
    let store = store(&home);
    let binary = secret(1, UsageKind::Volume, "binary");
    let empty = secret(2, UsageKind::Volume, "empty");
    for (secret, bytes) in [(&binary, &b"a\0\xff"[..]), (&empty, b"")] {
        store.define(secret).unwrap();
        store.set_value(secret, &SecretValue::copy_of(bytes).unwrap()).unwrap();
    }
    let stores = Keystores::open(&[store.uri()], &StoreOptions::new(sources(&home))).unwrap();
    let wanted = |n, text| SecretRef {
        lookup: SecretLookup::Uuid(Uuid::from_u128(n)),
        kind: UsageKind::Volume,
        text,
        span: Span::default(),
    };
    let unresolved = stores.resolve(&[wanted(1, true), wanted(1, false), wanted(2, false)]).unwrap_err();
    let errors: Vec<_> = unresolved.iter().map(|u| &*u.error).collect();
    assert!(
        matches!(
            errors[..],
            [
                KeystoreError::Value { source: ValueError::NotText, .. },
                KeystoreError::Value { source: ValueError::Empty, .. }
            ]
        ),
        "{errors:?}"
    );
    assert!(stores.resolve(&[wanted(1, false)]).unwrap().get(&wanted(1, false)).is_some());
}
