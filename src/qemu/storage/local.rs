//! Images in files and on block devices of this host: QEMU gets them opened, in sets of descriptors (`/dev/fdset/N`), and its
//! user needs no right on them.
//!
//! A raw LUKS image can be opened with a header of one opening, for the same volume key, instead of the image's own. See
//! `crate::luks`.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::qemu::plan::{SecretObject, SecretSource, fd_set_path};
use crate::qemu::properties::Properties;
use crate::qemu::{Argument, CommandLine, DiskPlan, JsonObject, QemuObject};
use crate::secret::{SecretRef, SecretValue};
use crate::xml::Span;

/// An image in a file or on a block device of this host, as a protocol node opens it.
#[derive(Debug, Clone)]
pub struct LocalImage {
    /// The file or device.
    pub path: String,
    /// The name of its protocol node.
    pub node: String,
    /// Whether QEMU only reads it. What is behind an overlay is written to when the overlay is merged into it.
    pub read_only: bool,
    /// Whether it is opened with `O_DIRECT`.
    pub direct: bool,
    /// The XML leaves it to a qcow2 header what is behind the image. If there is something, QEMU looks for it from the
    /// image's path.
    pub backing_in_header: bool,
    /// The same of the file that its data is in.
    pub data_in_header: bool,
    /// What there is to know of a raw LUKS image to open it with another header.
    pub luks: Option<RawLuks>,
    /// Where the XML has the image.
    pub span: Span,
}

/// How a raw LUKS image is unlocked.
#[derive(Debug, Clone)]
pub struct RawLuks {
    /// The name of its luks node.
    pub format: String,
    /// The id of the secret object with its passphrase.
    pub secret_id: String,
    /// Where the passphrase is.
    pub secret: SecretRef,
}

impl RawLuks {
    /// The name of the node with the header.
    pub fn header_node(&self) -> String {
        format!("{}-header", self.format.strip_suffix("-format").unwrap_or(&self.format))
    }
}

/// What QEMU is told of images: for a start, or of one disk.
pub trait Images {
    /// Its nodes.
    fn nodes(&mut self) -> impl Iterator<Item = &mut JsonObject>;

    /// Its secrets.
    fn secrets(&mut self) -> impl Iterator<Item = &mut SecretObject>;

    /// Has an image opened through the set of that number, with one descriptor in it: for reading if the image is
    /// [`read_only`](LocalImage::read_only), else for both, and as [`direct`](LocalImage::direct) says. QEMU's locks on a
    /// file belong to an open file: those of a second one in the set would be somebody else's.
    fn open_in_set(&mut self, image: &LocalImage, set: u32) {
        for node in self.nodes().filter(|node| is_called(node, &image.node)) {
            node.put("filename", fd_set_path(set));
            if !image.read_only {
                // QEMU would begin with a descriptor for reading, which is not there.
                node.put("auto-read-only", false);
                node.put("read-only", false);
            }
        }
    }

    /// Has an image opened with a header beside it, which opens with `passphrase`. The set holds it, opened for reading and
    /// writing.
    fn open_with_header(&mut self, luks: &RawLuks, set: u32, passphrase: &Arc<SecretValue>) {
        for node in self.nodes().filter(|node| is_called(node, &luks.format)) {
            node.put(
                "header",
                json!({
                    "driver": "file",
                    "node-name": luks.header_node(),
                    "filename": fd_set_path(set),
                    "read-only": false,
                    "auto-read-only": false,
                    "locking": "off",
                    "cache": { "direct": false, "no-flush": false },
                }),
            );
        }
        for secret in self.secrets().filter(|s| s.id == luks.secret_id) {
            secret.source = SecretSource::Once(Arc::clone(passphrase));
        }
    }
}

fn is_called(node: &JsonObject, name: &str) -> bool {
    node.get("node-name").and_then(Value::as_str) == Some(name)
}

impl Images for DiskPlan {
    fn nodes(&mut self) -> impl Iterator<Item = &mut JsonObject> {
        self.nodes.iter_mut()
    }

    fn secrets(&mut self) -> impl Iterator<Item = &mut SecretObject> {
        self.objects.iter_mut().filter_map(|object| match object {
            QemuObject::Secret(secret) => Some(secret),
            QemuObject::Plain(_) => None,
        })
    }
}

impl Images for CommandLine {
    fn nodes(&mut self) -> impl Iterator<Item = &mut JsonObject> {
        self.arguments.iter_mut().filter_map(|argument| match argument {
            Argument::Json("-blockdev", node) => Some(node),
            _ => None,
        })
    }

    fn secrets(&mut self) -> impl Iterator<Item = &mut SecretObject> {
        self.arguments.iter_mut().filter_map(|argument| match argument {
            Argument::Secret(secret) => Some(secret),
            _ => None,
        })
    }
}
