//! The certificates of both sides: the files that a URI names, and until when they are valid.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use x509_cert::der::Decode;

use crate::keystore::file::disk::check_owner;
use crate::keystore::{Failure, Health, KeystoreError};
use crate::secret::SecretValue;

use super::address::Address;

/// When to begin saying that a certificate expires.
const SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// What TLS is begun with. Files are read anew each time: certificates are renewed while a guest runs.
pub(super) fn config(
    address: &Address,
    credentials: Option<&Path>,
) -> Result<Arc<ClientConfig>, KeystoreError> {
    let wrong = |path: &Path, why: &str| {
        Failure::Certificate(format!("{} {why}", path.display())).of(&address.uri, None)
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(address, &address.ca)? {
        roots.add(certificate).map_err(|e| wrong(&address.ca, "holds a damaged certificate").because(e))?;
    }
    let chain = certificates(address, &address.cert)?;
    let expiry = chain
        .first()
        .and_then(|certificate| Expiry::of(certificate))
        .ok_or_else(|| wrong(&address.cert, "holds a damaged certificate"))?;
    // The server would say so only as an alert of TLS, or not at all.
    if expiry.left().is_none() {
        return Err(wrong(&address.cert, &format!("expired at {}", expiry.text)));
    }
    let key = private_key(address, credentials)?;
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| Failure::Other("TLS does not begin".to_owned()).of(&address.uri, None).because(e))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|e| {
            wrong(&address.key, &format!("is not the key of {}", address.cert.display())).because(e)
        })?;
    Ok(Arc::new(config))
}

/// The certificates of a file.
fn certificates(address: &Address, path: &Path) -> Result<Vec<CertificateDer<'static>>, KeystoreError> {
    let text = read(path, &open(path)?)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.expose()).collect();
    found.ok().filter(|found| !found.is_empty()).ok_or_else(|| {
        Failure::Certificate(format!("{} holds no certificate in PEM form", path.display()))
            .of(&address.uri, None)
    })
}

/// The client's key. Others must not be able to read it; systemd guards its credentials by an access list, whose
/// mask shows as group bits.
fn private_key(
    address: &Address,
    credentials: Option<&Path>,
) -> Result<PrivateKeyDer<'static>, KeystoreError> {
    let path = &address.key;
    let file = open(path)?;
    let mode = file.metadata().map_err(KeystoreError::io(path, "read"))?.mode();
    if mode & 0o077 != 0 && !credentials.is_some_and(|dir| path.starts_with(dir)) {
        return Err(KeystoreError::Unsafe {
            path: path.clone(),
            why: format!("others may read this key (its mode is {:04o}, not 0600)", mode & 0o7777),
        });
    }
    let text = read(path, &file)?;
    PrivateKeyDer::from_pem_slice(text.expose()).map_err(|_| {
        let why = format!("{} holds no private key in PEM form, or an encrypted one", path.display());
        Failure::Certificate(why).of(&address.uri, None)
    })
}

fn open(path: &Path) -> Result<File, KeystoreError> {
    let file = File::open(path).map_err(KeystoreError::io(path, "read"))?;
    check_owner(path, &file)?;
    Ok(file)
}

fn read(path: &Path, file: &File) -> Result<SecretValue, KeystoreError> {
    SecretValue::read_from(file.take(1 << 20))
        .map_err(|e| KeystoreError::Damaged { path: path.to_owned(), why: e.to_string() })
}

/// When a certificate expires.
struct Expiry {
    at: SystemTime,
    text: String,
}

impl Expiry {
    /// Of a certificate in DER, if it is one.
    fn of(certificate: &[u8]) -> Option<Self> {
        let certificate = x509_cert::Certificate::from_der(certificate).ok()?;
        let at = certificate.tbs_certificate.validity.not_after;
        Some(Self { at: UNIX_EPOCH + at.to_unix_duration(), text: at.to_string() })
    }

    /// How long it is still valid.
    fn left(&self) -> Option<Duration> {
        self.at.duration_since(SystemTime::now()).ok().filter(|left| !left.is_zero())
    }
}

/// What is to be said of a certificate's expiry. An expired one of the server never comes here: no connection is made.
pub(super) fn expiry(whose: &str, certificate: &[u8]) -> Health {
    let (message, warning) = match Expiry::of(certificate) {
        Some(expiry) => {
            let soon = expiry.left().is_none_or(|left| left < SOON);
            (format!("the {whose}'s certificate expires at {}", expiry.text), soon)
        }
        None => (format!("the {whose}'s certificate does not say when it expires"), true),
    };
    Health { about: "certificate", message, warning }
}

/// The same of the client's certificate in its file.
pub(super) fn client_expiry(address: &Address) -> Result<Health, KeystoreError> {
    let chain = certificates(address, &address.cert)?;
    Ok(expiry("client", chain.first().map_or(&[], AsRef::as_ref)))
}
