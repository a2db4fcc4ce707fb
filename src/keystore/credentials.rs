//! `credentials:`, what systemd hands to a service: `LoadCredential=`, `LoadCredentialEncrypted=` and their like.
//!
//! A credential is named by its secret's UUID, or by its usage in characters that systemd, units and shells all take as
//! they are: `volume.+images+web-1.qcow2` is that of the volume `/images/web-1.qcow2`. (systemd-escape's backslashes
//! would have to be doubled in a unit.)

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use uuid::Uuid;

use crate::secret::{SecretDefinition, SecretLookup, SecretValue, Usage, UsageKind, ValueError};
use crate::xml::Keyword;

use super::file::disk;
use super::kinds::Opened;
use super::{Failure, Keystore, KeystoreError, Listing, StoreOptions, ValueObject, find_by_name};

const URI: &str = "credentials:";
/// The longest name of a credential, which is a file's.
const MAX_NAME: usize = 255;

/// What a service was given. Outside of a service there is nothing in it.
pub(super) struct CredentialStore {
    dir: Option<PathBuf>,
}

impl CredentialStore {
    /// `credentials:`.
    pub(super) fn from_uri(uri: &str, options: &StoreOptions) -> Opened<dyn Keystore> {
        match uri {
            URI => Ok(Box::new(Self { dir: options.identity.credentials.clone() })),
            _ => {
                Err("credentials: takes nothing after the colon, unless it is the place of one value"
                    .to_owned())
            }
        }
    }

    /// The secret, if there is a credential of its name.
    fn given(&self, secret: SecretDefinition) -> Result<Option<SecretDefinition>, KeystoreError> {
        Ok(self.has_value(&secret)?.then_some(secret))
    }

    fn path(&self, secret: &SecretDefinition) -> Option<PathBuf> {
        Some(self.dir.as_ref()?.join(name_of(secret)?))
    }
}

impl Keystore for CredentialStore {
    fn uri(&self) -> &str {
        URI
    }

    fn is_writable(&self) -> bool {
        false
    }

    fn find(
        &self,
        lookup: &SecretLookup,
        kind: Option<UsageKind>,
    ) -> Result<Option<SecretDefinition>, KeystoreError> {
        let found = find_by_name(lookup, kind, |secret| self.given(secret))?;
        match (found, lookup) {
            // The UUID of one that is named by its usage. A service has a handful of credentials.
            (None, SecretLookup::Uuid(uuid)) => {
                Ok(self.list()?.definitions.into_iter().find(|secret| secret.uuid == *uuid))
            }
            (found, _) => Ok(found),
        }
    }

    fn value(&self, secret: &SecretDefinition) -> Result<Option<SecretValue>, KeystoreError> {
        let Some(path) = self.path(secret) else { return Ok(None) };
        let Some(file) = open(&path)? else { return Ok(None) };
        SecretValue::read_from(file)
            .map(Some)
            .map_err(|source| KeystoreError::Value { uuid: secret.uuid, source })
    }

    fn has_value(&self, secret: &SecretDefinition) -> Result<bool, KeystoreError> {
        self.path(secret).map_or(Ok(false), |path| is_there(&path))
    }

    fn list(&self) -> Result<Listing, KeystoreError> {
        let mut listing = Listing::default();
        let Some(dir) = &self.dir else { return Ok(listing) };
        let error = || KeystoreError::io(dir, "read");
        for entry in fs::read_dir(dir).map_err(error())? {
            let name = entry.map_err(error())?.file_name();
            // The others are something else's.
            listing.definitions.extend(name.to_str().and_then(secret_of));
        }
        listing.definitions.sort_unstable_by_key(|secret| secret.uuid);
        Ok(listing)
    }
}

/// A credential of any name.
pub(super) struct Credential {
    uri: String,
    name: String,
    dir: Option<PathBuf>,
}

impl Credential {
    /// `credentials:NAME`.
    pub(super) fn from_uri(uri: &str, options: &StoreOptions) -> Opened<dyn ValueObject> {
        let name = uri.strip_prefix(URI).filter(|name| is_name(name));
        let name = name.ok_or("what follows credentials: must be the name of a credential")?.to_owned();
        Ok(Box::new(Self { uri: uri.to_owned(), name, dir: options.identity.credentials.clone() }))
    }

    fn path(&self) -> Result<PathBuf, KeystoreError> {
        let missing = || {
            Failure::Missing("directory here: $CREDENTIALS_DIRECTORY is not set".to_owned())
                .of(URI, Some(&self.name))
        };
        Ok(self.dir.as_ref().ok_or_else(missing)?.join(&self.name))
    }
}

impl ValueObject for Credential {
    fn uri(&self) -> &str {
        &self.uri
    }

    fn value(&self) -> Result<Option<SecretValue>, KeystoreError> {
        let Some(file) = open(&self.path()?)? else { return Ok(None) };
        let wrong = |e: ValueError| Failure::BadAnswer(e.to_string()).of(URI, Some(&self.name));
        SecretValue::read_from(file).map(Some).map_err(wrong)
    }

