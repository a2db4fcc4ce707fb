use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tempfile::TempDir;

use super::*;
use crate::keystore::file::{FileStore, IdentitySources};
use crate::keystore::{ImportError, ImportOptions, Imported, import};
use crate::secret::{MasterKey, ValueError};

const KEY: [u8; 32] = [7; 32];

/// A directory as libvirt's, with its secret.conf beside it.
struct Libvirt {
    home: TempDir,
}

impl Libvirt {
    fn new() -> Self {
        let home = TempDir::new().unwrap();
        fs::create_dir(home.path().join("secrets")).unwrap();
        Self { home }
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.home.path().join(path);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    fn secret(&self, n: u128, usage: &str) -> SecretDefinition {
        let uuid = Uuid::from_u128(n);
        let xml = format!(
            "<!-- made by hand -->\n<secret ephemeral='no' private='yes'>\n  <uuid>{uuid}</uuid>\n\
             <description>of {usage}</description>\n  <usage type='volume'><volume>{usage}</volume></usage>\n</secret>\n"
        );
        self.write(&format!("secrets/{uuid}.xml"), xml);
        SecretDefinition {
            private: true,
            description: Some(format!("of {usage}")),
            usage: Some(Usage { kind: UsageKind::Volume, id: usage.to_owned() }),
            ..SecretDefinition::of_uuid(uuid)
        }
    }

    fn plain(&self, secret: &SecretDefinition, value: &[u8]) {
        self.write(&format!("secrets/{}.base64", secret.uuid), STANDARD.encode(value));
    }

    fn encrypted(&self, secret: &SecretDefinition, value: &[u8]) {
        self.write(&format!("secrets/{}.aes256cbc", secret.uuid), STANDARD.encode(seal(value)));
    }

    fn open(&self, query: &str) -> Box<dyn Keystore> {
        let identity = IdentitySources {
            credentials: Some(self.home.path().join("credentials")),
            key_file: self.home.path().join("keystore.key"),
        };
        let uri = format!("libvirt:{}/secrets{query}", self.home.path().display());
        LibvirtStore::from_uri(&uri, &StoreOptions::new(identity)).unwrap()
    }

    fn value(&self, secret: &SecretDefinition) -> Result<Option<Vec<u8>>, KeystoreError> {
        Ok(self.open("").value(secret)?.map(|value| value.expose().to_vec()))
    }
}

fn seal(value: &[u8]) -> Vec<u8> {
    // QEMU's secret objects are encrypted in the same way.
    let key = MasterKey::from_value(SecretValue::copy_of(&KEY).unwrap()).unwrap();
    // Another key finds what looks like padding under one IV of 256.
    let sealed = key.seal(&SecretValue::copy_of(value).unwrap(), &mut StdRng::seed_from_u64(1));
    [STANDARD.decode(sealed.iv).unwrap(), STANDARD.decode(sealed.data).unwrap()].concat()
}

#[test]
fn plain_values_and_definitions_are_read() {
    let libvirt = Libvirt::new();
    let (a, b) = (libvirt.secret(1, "/a"), libvirt.secret(2, "/b"));
    libvirt.plain(&a, b"value of a");
    let store = libvirt.open("");
    assert_eq!(store.list().unwrap().definitions, [a.clone(), b.clone()]);
    assert_eq!(store.find(&SecretLookup::Uuid(a.uuid), None).unwrap(), Some(a.clone()));
    let usage = |id: &str| SecretLookup::Usage(id.to_owned());
    assert_eq!(store.find(&usage("/b"), Some(UsageKind::Volume)).unwrap(), Some(b.clone()));
    assert_eq!(store.find(&usage("/b"), None).unwrap(), Some(b.clone()));
    assert_eq!(store.find(&usage("/b"), Some(UsageKind::Ceph)).unwrap(), None);
    assert_eq!(store.find(&usage("/c"), None).unwrap(), None);
    assert_eq!(libvirt.value(&a).unwrap().unwrap(), b"value of a");
    assert_eq!(libvirt.value(&b).unwrap(), None);
    assert!(store.has_value(&a).unwrap() && !store.has_value(&b).unwrap());
    // What comes later is found as well.
    let c = libvirt.secret(3, "/c");
    assert_eq!(store.find(&usage("/c"), None).unwrap(), Some(c));
    for refused in
        [store.define(&a), store.undefine(&a), store.set_value(&a, &SecretValue::zeroed(1).unwrap())]
    {
        assert!(matches!(refused, Err(KeystoreError::Unsupported { .. })));
    }
}

#[test]
fn encrypted_values_take_the_key_from_where_libvirt_does() {
    let libvirt = Libvirt::new();
    let a = libvirt.secret(1, "/a");
    libvirt.encrypted(&a, b"value of a");
    assert!(libvirt.open("").has_value(&a).unwrap());
    assert!(matches!(libvirt.value(&a), Err(KeystoreError::NoIdentity { .. })));
    fs::create_dir(libvirt.home.path().join("credentials")).unwrap();
    let credential = libvirt.write("credentials/secrets-encryption-key", KEY);
    assert_eq!(libvirt.value(&a).unwrap().unwrap(), b"value of a");
    // secret.conf goes before the credential, the URI before both.
    let other = libvirt.write("other", [8; 32]);
    libvirt.write("secret.conf", format!("secrets_encryption_key = \"{}\"\n", other.display()));
    assert!(
        matches!(libvirt.value(&a), Err(KeystoreError::WrongIdentity { tried, .. }) if tried == [other.display().to_string()])
    );
    let by_uri = |path: &Path| libvirt.open(&format!("?key={}", path.display())).value(&a);
    for key in [credential.display().to_string(), "credential:secrets-encryption-key".to_owned()] {
        let value = libvirt.open(&format!("?key={key}")).value(&a);
        assert_eq!(value.unwrap().unwrap().expose(), b"value of a");
    }
    // A credential's mode is systemd's affair, a file's is not.
    fs::set_permissions(&credential, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(by_uri(&credential).is_ok());
    let readable = libvirt.write("readable", KEY);
    fs::set_permissions(&readable, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(by_uri(&readable), Err(KeystoreError::Unsafe { .. })));
    for wrong in [&KEY[..31], b"0707070707070707070707070707070707070707070707070707070707070707"] {
        let short = libvirt.write("short", wrong);
        assert!(matches!(by_uri(&short), Err(KeystoreError::Damaged { .. })));
    }
    assert!(matches!(by_uri(Path::new("/nowhere")), Err(KeystoreError::NoIdentity { .. })));
}

#[test]
fn a_plain_value_that_is_left_beside_another_encrypted_one_is_said() {
    let libvirt = Libvirt::new();
    let a = libvirt.secret(1, "/a");
    libvirt.plain(&a, b"old");
    libvirt.encrypted(&a, b"new");
    let key = libvirt.write("key", KEY);
    libvirt.write("secret.conf", format!("secrets_encryption_key = '{}'\n", key.display()));
    let error = libvirt.value(&a).unwrap_err().to_string();
    assert!(error.contains(".base64 is damaged") && error.contains("another value"), "{error}");
    libvirt.plain(&a, b"new");
    assert_eq!(libvirt.value(&a).unwrap().unwrap(), b"new");
}

#[test]
fn damage_is_said_and_hides_nothing_else() {
    let libvirt = Libvirt::new();
    let (a, b) = (libvirt.secret(1, "/a"), libvirt.secret(2, "/b"));
    libvirt.write(&format!("secrets/{}.base64", a.uuid), "hunter2!");
    let error = libvirt.value(&a).unwrap_err().to_string();
    assert!(error.contains("not base64") && !error.contains("hunter2"), "{error}");
    let key = libvirt.write("key", KEY);
    libvirt.write("secret.conf", format!("secrets_encryption_key = '{}'\n", key.display()));
    for sealed in [&[][..], &[0; 16], &[0; 33]] {
        libvirt.write(&format!("secrets/{}.aes256cbc", b.uuid), STANDARD.encode(sealed));
        assert!(matches!(libvirt.value(&b), Err(KeystoreError::Damaged { .. })));
    }
    libvirt.write(&format!("secrets/{}.base64", b.uuid), vec![b'A'; (1 << 20) + 4]);
    assert!(matches!(libvirt.value(&b), Err(KeystoreError::Value { source: ValueError::TooLong, .. })));
    libvirt.write(&format!("secrets/{}.xml", a.uuid), "<secret>");
    let store = libvirt.open("");
    let listing = store.list().unwrap();
    assert_eq!((listing.definitions, listing.broken.len()), (vec![b.clone()], 1));
    let usage = |id: &str| store.find(&SecretLookup::Usage(id.to_owned()), Some(UsageKind::Volume));
    assert_eq!(usage("/b").unwrap(), Some(b.clone()));
    // It may be the broken one.
    assert!(matches!(usage("/a"), Err(KeystoreError::Damaged { .. })));
    libvirt.write(&format!("secrets/{}.xml", a.uuid), b.to_xml().to_string());
    assert!(matches!(store.find(&SecretLookup::Uuid(a.uuid), None), Err(KeystoreError::Damaged { .. })));
    fs::set_permissions(libvirt.home.path().join("secrets"), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(store.list(), Err(KeystoreError::Unsafe { .. })));
}

#[test]
fn where_no_libvirt_is_there_are_no_secrets() {
    let libvirt = Libvirt::new();
    fs::remove_dir(libvirt.home.path().join("secrets")).unwrap();
    let store = libvirt.open("");
    assert!(store.list().unwrap().definitions.is_empty());
    assert_eq!(store.find(&SecretLookup::Usage("/a".to_owned()), None).unwrap(), None);
    let options = StoreOptions::new(IdentitySources { credentials: None, key_file: "/nonexistent".into() });
    let open = |uri| LibvirtStore::from_uri(uri, &options);
    assert_eq!(open("libvirt:").unwrap().uri(), "libvirt:");
    for wrong in [
        "libvirt:secrets",
        "libvirt:/a?key=",
        "libvirt:/a?key=k",
        "libvirt:/a?key=credential:k",
        "libvirt:/a?kee=/k",
        "libvirt:/a?",
    ] {
        assert!(open(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn secrets_are_moved_over_once() {
    let libvirt = Libvirt::new();
    let (a, b) = (libvirt.secret(1, "/a"), libvirt.secret(2, "/b"));
    libvirt.plain(&a, b"value of a");
    let from = libvirt.open("");
    let identity = IdentitySources { credentials: None, key_file: libvirt.home.path().join("keystore.key") };
    let to = FileStore::new(libvirt.home.path().join("store"), identity);
    let run = |secret, force, dry_run| import(secret, from.as_ref(), &to, ImportOptions { force, dry_run });
    assert_eq!(run(&a, false, true).unwrap(), Imported::Added);
    assert!(to.list().unwrap().definitions.is_empty());
    assert_eq!(run(&a, false, false).unwrap(), Imported::Added);
    assert_eq!(run(&b, false, false).unwrap(), Imported::AddedWithoutValue);
    assert_eq!(to.list().unwrap().definitions, [a.clone(), b.clone()]);
    assert_eq!(to.value(&a).unwrap().unwrap().expose(), b"value of a");
    assert_eq!(run(&a, false, false).unwrap(), Imported::Unchanged);
    assert_eq!(run(&b, true, false).unwrap(), Imported::Unchanged);
    // What was broken off is completed.
    libvirt.plain(&b, b"value of b");
    assert_eq!(run(&b, false, false).unwrap(), Imported::Added);
    libvirt.plain(&a, b"other");
    assert!(matches!(run(&a, false, false), Err(ImportError::Exists { .. })));
    assert_eq!(run(&a, true, true).unwrap(), Imported::Replaced);
    assert_eq!(to.value(&a).unwrap().unwrap().expose(), b"value of a");
    assert_eq!(run(&a, true, false).unwrap(), Imported::Replaced);
    assert_eq!(to.value(&a).unwrap().unwrap().expose(), b"other");
    // Another usage, which a definition may not change.
    let moved = libvirt.secret(1, "/moved");
    assert!(matches!(run(&moved, false, false), Err(ImportError::Exists { .. })));
    assert_eq!(run(&moved, true, false).unwrap(), Imported::Replaced);
    assert_eq!(to.list().unwrap().definitions, [moved.clone(), b.clone()]);
    // A usage that another secret has there is not taken from it.
    let rival = libvirt.secret(3, "/b");
    assert!(matches!(run(&rival, true, false), Err(ImportError::Keystore(KeystoreError::Definition(_)))));
    // Without the identity nothing is compared, and so nothing taken for the same.
    fs::remove_file(libvirt.home.path().join("keystore.key")).unwrap();
    let error = run(&libvirt.secret(2, "/b"), false, false).unwrap_err().to_string();
    assert!(error.contains("cannot be compared"), "{error}");
}

proptest! {
    #[test]
    fn any_bytes_are_decrypted_or_refused(sealed in prop::collection::vec(any::<u8>(), 0..200)) {
        let key = SecretValue::copy_of(&KEY).unwrap();
        let _ = decrypt(SecretValue::copy_of(&sealed).unwrap(), &key);
    }

    #[test]
    fn what_was_encrypted_comes_back(value in prop::collection::vec(any::<u8>(), 0..100)) {
        let key = SecretValue::copy_of(&KEY).unwrap();
        let decrypted = decrypt(SecretValue::copy_of(&seal(&value)).unwrap(), &key).unwrap().unwrap();
        prop_assert_eq!(decrypted.expose(), &value[..]);
    }
}
