//! Protocol nodes: where an image's bytes are.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::domain::disk::{
    Auth, EncryptionFormat, Engine, Host, Kind, Network, Protocol, Reservations, Source, UrlScheme,
};
use crate::qemu::plan::{object, unavailable};
use crate::qemu::{
    self, DiskPlan, Helper, JsonObject, QemuObject, SecretObject, SecretSource, Service, SshFile,
};
use crate::xml::Span;

use super::node::Layer;
use crate::qemu::properties::Properties;

/// The helper that makes persistent reservations for all disks that ask for a managed one.
pub(super) const MANAGED_HELPER: &str = "pr-helper0";

/// The protocol node of an image, without what all nodes have.
pub(super) fn properties(layer: &Layer<'_>) -> JsonObject {
    let driver = layer.driver;
    let mut node = JsonObject::new();
    match &layer.image.source {
        Source::File(path) | Source::Volume(path) => {
            node.put("driver", "file");
            node.put("filename", path.as_str());
            node.put_some("aio", driver.io.map(|io| io.as_str()));
        }
        Source::Block { path, reservations } => {
            let is_cdrom = layer.kind == Kind::Cdrom && is_cdrom_device(path);
            node.put("driver", if is_cdrom { "host_cdrom" } else { "host_device" });
            node.put("filename", path.as_str());
            node.put_some("aio", driver.io.map(|io| io.as_str()));
            node.put_some("pr-manager", reservations.as_ref().map(|r| helper_id(layer, r)));
        }
        Source::Directory(path) => {
            node.put("driver", "vvfat");
            node.put("dir", path.as_str());
            node.put("floppy", layer.kind == Kind::Floppy);
            node.put("rw", !layer.image.readonly);
        }
        Source::Nvme(nvme) => {
            node.put("driver", "nvme");
            node.put("device", nvme.address.to_string());
            node.put("namespace", nvme.namespace);
        }
        Source::VhostVdpa(path) => {
            node.put("driver", "virtio-blk-vhost-vdpa");
            node.put("path", path.as_str());
        }
        Source::Network(network) => put_network(layer, network, &mut node),
        // A vhost-user disk has no nodes: see `plan_disk`.
        Source::VhostUser(_) => {}
    }
    node
}

/// Whether a path is one of those that udev and the kernel give to CD drives.
fn is_cdrom_device(path: &str) -> bool {
    let Some(name) = path.strip_prefix("/dev/") else { return false };
    ["cdrom", "dvd", "cdrw", "dvdrw", "sr", "scd"]
        .iter()
        .filter_map(|prefix| name.strip_prefix(prefix))
        .any(|rest| rest.bytes().all(|b| b.is_ascii_digit()))
}

