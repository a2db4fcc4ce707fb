//! The nodes of a disk's images: protocol, slice, format; base image first.

use serde_json::{Value, json};

use crate::domain::disk::{
    Backing, CacheFlags, Disk, Driver, Encryption, Engine, Format, Image, Kind, Source,
};
use crate::qemu::plan::object;
use crate::qemu::{DiskPlan, JsonObject, QemuObject, SecretObject, SecretSource, Tls};

use super::{LocalImage, RawLuks, ServerImage, protocol};
use crate::qemu::properties::Properties;

/// Adds the nodes of all images of a disk to the plan; the name of the topmost is the result.
pub(super) fn chain(disk: &Disk, numbers: &[u32], tls: &Tls, plan: &mut DiskPlan) -> String {
    let mut names = numbers.iter().map(|number| format!("libvirt-{number}"));
    let mut layer = |image| Layer {
        image,
        names: Names(names.next().unwrap_or_default()),
        driver: &disk.driver,
        tls,
        cache: disk.cache(),
        kind: disk.kind,
        is_top: false,
    };
    // An image's data is numbered right after the image.
    let mut layers: Vec<_> =
        disk.chain().map(|image| (layer(image), image.data_store.as_deref().map(&mut layer))).collect();
    if let Some((top, _)) = layers.first_mut() {
        top.is_top = true;
    }
    let mut behind: Option<String> = None;
    for (layer, data) in layers.iter().rev() {
        let data = data.as_ref().map(|data| data.add(None, None, plan));
        behind = Some(layer.add(behind.as_deref(), data, plan));
    }
    behind.unwrap_or_default()
}

/// Adds the nodes of a disk's topmost image as if nothing were behind it.
pub(super) fn overlay(disk: &Disk, number: u32, tls: &Tls, plan: &mut DiskPlan) {
    let Some(image) = &disk.image else { return };
    let image = Image { backing: Backing::Nothing, ..image.clone() };
    let names = Names(format!("libvirt-{number}"));
    let (driver, cache) = (&disk.driver, disk.cache());
    let layer = Layer { image: &image, names, driver, tls, cache, kind: disk.kind, is_top: true };
    layer.add(None, None, plan);
}

/// Adds the nodes of an image that belongs to no disk.
pub(super) fn single(image: &Image, name: &str, tls: &Tls, plan: &mut DiskPlan) {
    let layer = Layer {
        image,
        names: Names(name.to_owned()),
        driver: &Driver::default(),
        tls,
        cache: None,
        kind: Kind::Disk,
        is_top: true,
    };
    layer.add(None, None, plan);
}

/// The names around one image, all made of its own.
pub(super) struct Names(String);

impl Names {
    /// The protocol node.
    pub fn storage(&self) -> String {
        format!("{}-storage", self.0)
    }

    fn slice(&self) -> String {
        format!("{}-slice-sto", self.0)
    }

    fn format(&self) -> String {
        format!("{}-format", self.0)
    }

    /// The password of the protocol.
    pub fn auth_secret(&self) -> String {
        format!("{}-storage-auth-secret0", self.0)
    }

    /// The cookies of the protocol.
    pub fn cookie_secret(&self) -> String {
        format!("{}-storage-httpcookie-secret0", self.0)
    }

    /// The TLS credentials of the protocol.
    pub fn tls(&self) -> String {
        format!("obj{}-storage_tls0", self.0)
    }

    /// A passphrase of the image: who decrypts decides about the name.
    pub fn encryption_secret(&self, engine: Engine, index: usize) -> String {
        match engine {
            Engine::Qemu => format!("{}-format-encryption-secret{index}", self.0),
            Engine::Librbd => format!("{}-storage-encryption-secret{index}", self.0),
        }
    }
}

/// One image on its way to its nodes.
pub(super) struct Layer<'a> {
    pub image: &'a Image,
    pub names: Names,
    pub driver: &'a Driver,
    pub kind: Kind,
    pub tls: &'a Tls,
    cache: Option<CacheFlags>,
    is_top: bool,
}

