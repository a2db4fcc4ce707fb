//! Raw LUKS images that QEMU opens with a header of one opening, for the same volume key, instead of the image's own.
//! See `crate::luks`.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::qemu::plan::{SecretObject, SecretSource, fd_set_path};
use crate::qemu::properties::Properties;
use crate::qemu::{Argument, CommandLine, DiskPlan, JsonObject, QemuObject, Resource};
use crate::secret::{SecretRef, SecretValue};
use crate::xml::Span;

use super::Server;

/// A raw LUKS image, as the nodes of a plan open it.
#[derive(Debug, Clone)]
pub struct RawLuks {
    /// The file or block device of this host, or what an image on a server is called in messages.
    pub path: String,
    /// The server that it is on, if it is on one.
    pub server: Option<Server>,
    /// Whether it is read only.
    pub read_only: bool,
    /// Whether it is opened with `O_DIRECT`.
    pub direct: bool,
    /// The name of its protocol node.
    pub storage: String,
    /// The name of its luks node.
    pub format: String,
    /// The id of the secret object with its passphrase.
    pub secret_id: String,
    /// Where the passphrase is.
    pub secret: SecretRef,
    /// Where the XML has the image.
    pub span: Span,
}

/// The numbers of the descriptor sets through which QEMU opens an image: each holds one descriptor, because QEMU's locks
/// on a file belong to an open file, and those of a second one would be somebody else's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FdSets {
    /// The set with the image, if it is on this host: opened for writing unless it is [`RawLuks::read_only`], and as
    /// [`RawLuks::direct`] says.
    pub image: Option<u32>,
    /// The set with the header, opened for reading and writing.
    pub header: u32,
}

/// The sets of an image that QEMU inherits, with the numbers of the descriptors in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inherited {
    /// The sets.
    pub sets: FdSets,
    /// The image, if it is on this host.
    pub image: Option<i32>,
    /// The header.
    pub header: i32,
}

impl RawLuks {
    /// The name of the node with the header.
    pub fn header_node(&self) -> String {
        format!("{}-header", self.format.strip_suffix("-format").unwrap_or(&self.format))
    }

    fn change_nodes<'a>(&self, nodes: impl Iterator<Item = &'a mut JsonObject>, sets: FdSets) {
        for node in nodes {
            let name = node.get("node-name").and_then(Value::as_str).unwrap_or_default();
            if name == self.storage {
                // QEMU opens one on a server by itself.
                let Some(image) = sets.image else { continue };
                node.put("filename", fd_set_path(image));
                // There is no other descriptor in the set to change over to.
                node.put("auto-read-only", false);
                node.put("read-only", self.read_only);
            } else if name == self.format {
                node.put(
                    "header",
                    json!({
                        "driver": "file",
                        "node-name": self.header_node(),
                        "filename": fd_set_path(sets.header),
                        "read-only": false,
                        "auto-read-only": false,
                        "locking": "off",
                        "cache": { "direct": false, "no-flush": false },
                    }),
                );
            }
        }
    }

    fn change_secret<'a>(
        &self,
        secrets: impl Iterator<Item = &'a mut SecretObject>,
        passphrase: &Arc<SecretValue>,
    ) {
        for secret in secrets.filter(|s| s.id == self.secret_id) {
            secret.source = SecretSource::Once(Arc::clone(passphrase));
        }
    }
}

impl DiskPlan {
    /// Has an image of the disk opened with a header beside it, which opens with `passphrase`.
    pub fn open_with_header(&mut self, luks: &RawLuks, sets: FdSets, passphrase: &Arc<SecretValue>) {
        luks.change_nodes(self.nodes.iter_mut(), sets);
        let secrets = self.objects.iter_mut().filter_map(|object| match object {
            QemuObject::Secret(secret) => Some(secret),
            QemuObject::Plain(_) => None,
        });
        luks.change_secret(secrets, passphrase);
    }
}

impl CommandLine {
    /// Has an image opened with a header beside it, which opens with `passphrase`; what QEMU is to inherit.
    pub fn open_with_header(&mut self, luks: &RawLuks, passphrase: &Arc<SecretValue>) -> Inherited {
        let local = luks.server.is_none();
        let image = local.then(|| self.add_fd_set(Resource::Open, &luks.storage, luks.span));
        let (header_set, header) = self.add_fd_set(Resource::Open, &luks.header_node(), luks.span);
        let sets = FdSets { image: image.map(|(set, _)| set), header: header_set };
        let nodes = self.arguments.iter_mut().filter_map(|argument| match argument {
            Argument::Json("-blockdev", node) => Some(node),
            _ => None,
        });
        luks.change_nodes(nodes, sets);
        let secrets = self.arguments.iter_mut().filter_map(|argument| match argument {
            Argument::Secret(secret) => Some(secret),
            _ => None,
        });
        luks.change_secret(secrets, passphrase);
        Inherited { sets, image: image.map(|(_, fd)| fd), header }
    }
}
