//! X.509 credentials for TLS.

use serde_json::json;

use crate::domain::devices::tls::Tls;

use super::plan::object;
use super::properties::Properties;
use super::{CommandLine, QemuObject, SecretObject, SecretSource};

/// Where QEMU looks for certificates, as libvirt's `default_tls_x509_cert_dir` is set where nobody changed it.
pub(super) const DIRECTORY: &str = "/etc/pki/qemu";

/// The credentials of VNC, and the passphrase of their key, as libvirt names them.
pub(super) const VNC_CREDENTIALS: &str = "vnc-tls-creds0";
/// See [`VNC_CREDENTIALS`].
pub const VNC_SECRET: &str = "vnc-tls-creds0-secret0";

/// The object with the host's certificates, of one end of a connection. The other end has to show one as well.
pub(super) fn x509(id: String, server: bool) -> QemuObject {
    QemuObject::Plain(object(json!({
        "qom-type": "tls-creds-x509",
        "id": id,
        "dir": DIRECTORY,
        "endpoint": if server { "server" } else { "client" },
        "verify-peer": true,
    })))
}

/// Adds the credentials of a display or a character device, and the passphrase of their key, which QEMU needs while it
/// reads them.
pub(super) fn tell(id: &str, secret_id: &str, server: bool, tls: &Tls, line: &mut CommandLine) {
    let QemuObject::Plain(mut credentials) = x509(id.to_owned(), server) else { return };
    credentials.put_some("dir", tls.directory.as_ref().map(|d| d.display().to_string()));
    credentials.put_some("verify-peer", tls.verify_peer);
    if let Some(secret) = &tls.secret {
        let source = SecretSource::Keystore(secret.clone());
        line.object(QemuObject::Secret(SecretObject { id: secret_id.to_owned(), source }));
        credentials.put("passwordid", secret_id);
    }
    line.object(QemuObject::Plain(credentials));
}