fn put_network(layer: &Layer<'_>, network: &Network, node: &mut JsonObject) {
    let names = &layer.names;
    match &network.protocol {
        Protocol::Rbd { pool, image, snapshot, config } => {
            node.put("driver", "rbd");
            node.put("pool", pool.as_str());
            node.put("image", image.as_str());
            node.put_some("snapshot", snapshot.as_deref());
            node.put_some("conf", config.as_deref());
            if !network.hosts.is_empty() {
                node.put("server", network.hosts.iter().map(inet_address).collect::<Vec<_>>());
            }
            node.put_some("encrypt", librbd_encryption(layer));
            if let Some(auth) = &network.auth {
                node.put("user", auth.username.as_str());
                node.put("auth-client-required", json!(["cephx", "none"]));
                node.put("key-secret", names.auth_secret());
            }
        }
        Protocol::Iscsi { target, lun, initiator } => {
            node.put("driver", "iscsi");
            node.put_some("portal", network.hosts.first().map(Host::authority));
            node.put("target", target.as_str());
            node.put("lun", *lun);
            node.put("transport", "tcp");
            put_auth(layer, network.auth.as_ref(), "user", node);
            node.put_some("initiator-name", initiator.as_deref());
        }
        Protocol::Nbd { export, tls, tls_hostname, reconnect_delay } => {
            node.put("driver", "nbd");
            node.put_some("server", network.hosts.first().map(socket_address));
            node.put_some("export", export.as_deref());
            node.put_some("tls-creds", tls.then(|| names.tls()));
            node.put_some("tls-hostname", tls_hostname.as_deref());
            node.put_some("reconnect-delay", *reconnect_delay);
        }
        Protocol::Url { scheme, path, query, cookies, verify, readahead, timeout } => {
            node.put("driver", scheme.as_str());
            node.put_some(
                "url",
                network.hosts.first().map(|host| url(*scheme, host, path, query.as_deref())),
            );
            put_auth(layer, network.auth.as_ref(), "username", node);
            node.put_some("sslverify", *verify);
            node.put_some("cookie-secret", cookies.as_ref().map(|_| names.cookie_secret()));
            node.put_some("timeout", *timeout);
            node.put_some("readahead", *readahead);
        }
        // The helper's: see `objects`.
        Protocol::Ssh { .. } if network.auth.is_some() => node.put("driver", "nbd"),
        Protocol::Ssh { path, username, .. } => {
            node.put("driver", "ssh");
            node.put("path", path.as_str());
            node.put_some("server", network.hosts.first().map(inet_address));
            node.put_some("user", username.as_deref());
        }
        Protocol::Gluster { volume, path } => {
            node.put("driver", "gluster");
            node.put("volume", volume.as_str());
            node.put("path", path.as_str());
            node.put("server", network.hosts.iter().map(socket_address).collect::<Vec<_>>());
            // Messages of libgfapi up to warnings: libvirt's default, too.
            node.put("debug", 4);
        }
        Protocol::Nfs { path, user, group } => {
            node.put("driver", "nfs");
            if let Some(Host::Tcp { name, .. }) = network.hosts.first() {
                node.put("server", json!({ "host": name, "type": "inet" }));
            }
            node.put("path", path.as_str());
            node.put_some("user", *user);
            node.put_some("group", *group);
        }
        Protocol::Vxhs { id, tls } => {
            node.put("driver", "vxhs");
            node.put_some("tls-creds", tls.then(|| names.tls()));
            node.put("vdisk-id", id.as_str());
            node.put_some("server", network.hosts.first().map(inet_address));
        }
    }
}

fn put_auth(layer: &Layer<'_>, auth: Option<&Auth>, user: &str, node: &mut JsonObject) {
    node.put_some(user, auth.map(|a| a.username.as_str()));
    node.put_some("password-secret", auth.map(|_| layer.names.auth_secret()));
}

/// QEMU's `InetSocketAddressBase`.
fn inet_address(host: &Host) -> Value {
    match host {
        Host::Tcp { name, port } => json!({ "host": name, "port": port.to_string() }),
        Host::Unix { path } => json!({ "path": path }),
    }
}

/// QEMU's `SocketAddress`.
fn socket_address(host: &Host) -> Value {
    match host {
        Host::Tcp { name, port } => json!({ "type": "inet", "host": name, "port": port.to_string() }),
        Host::Unix { path } => json!({ "type": "unix", "path": path }),
    }
}

/// The layers of an image that librbd decrypts: the first secret is the top image's, whose `parent` is the next.
fn librbd_encryption(layer: &Layer<'_>) -> Option<Value> {
    let encryption = layer.image.encryption.as_ref().filter(|e| e.engine == Engine::Librbd)?;
    let format = match encryption.format {
        EncryptionFormat::Luks => "luks",
        EncryptionFormat::Luks2 => "luks2",
        EncryptionFormat::LuksAny => "luks-any",
    };
    let secret = |i| layer.names.encryption_secret(Engine::Librbd, i);
    (0..encryption.secrets.len()).rev().fold(None, |parent, i| {
        let mut layer = object(json!({ "format": format, "key-secret": secret(i) }));
        layer.put_some("parent", parent);
        Some(Value::Object(layer))
    })
}

