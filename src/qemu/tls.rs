//! X.509 credentials for TLS.

use serde_json::json;

use super::QemuObject;
use super::plan::object;

/// Where QEMU looks for certificates, as libvirt's `default_tls_x509_cert_dir` is set where nobody changed it.
pub(super) const DIRECTORY: &str = "/etc/pki/qemu";

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