    fn exists(&self) -> Result<bool, KeystoreError> {
        is_there(&self.path()?)
    }
}

/// A credential that nobody else can have put there; `None` if it is not there.
fn open(path: &Path) -> Result<Option<File>, KeystoreError> {
    let file = match OpenOptions::new().read(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(KeystoreError::io(path, "read")(e)),
    };
    disk::check_owner(path, &file)?;
    Ok(Some(file))
}

fn is_there(path: &Path) -> Result<bool, KeystoreError> {
    path.try_exists().map_err(KeystoreError::io(path, "read"))
}

/// What systemd takes for the name of a credential.
fn is_name(name: &str) -> bool {
    let takes = |b: u8| matches!(b, b' '..=b'~') && b != b'/' && b != b':';
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(takes) && name != "." && name != ".."
}

/// The name of a secret's credential: `UUID`, or `KIND.ID` with `+` for each `/` and `=HH` for each byte that is not a
/// letter, a digit, `.`, `-` or `_`. `None` if it is too long for one.
fn name_of(secret: &SecretDefinition) -> Option<String> {
    let Some(Usage { kind, id }) = &secret.usage else { return Some(secret.uuid.to_string()) };
    let mut name = format!("{}.", kind.as_str());
    for byte in id.bytes() {
        match byte {
            b'/' => name.push('+'),
            b'.' | b'-' | b'_' => name.push(byte.into()),
            _ if byte.is_ascii_alphanumeric() => name.push(byte.into()),
            _ => name.push_str(&format!("={byte:02X}")),
        }
    }
    (name.len() <= MAX_NAME).then_some(name)
}