fn url(scheme: UrlScheme, host: &Host, path: &str, query: Option<&str>) -> String {
    let mut url = format!("{}://{}/", scheme.as_str(), host.authority());
    for byte in path.strip_prefix('/').unwrap_or(path).bytes() {
        // RFC 2396: what may stand in a path stands for itself.
        if byte.is_ascii_alphanumeric() || b"-_.!~*'()/;@&=+$,".contains(&byte) {
            url.push(char::from(byte));
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
    }
    if let Some(query) = query {
        url.push('?');
        url.push_str(query);
    }
    url
}

/// What a protocol node needs beforehand: reservation helper, credentials, cookies, TLS.
pub(super) fn objects(layer: &Layer<'_>, plan: &mut DiskPlan) {
    let names = &layer.names;
    let secret = |id, source| QemuObject::Secret(SecretObject { id, source });
    match &layer.image.source {
        Source::Network(network) => {
            if let Some(file) = ssh_file(layer, network) {
                // The password is its helper's.
                plan.served.push((names.storage(), file, layer.image.span));
            } else if let Some(auth) = &network.auth {
                plan.objects.push(secret(names.auth_secret(), SecretSource::Keystore(auth.secret.clone())));
            }
            if let Protocol::Url { cookies: Some(cookies), .. } = &network.protocol {
                plan.objects.push(secret(names.cookie_secret(), SecretSource::Xml(cookies.clone())));
            }
            if let Some(credentials) = layer.tls.of_image(layer.image) {
                plan.objects.extend(credentials.objects(
                    &names.tls(),
                    &format!("{}-secret0", names.tls()),
                    false,
                    layer.image.span,
                ));
            }
        }
        Source::Block { reservations: Some(Reservations::Socket(path)), .. } => {
            plan.objects.push(QemuObject::Plain(object(json!({
                "qom-type": "pr-manager-helper",
                "id": helper_id(layer, &Reservations::Socket(path.clone())),
                "path": path,
            }))));
        }
        Source::Block { reservations: Some(Reservations::Managed), .. } => {
            plan.reservations = Some(layer.image.span);
        }
        Source::VhostVdpa(path) => plan.opened = Some((path.clone(), layer.image.span)),
        Source::Nvme(nvme) if nvme.managed => {
            plan.descriptors.push(unavailable(layer.image.span, "an NVMe device taken from its host driver"));
        }
        _ => {}
    }
}

/// The helper that all disks with managed reservations share, and QEMU's object for it.
pub(super) fn managed_helper(socket: PathBuf, span: Span) -> (QemuObject, Helper) {
    let object = QemuObject::Plain(object(json!({
        "qom-type": "pr-manager-helper",
        "id": MANAGED_HELPER,
        "path": socket.display().to_string(),
    })));
    let service = Service::Reservations(qemu::Reservations);
    (object, Helper { device: MANAGED_HELPER.to_owned(), socket, service, span })
}

/// What a helper gets from a server, because QEMU's own driver has no passwords.
fn ssh_file(layer: &Layer<'_>, network: &Network) -> Option<SshFile> {
    let (Protocol::Ssh { path, known_hosts, .. }, Some(auth)) = (&network.protocol, &network.auth) else {
        return None;
    };
    let Some(Host::Tcp { name, port }) = network.hosts.first() else { return None };
    Some(SshFile {
        host: name.clone(),
        port: *port,
        user: auth.username.clone(),
        path: path.clone(),
        password: auth.secret.clone(),
        known_hosts: known_hosts.clone(),
        readonly: layer.image.readonly,
    })
}

fn helper_id(layer: &Layer<'_>, reservations: &Reservations) -> String {
    match reservations {
        Reservations::Managed => MANAGED_HELPER.to_owned(),
        Reservations::Socket(_) => {
            format!("pr-helper-{}", layer.names.storage())
        }
    }
}