impl Layer<'_> {
    /// Adds the image's objects and nodes; the name of the node that stands for the image is the result.
    fn add(&self, behind: Option<&str>, data: Option<String>, plan: &mut DiskPlan) -> String {
        self.add_objects(plan);
        plan.images.extend(self.local_image());
        plan.servers.extend(ServerImage::of(self));
        let effective = !self.needs_format_node();
        let mut storage = protocol::properties(self);
        storage.put("node-name", self.names.storage());
        if effective {
            self.put_effective(&mut storage);
        } else {
            storage.put("auto-read-only", true);
            storage.put("discard", "unmap");
        }
        self.put_cache(&mut storage);
        plan.nodes.push(storage);
        if effective {
            return self.names.storage();
        }
        let below = self.add_slice(plan);
        let mut format = JsonObject::new();
        format.put("node-name", self.names.format());
        self.put_effective(&mut format);
        self.put_cache(&mut format);
        self.put_format(&mut format);
        format.put("file", below);
        format.put_some("data-file", data);
        match (behind, &self.image.backing) {
            (Some(node), _) => format.put("backing", node),
            // Says that there is nothing: QEMU does not look into the header.
            (None, Backing::Nothing) if self.image.format.has_backing() => {
                format.put("backing", Value::Null);
            }
            _ => {}
        }
        plan.nodes.push(format);
        self.names.format()
    }

    /// Plain raw images have no format node.
    fn needs_format_node(&self) -> bool {
        self.image.format != Format::Raw || self.qemu_encryption().is_some() || self.image.slice.is_some()
    }

    fn qemu_encryption(&self) -> Option<&Encryption> {
        self.image.encryption.as_ref().filter(|e| e.engine == Engine::Qemu)
    }

    /// The image, if QEMU can have it opened.
    fn local_image(&self) -> Option<LocalImage> {
        let image = self.image;
        let path = match &image.source {
            Source::File(path) | Source::Block { path, reservations: None } => path.clone(),
            _ => return None,
        };
        let open_ended = image.format.has_backing() && matches!(image.backing, Backing::AsInHeader);
        match image.format {
            // Its extents are files beside it.
            Format::Vmdk => return None,
            Format::Qed if open_ended => return None,
            _ => {}
        }
        let is_qcow2 = image.format == Format::Qcow2;
        Some(LocalImage {
            path,
            node: self.names.storage(),
            read_only: image.readonly,
            direct: self.cache.is_some_and(|cache| cache.direct),
            backing_in_header: is_qcow2 && open_ended,
            data_in_header: is_qcow2 && image.data_store.is_none(),
            luks: self.raw_luks(),
            span: image.span,
        })
    }

    /// What is to be known of a raw LUKS image to open it with another header.
    pub(super) fn raw_luks(&self) -> Option<RawLuks> {
        let encryption = self.qemu_encryption().filter(|_| self.image.format == Format::Raw)?;
        // The header of a slice is where the slice begins. What is behind an overlay is opened for writing only when the
        // overlay is committed, and cannot be if it is opened once and for all; media of drives come and go.
        if self.image.slice.is_some() || !self.is_top || self.kind != Kind::Disk {
            return None;
        }
        Some(RawLuks {
            format: self.names.format(),
            secret_id: self.names.encryption_secret(Engine::Qemu, 0),
            secret: encryption.secrets.first()?.clone(),
        })
    }

    /// What the topmost node of an image says of the image.
    fn put_effective(&self, node: &mut JsonObject) {
        node.put("read-only", self.image.readonly);
        node.put_some("discard", self.driver.discard.map(|d| d.as_str()));
        if self.is_top {
            node.put_some("detect-zeroes", self.driver.effective_detect_zeroes().map(|d| d.as_str()));
        }
    }

    pub(super) fn put_cache(&self, node: &mut JsonObject) {
        let flags = self.cache;
        node.put_some("cache", flags.map(|f| json!({ "direct": f.direct, "no-flush": f.no_flush })));
    }

    /// A slice of an image with a format is a node of its own; raw images do it in their format node.
    fn add_slice(&self, plan: &mut DiskPlan) -> String {
        let plain = self.image.format == Format::Raw && self.qemu_encryption().is_none();
        let Some(slice) = self.image.slice.filter(|_| !plain) else { return self.names.storage() };
        let mut node = object(json!({
            "driver": "raw",
            "node-name": self.names.slice(),
            "offset": slice.offset,
            "size": slice.size,
            "file": self.names.storage(),
            "auto-read-only": true,
            "discard": "unmap",
        }));
        self.put_cache(&mut node);
        plan.nodes.push(node);
        self.names.slice()
    }

    fn put_format(&self, node: &mut JsonObject) {
        let secret = self.qemu_encryption().map(|e| self.names.encryption_secret(e.engine, 0));
        match (self.image.format, secret) {
            (Format::Raw, Some(secret)) => {
                node.put("driver", "luks");
                node.put("key-secret", secret);
            }
            (Format::Raw | Format::Fat, _) => {
                node.put("driver", "raw");
                node.put_some("offset", self.image.slice.map(|s| s.offset));
                node.put_some("size", self.image.slice.map(|s| s.size));
            }
            (Format::Qcow2, secret) => {
                node.put("driver", "qcow2");
                node.put_some("encrypt", secret.map(|s| json!({ "format": "luks", "key-secret": s })));
                node.put_some("cache-size", self.image.metadata_cache);
                node.put_some("discard-no-unref", self.driver.discard_no_unref);
            }
            (Format::Vhd, _) => node.put("driver", "vhdx"),
            (Format::Ploop, _) => node.put("driver", "parallels"),
            (other, _) => node.put("driver", other.as_str()),
        }
    }

    /// What has to be there before the nodes.
    fn add_objects(&self, plan: &mut DiskPlan) {
        protocol::objects(self, plan);
        if let Some(encryption) = &self.image.encryption {
            for (i, secret) in encryption.secrets.iter().enumerate() {
                plan.objects.push(QemuObject::Secret(SecretObject {
                    id: self.names.encryption_secret(encryption.engine, i),
                    source: SecretSource::Keystore(secret.clone()),
                }));
            }
        }
    }
}