/// The secret of a credential with that name; `None` if it is not one of a secret.
fn secret_of(name: &str) -> Option<SecretDefinition> {
    let secret = match Uuid::try_parse(name) {
        Ok(uuid) => SecretDefinition::of_uuid(uuid),
        Err(_) => {
            let (kind, escaped) = name.split_once('.')?;
            let kind = UsageKind::WORDS.iter().find(|(word, _)| *word == kind)?.1;
            let mut id = Vec::new();
            let mut bytes = escaped.bytes();
            while let Some(byte) = bytes.next() {
                id.push(match byte {
                    b'+' => b'/',
                    b'=' => hex(bytes.next()?)? << 4 | hex(bytes.next()?)?,
                    _ => byte,
                });
            }
            SecretDefinition::of_usage(Usage { kind, id: String::from_utf8(id).ok()? })
        }
    };
    // Only in the form in which it is looked for, and only what could be looked for.
    (name_of(&secret)? == name && secret.check_text().is_ok()).then_some(secret)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| digit.try_into().ok())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;
    use crate::keystore::Keystores;
    use crate::keystore::file::IdentitySources;
    use crate::secret::{MAX_VALUE_LEN, SecretRef};
    use crate::xml::Span;

    fn options(dir: Option<&TempDir>) -> StoreOptions {
        let credentials = dir.map(|dir| dir.path().to_owned());
        StoreOptions::new(IdentitySources { credentials, key_file: "/nonexistent".into() })
    }

    fn given(credentials: &[(&str, &[u8])]) -> (TempDir, Keystores) {
        let dir = TempDir::new().unwrap();
        for (name, value) in credentials {
            fs::write(dir.path().join(name), value).unwrap();
        }
        let stores = Keystores::open(&[URI], &options(Some(&dir))).unwrap();
        (dir, stores)
    }

    const UUID: &str = "c5d7b1b4-1f5e-4f0e-9d2a-2f6c3a1b0e11";

    fn name(kind: UsageKind, id: &str) -> Option<String> {
        name_of(&SecretDefinition::of_usage(Usage { kind, id: id.to_owned() }))
    }

    #[test]
    fn names_can_be_typed() {
        for (kind, id, expected) in [
            (UsageKind::Volume, "/images/web-1.qcow2", "volume.+images+web-1.qcow2"),
            (UsageKind::Iscsi, "iqn.2013-07.com.example:pool", "iscsi.iqn.2013-07.com.example=3Apool"),
            (UsageKind::Ceph, "client.admin secret", "ceph.client.admin=20secret"),
            (UsageKind::Tls, "ä+", "tls.=C3=A4=2B"),
        ] {
            assert_eq!(name(kind, id).unwrap(), expected);
            let secret = secret_of(expected).unwrap();
            assert_eq!(secret.usage, Some(Usage { kind, id: id.to_owned() }));
        }
        assert_eq!(name(UsageKind::Volume, &"x".repeat(248)).unwrap().len(), MAX_NAME);
        assert_eq!(name(UsageKind::Volume, &"x".repeat(249)), None);
        for other in [
            "vmward-keystore",
            "volume.",
            "volume.=2Fa",
            "volume.=41",
            "volume.=4",
            "volume.=FF",
            "disk.a",
            "ceph.=0A",
        ] {
            assert_eq!(secret_of(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn a_name_stands_for_one_secret(id in "\\PC{1,80}") {
            let usage = Usage { kind: UsageKind::Volume, id };
            let secret = SecretDefinition::of_usage(usage);
            if let Some(name) = name_of(&secret) {
                prop_assert!(is_name(&name));
                prop_assert!(secret.check_text().is_err() || secret_of(&name) == Some(secret));
            }
        }

        #[test]
        fn any_name_is_read(name in "\\PC{0,300}") {
            let _ = secret_of(&name);
        }
    }

    #[test]
    fn a_service_finds_what_it_was_given() {
        let (_dir, stores) =
            given(&[(UUID, b"by uuid"), ("volume.+a", b"by usage"), ("vmward-keystore", b"something else")]);
        let text = |lookup| SecretRef { lookup, kind: UsageKind::Volume, text: true, span: Span::default() };
        let by_uuid = text(SecretLookup::Uuid(Uuid::try_parse(UUID).unwrap()));
        let by_usage = text(SecretLookup::Usage("/a".to_owned()));
        let resolved = stores.resolve(&[by_uuid.clone(), by_usage.clone()]).unwrap();
        assert_eq!(resolved.get(&by_uuid).unwrap().expose(), b"by uuid");
        assert_eq!(resolved.get(&by_usage).unwrap().expose(), b"by usage");
        let listed = stores.stores[0].list().unwrap().definitions;
        assert_eq!(listed.len(), 2);
        for secret in &listed {
            let found = stores.find(&SecretLookup::Uuid(secret.uuid), None).unwrap();
            assert_eq!(found.definition, *secret);
            assert!(found.has_value().unwrap());
            assert!(matches!(
                found.set_value(&found.value().unwrap()),
                Err(KeystoreError::Unsupported { .. })
            ));
            assert!(matches!(found.store.undefine(secret), Err(KeystoreError::Unsupported { .. })));
            assert!(matches!(found.store.define(secret), Err(KeystoreError::Unsupported { .. })));
        }
        assert!(stores.find(&SecretLookup::Usage("/a".to_owned()), None).is_ok());
        let other = SecretLookup::Usage("/b".to_owned());
        assert!(matches!(stores.find(&other, None), Err(KeystoreError::NotDefined { .. })));
    }

    #[test]
    fn values_that_open_no_disk_are_told_apart() {
        let long = vec![b'x'; MAX_VALUE_LEN + 1];
        let (_dir, stores) = given(&[
            ("volume.empty", b""),
            ("volume.nul", b"a\0b"),
            ("volume.bytes", &[0xff, 0xfe]),
            ("volume.long", &long),
        ]);
        let resolve = |id: &str| {
            let lookup = SecretLookup::Usage(id.to_owned());
            let secret = SecretRef { lookup, kind: UsageKind::Volume, text: true, span: Span::default() };
            match &*stores.resolve(&[secret]).unwrap_err().remove(0).error {
                KeystoreError::Value { source, .. } => source.to_string(),
                other => panic!("{other}"),
            }
        };
        assert_eq!(resolve("empty"), ValueError::Empty.to_string());
        assert_eq!(resolve("nul"), ValueError::NotText.to_string());
        assert_eq!(resolve("bytes"), ValueError::NotText.to_string());
        assert_eq!(resolve("long"), ValueError::TooLong.to_string());
    }

    #[test]
    fn outside_of_a_service_there_is_nothing() {
        let stores = Keystores::open(&[URI], &options(None)).unwrap();
        let lookup = SecretLookup::Uuid(Uuid::from_u128(1));
        assert!(matches!(stores.find(&lookup, None), Err(KeystoreError::NotDefined { .. })));
        assert!(stores.stores[0].list().unwrap().definitions.is_empty());
        let object = Credential::from_uri("credentials:disk", &options(None)).unwrap();
        let error = object.value().unwrap_err();
        assert!(matches!(error, KeystoreError::Failed { failure: Failure::Missing(_), .. }), "{error}");
    }

    #[test]
    fn a_value_is_a_credential_of_any_name() {
        let (dir, _) = given(&[("disk key", b"value"), ("long", &vec![b'x'; MAX_VALUE_LEN + 1])]);
        let object = |name: &str| Credential::from_uri(&format!("{URI}{name}"), &options(Some(&dir)));
        assert_eq!(object("disk key").unwrap().value().unwrap().unwrap().expose(), b"value");
        assert!(object("disk key").unwrap().exists().unwrap());
        assert!(object("other").unwrap().value().unwrap().is_none());
        assert!(!object("other").unwrap().exists().unwrap());
        assert!(object("long").unwrap().value().is_err());
        let value = SecretValue::zeroed(1).unwrap();
        assert!(matches!(object("a").unwrap().set_value(&value), Err(KeystoreError::Unsupported { .. })));
        for wrong in ["", ".", "..", "a/b", "a:b", "ä", "a\tb"] {
            assert!(object(wrong).is_err(), "{wrong:?}");
        }
        let path = dir.path().join("disk key");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o622)).unwrap();
        assert!(matches!(object("disk key").unwrap().value(), Err(KeystoreError::Unsafe { .. })));
        symlink(&path, dir.path().join("link")).unwrap();
        assert!(matches!(object("link").unwrap().value(), Err(KeystoreError::Io { .. })));
    }
}
