//! TLS for the connections to a Vault server: who is trusted, who this client is, and what a handshake's failure
//! means.

use std::fmt;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, RootCertStore, StreamOwned,
};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport, TransportAdapter,
};
use x509_cert::Certificate;
use x509_cert::der::Decode;

use crate::keystore::credential_file::CredentialFile;
use crate::keystore::{Failure, KeystoreError};

use super::uri::VaultOptions;

/// The certificates of a file in PEM.
fn certificates(file: &CredentialFile) -> Result<Vec<CertificateDer<'static>>, KeystoreError> {
    let damaged = |why: &str| KeystoreError::Damaged { path: file.path().clone(), why: why.to_owned() };
    let text = file.public()?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.expose()).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(damaged("there is no certificate in PEM in it")),
    }
}

/// What all connections of a store have in common. Made once: sessions are resumed through it.
pub(super) fn client_config(options: &VaultOptions) -> Result<Arc<ClientConfig>, KeystoreError> {
    let mut roots = RootCertStore::empty();
    match &options.ca {
        Some(file) => {
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(|_| KeystoreError::Damaged {
                    path: file.path().clone(),
                    why: "a certificate in it cannot be an authority".to_owned(),
                })?;
            }
        }
        // One that cannot be used is no reason not to trust the others.
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| Failure::Other(e.to_string()).of("vault+https:", None))?
        .with_root_certificates(roots);
    let config = match &options.client {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let damaged =
                |why: &str| KeystoreError::Damaged { path: key.path().clone(), why: why.to_owned() };
            let pem = key.secret()?;
            let private = PrivateKeyDer::from_pem_slice(pem.expose())
                .map_err(|_| damaged("there is no private key in PEM in it that needs no passphrase"))?;
            builder
                .with_client_auth_cert(certificates(cert)?, private)
                .map_err(|_| damaged("it is not the key of the client's certificate"))?
        }
    };
    Ok(Arc::new(config))
}

/// When a certificate ends.
pub(super) fn end_of(certificate: &[u8]) -> Option<SystemTime> {
    let certificate = Certificate::from_der(certificate).ok()?;
    Some(certificate.tbs_certificate.validity.not_after.to_system_time())
}

/// When the client's own certificate ends.
pub(super) fn end_of_own(file: &CredentialFile) -> Result<Option<SystemTime>, KeystoreError> {
    Ok(certificates(file)?.first().and_then(|c| end_of(c)))
}

/// What TLS says, as a store's failure; `None` if it says nothing of this kind.
pub(super) fn failure(error: &rustls::Error, host: &str) -> Option<Failure> {
    use rustls::Error as E;
    let certificate = |why: &str| Some(Failure::Certificate(why.to_owned()));
    match error {
        E::InvalidCertificate(why) => match why {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                certificate("its certificate has expired")
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                certificate("its certificate is not valid yet, or this machine's clock is wrong")
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Some(Failure::Certificate(format!("its certificate is not for the name {host}")))
            }
            CertificateError::UnknownIssuer => {
                certificate("its certificate is signed by an unknown authority")
            }
            CertificateError::Revoked => certificate("its certificate is revoked"),
            other => Some(Failure::Certificate(format!("its certificate is not valid ({other})"))),
        },
        E::NoCertificatesPresented => certificate("it has no certificate"),
        E::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired => {
                Some(Failure::NotAuthenticated("a client without a certificate".to_owned()))
            }
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied => {
                Some(Failure::NotAuthenticated("the client's certificate".to_owned()))
            }
            other => Some(Failure::BadAnswer(format!("it ended the TLS handshake ({other:?})"))),
        },
        E::InvalidMessage(_) => Some(Failure::BadAnswer("it does not speak TLS there".to_owned())),
        E::PeerIncompatible(_) | E::PeerMisbehaved(_) => {
            Some(Failure::BadAnswer("it speaks no TLS that is safe enough".to_owned()))
        }
        _ => None,
    }
}

/// Puts TLS on a connection. ureq's own connector would read the authorities anew for each request, and panics where a
/// key does not go with its certificate.
pub(super) struct TlsConnector {
    /// Shared by all connections of the store.
    pub config: Arc<ClientConfig>,
    /// The server's name.
    pub host: String,
    /// When the operation has to be over.
    pub deadline: Instant,
    /// Where the certificate that the server shows is put.
    pub seen: Arc<Mutex<Option<CertificateDer<'static>>>>,
}

impl fmt::Debug for TlsConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConnector").finish_non_exhaustive()
    }
}

impl<In: Transport> Connector<In> for TlsConnector {
    type Out = TlsTransport;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<TlsTransport>, ureq::Error> {
        let Some(transport) = chained else { return Ok(None) };
        let name = ServerName::try_from(self.host.clone()).map_err(|_| ureq::Error::HostNotFound)?;
        let mut conn = ClientConnection::new(Arc::clone(&self.config), name)
            .map_err(|e| ureq::Error::Other(Box::new(e)))?;
        let boxed: Box<dyn Transport> = Box::new(transport);
        let mut sock = TransportAdapter::new(boxed, Arc::clone(&details.current_time));
        let left = self.deadline.saturating_duration_since(Instant::now());
        // Zero would mean no limit to a socket.
        let after = left.max(Duration::from_millis(1)).into();
        sock.set_timeout(NextTimeout { after, ..details.timeout });
        while conn.is_handshaking() {
            conn.complete_io(&mut sock)?;
        }
        let leaf = conn.peer_certificates().and_then(|chain| chain.first()).map(|c| c.clone().into_owned());
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = leaf;
        let config = details.config;
        let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
        Ok(Some(TlsTransport { buffers, stream: StreamOwned::new(conn, sock) }))
    }
}

/// A connection with TLS on it.
pub(super) struct TlsTransport {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl fmt::Debug for TlsTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsTransport").finish_non_exhaustive()
    }
}

impl Transport for TlsTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.stream.get_mut().set_timeout(timeout);
        self.stream.write_all(&self.buffers.output()[..amount])?;
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.stream.get_mut().set_timeout(timeout);
        let amount = self.stream.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.get_mut().get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}
