//! Credentials for TLS.

use serde_json::json;

use crate::domain::Domain;
use crate::domain::devices::chardev::Chardev;
use crate::domain::devices::graphics::Graphics;
use crate::domain::devices::tls::Tls as DeviceTls;
use crate::domain::disk::{Disk, Image, Protocol, Source};
use crate::secret::{SecretLookup, SecretRef, UsageKind};
use crate::xml::Span;

use super::plan::object;
use super::properties::Properties;
use super::{QemuObject, SecretObject, SecretSource};

/// The credentials of VNC, and the passphrase of their key, as libvirt names them.
pub(super) const VNC_CREDENTIALS: &str = "vnc-tls-creds0";
/// See [`VNC_CREDENTIALS`].
pub const VNC_SECRET: &str = "vnc-tls-creds0-secret0";

/// Where QEMU looks for certificates, as libvirt's `default_tls_x509_cert_dir` is set where nobody changed it.
const DIRECTORY: &str = "/etc/pki/qemu";

/// What one end of a TLS connection proves who it is with. QEMU fixes the names of the files in the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsCredentials {
    /// Where the files are: `ca-cert.pem` with `client-cert.pem` and `client-key.pem`, or those of `server-`; with a
    /// `psk_user` it is `keys.psk` alone.
    pub directory: String,
    /// The passphrase of the private key.
    pub secret: Option<SecretLookup>,
    /// Whose pre-shared key it is, instead of certificates.
    pub psk_user: Option<String>,
    /// Whether the other end has to show a certificate as well.
    pub verify_peer: bool,
}

impl Default for TlsCredentials {
    fn default() -> Self {
        Self { directory: DIRECTORY.to_owned(), secret: None, psk_user: None, verify_peer: true }
    }
}

/// What the host has for TLS: `[tls]` of `vmward.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tls {
    /// For whatever has nothing of its own.
    pub usual: TlsCredentials,
    /// For NBD disks.
    pub nbd: Option<TlsCredentials>,
}

impl Tls {
    /// What a display or a character device has: what its XML does not say is as it is for all.
    pub fn of_device(&self, device: &DeviceTls) -> TlsCredentials {
        let usual = &self.usual;
        let secret = device.secret.as_ref().map(|secret| secret.lookup.clone());
        TlsCredentials {
            directory: device.directory.as_ref().map_or(usual.directory.clone(), |d| d.display().to_string()),
            // The key of another directory is another key.
            secret: secret.or_else(|| usual.secret.clone().filter(|_| device.directory.is_none())),
            psk_user: None,
            verify_peer: device.verify_peer.unwrap_or(usual.verify_peer),
        }
    }

    /// What a disk's image has, if its server is reached over TLS.
    pub fn of_image(&self, image: &Image) -> Option<&TlsCredentials> {
        let Source::Network(network) = &image.source else { return None };
        match &network.protocol {
            Protocol::Nbd { tls: true, .. } => Some(self.nbd.as_ref().unwrap_or(&self.usual)),
            Protocol::Vxhs { tls: true, .. } => Some(&self.usual),
            _ => None,
        }
    }

    /// The secrets that a guest uses without naming them.
    pub fn secrets(&self, domain: &Domain) -> Vec<SecretRef> {
        let devices = &domain.devices;
        let displays = devices.graphics.iter().filter_map(Graphics::tls);
        let streams = devices.chardevs().filter_map(Chardev::tls);
        let unnamed = displays.chain(streams).filter(|tls| tls.secret.is_none());
        let of_devices = unnamed.filter_map(|tls| self.of_device(tls).key());
        let images = devices.disks.iter().flat_map(Disk::chain);
        let of_images = images.filter_map(|image| self.of_image(image)?.key());
        of_devices.chain(of_images).collect()
    }
}

/// The passphrase of a key.
fn key(lookup: SecretLookup) -> SecretRef {
    SecretRef { lookup, kind: UsageKind::Tls, text: true, span: Span::default() }
}

impl TlsCredentials {
    /// The passphrase of the private key, if it has one.
    pub fn key(&self) -> Option<SecretRef> {
        self.secret.clone().map(key)
    }

    /// The objects of one end of a connection; that with this id, which stands for the credentials, is the last.
    /// `secret_id` is that of its key's passphrase. `span` is what asks for TLS.
    pub(super) fn objects(&self, id: &str, secret_id: &str, server: bool, span: Span) -> Vec<QemuObject> {
        let mut credentials = object(json!({
            "qom-type": if self.psk_user.is_some() { "tls-creds-psk" } else { "tls-creds-x509" },
            "id": id,
            "dir": self.directory,
            "endpoint": if server { "server" } else { "client" },
        }));
        if let Some(user) = &self.psk_user {
            credentials.put("username", user.as_str());
            return vec![QemuObject::Plain(credentials)];
        }
        credentials.put("verify-peer", self.verify_peer);
        let secret = self.secret.clone().map(|lookup| SecretObject {
            id: secret_id.to_owned(),
            source: SecretSource::Keystore(SecretRef { span, ..key(lookup) }),
        });
        credentials.put_some("passwordid", secret.as_ref().map(|s| s.id.clone()));
        secret.map(QemuObject::Secret).into_iter().chain([QemuObject::Plain(credentials)]).collect()
    }
}
