//! The kinds of keystores there are, by the scheme of their URIs. A new kind is a file and a row here.

use std::time::Duration;

use super::credentials::{Credential, CredentialStore};
use super::exec::{ExecStore, ExecValue};
use super::file::{FileStore, IdentitySources};
use super::keyring::KeyringStore;
use super::libvirt::LibvirtStore;
#[cfg(feature = "vault")]
use super::vault::{VaultObject, VaultStore};
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
    /// The URIs of the configured stores: an object of one of their servers is asked for as they are.
    pub configured: Vec<String>,
}

impl StoreOptions {
    /// The options with the usual deadline.
    pub fn new(identity: IdentitySources) -> Self {
        Self { identity, timeout: DEFAULT_TIMEOUT, configured: Vec::new() }
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
    #[cfg(feature = "kmip")]
    Kind {
        scheme: "kmip",
        form: "kmip://host?ca=FILE&cert=FILE&key=FILE",
        open: super::kmip::KmipStore::from_uri,
        object: Some(super::kmip::KmipObject::from_uri),
    },
    #[cfg(feature = "pkcs11")]
    Kind {
        scheme: "pkcs11",
        form: "pkcs11:token=NAME?module-path=/module.so&pin-source=file:/pin",
        open: super::pkcs11::open,
        object: Some(super::pkcs11::open_object),
    },
    #[cfg(feature = "secret-service")]
    Kind {
        scheme: "secret-service",
        form: "secret-service:",
        open: super::secret_service::open,
        object: Some(super::secret_service::open_object),
    },
    #[cfg(feature = "vault")]
    Kind {
        scheme: "vault+https",
        form: "vault+https://host/mount",
        open: VaultStore::from_uri,
        object: Some(VaultObject::from_uri),
    },
    #[cfg(feature = "vault")]
    Kind {
        scheme: "vault+http",
        form: "vault+http://host/mount",
        open: VaultStore::from_uri,
        object: Some(VaultObject::from_uri),
    },
];

/// The schemes of stores that this build leaves out, and the cargo features that they are behind.
const LEFT_OUT: &[(&str, &str)] = &[
    #[cfg(not(feature = "kmip"))]
    ("kmip", "kmip"),
    #[cfg(not(feature = "pkcs11"))]
    ("pkcs11", "pkcs11"),
    #[cfg(not(feature = "secret-service"))]
    ("secret-service", "secret-service"),
    #[cfg(not(feature = "vault"))]
    ("vault+https", "vault"),
    #[cfg(not(feature = "vault"))]
    ("vault+http", "vault"),
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
    if let Some((_, feature)) = LEFT_OUT.iter().find(|(left_out, _)| *left_out == scheme) {
        return Err(bad(uri, format!("this vmward was built without its feature '{feature}'")));
    }
    KINDS.iter().find(|k| k.scheme == scheme).ok_or_else(|| {
        let forms: Vec<_> = KINDS.iter().map(|k| k.form).collect();
        bad(uri, format!("vmward knows {}", forms.join(", ")))
    })
}

fn bad(uri: &str, why: String) -> KeystoreError {
    KeystoreError::BadUri { uri: shown(uri), why }
}

/// A URI without the parts in which somebody may have put a credential.
fn shown(uri: &str) -> String {
    let uri = uri.split(['?', '#']).next().unwrap_or(uri);
    // Of RFC 7512, misplaced.
    let uri = uri.split("pin-value").next().unwrap_or(uri);
    match uri.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let host = authority.rsplit('@').next().unwrap_or(authority);
            format!("{scheme}://{host}{path}")
        }
        None => uri.to_owned(),
    }
}
