//! The kinds of keystores there are, by the scheme of their URIs. A new kind is a file and a row here.

use std::time::Duration;

use super::credentials::{Credential, CredentialStore};
use super::exec::{ExecStore, ExecValue};
use super::file::{FileStore, IdentitySources};
use super::keyring::KeyringStore;
use super::libvirt::LibvirtStore;
use super::{Keystore, KeystoreError, ValueObject};

/// How long a store may take to answer, unless something else is configured.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// What stores are opened with.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Where the identity of file keystores comes from, and the credentials of this service.
    pub identity: IdentitySources,
    /// How long a store outside this process may take to answer.
    pub timeout: Duration,
}

impl StoreOptions {
    /// The options with the usual deadline.
    pub fn new(identity: IdentitySources) -> Self {
        Self { identity, timeout: DEFAULT_TIMEOUT }
    }
}

/// A store or an object that a URI names, or what is wrong with the URI, in words that follow "it is not a keystore: ".
pub(super) type Opened<T> = Result<Box<T>, String>;
/// How something is opened.
type Open<T> = fn(uri: &str, options: &StoreOptions) -> Opened<T>;

/// A kind of keystore.
struct Kind {
    /// The scheme of its URIs.
    scheme: &'static str,
    /// What its URIs look like.
    form: &'static str,
    /// The store of a URI. Nothing is read or connected to.
    open: Open<dyn Keystore>,
    /// One object of it by its URI, for kinds whose objects can be named by definitions elsewhere.
    object: Option<Open<dyn ValueObject>>,
}

const KINDS: &[Kind] = &[
    Kind { scheme: "file", form: "file:/directory", open: FileStore::from_uri, object: None },
    Kind { scheme: "keyring", form: "keyring:", open: KeyringStore::from_uri, object: None },
    Kind {
        scheme: "credentials",
        form: "credentials:",
        open: CredentialStore::from_uri,
        object: Some(Credential::from_uri),
    },
    Kind {
        scheme: "exec",
        form: "exec:/program",
        open: ExecStore::from_uri,
        object: Some(ExecValue::from_uri),
    },
    Kind {
        scheme: "libvirt",
        form: "libvirt:/etc/libvirt/secrets",
        open: LibvirtStore::from_uri,
        object: None,
    },
];

/// The store of a URI.
pub(super) fn open_store(uri: &str, options: &StoreOptions) -> Result<Box<dyn Keystore>, KeystoreError> {
    let kind = kind(uri)?;
    (kind.open)(uri, options).map_err(|why| bad(uri, why))
}

/// The object of a URI, which the definition of a secret names as the place of its value.
pub(super) fn open_object(uri: &str, options: &StoreOptions) -> Result<Box<dyn ValueObject>, KeystoreError> {
    let kind = kind(uri)?;
    let object = kind.object.ok_or_else(|| {
        bad(uri, format!("a value elsewhere than its definition cannot be in a keystore of {}:", kind.scheme))
    })?;
    object(uri, options).map_err(|why| bad(uri, why))
}

fn kind(uri: &str) -> Result<&'static Kind, KeystoreError> {
    let scheme = uri
        .split_once(':')
        .map(|(scheme, _)| scheme)
        .ok_or_else(|| bad(uri, "it needs a scheme, as in file:/directory".to_owned()))?;
    KINDS.iter().find(|k| k.scheme == scheme).ok_or_else(|| {
        let forms: Vec<_> = KINDS.iter().map(|k| k.form).collect();
        bad(uri, format!("vmward knows {}", forms.join(", ")))
    })
}

fn bad(uri: &str, why: String) -> KeystoreError {
    KeystoreError::BadUri { uri: uri.to_owned(), why }
}
