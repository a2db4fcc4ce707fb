//! Raw LUKS images on servers, whose header is read before QEMU opens them.

use crate::domain::disk::{Network, Protocol, Source};
use crate::qemu::properties::Properties;
use crate::qemu::{DiskPlan, JsonObject, QemuObject};
use crate::xml::Span;

use super::node::Layer;
use super::{RawLuks, protocol};

/// A raw LUKS image on a server.
#[derive(Debug, Clone)]
pub struct ServerImage {
    /// What it is called in messages.
    pub name: String,
    /// The name of its protocol node.
    pub node: String,
    /// Where it is.
    pub server: Server,
    /// How it is unlocked.
    pub luks: RawLuks,
    /// Where the XML has it.
    pub span: Span,
}

impl ServerImage {
    pub(super) fn of(layer: &Layer<'_>) -> Option<Self> {
        let Source::Network(network) = &layer.image.source else { return None };
        Some(Self {
            name: name(network),
            node: layer.names.storage(),
            luks: layer.raw_luks()?,
            server: Server::of(layer),
            span: layer.image.span,
        })
    }
}

/// An image on a server, as another program than the guest's QEMU opens it for reading.
#[derive(Debug, Clone)]
pub struct Server {
    /// The protocol node, which is that of the guest's QEMU but for that it is read only.
    pub node: JsonObject,
    /// What the node refers to: passwords, cookies, TLS credentials.
    pub objects: Vec<QemuObject>,
}

impl Server {
    /// Where a helper that serves it listens comes later.
    fn of(layer: &Layer<'_>) -> Self {
        let mut plan = DiskPlan::default();
        protocol::objects(layer, &mut plan);
        let mut node = protocol::properties(layer);
        node.put("read-only", true);
        layer.put_cache(&mut node);
        Self { node, objects: plan.objects }
    }
}

/// What an image on a server is called in messages. No query, and no user: credentials may be there.
fn name(network: &Network) -> String {
    let host = network.hosts.first().map(|host| host.authority()).unwrap_or_default();
    match &network.protocol {
        Protocol::Rbd { pool, image, .. } => format!("rbd:{pool}/{image}"),
        Protocol::Iscsi { target, lun, .. } => format!("iscsi://{host}/{target}/{lun}"),
        Protocol::Nbd { export, .. } => format!("nbd://{host}/{}", export.as_deref().unwrap_or_default()),
        Protocol::Url { scheme, path, .. } => {
            format!("{}://{host}/{}", scheme.as_str(), path.trim_start_matches('/'))
        }
        Protocol::Ssh { path, .. } => format!("ssh://{host}/{}", path.trim_start_matches('/')),
        Protocol::Gluster { volume, path } => {
            format!("gluster://{host}/{volume}/{}", path.trim_start_matches('/'))
        }
        Protocol::Nfs { path, .. } => format!("nfs://{host}/{}", path.trim_start_matches('/')),
        Protocol::Vxhs { id, .. } => format!("vxhs://{host}/{id}"),
    }
}
