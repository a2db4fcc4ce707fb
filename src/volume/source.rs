//! An image that is there, as qemu-img is to open it: every layer with its passphrase.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde_json::{Value, json};

use crate::keywords;
use crate::qemu::refusal::{self, Cause, Credential};
use crate::secret::{SecretValue, ValueError};

use super::qemu_img::Call;
use super::{Image, ImageEncryption, ImageFormat, Interrupts, Rbd, RbdName, VolumeError, image, rbd};

/// More layers than anybody stacks; images that stand on themselves end here.
const MOST_LAYERS: usize = 200;

keywords! {
    /// The formats that an image is converted from.
    pub enum SourceFormat {
        /// The guest's bytes, maybe inside LUKS.
        Raw = "raw",
        /// QEMU's own.
        Qcow2 = "qcow2",
        /// VMware's.
        Vmdk = "vmdk",
        /// VirtualBox's.
        Vdi = "vdi",
        /// Hyper-V's.
        Vhdx = "vhdx",
        /// Virtual PC's.
        Vpc = "vpc",
    }
}

/// One image of a chain.
#[derive(Debug)]
pub struct Layer {
    place: Place,
    path: PathBuf,
    driver: &'static str,
    is_encrypted: bool,
    passphrase: Option<SecretValue>,
}

/// What holds an image.
#[derive(Debug)]
enum Place {
    /// A file, or a block device of this host.
    File(File),
    /// A Ceph cluster.
    Cluster(Rc<Rbd>, RbdName),
}

/// librbd decrypts LUKS2 itself, which QEMU's own driver does not open.
const LIBRBD: &str = "rbd";

impl Layer {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a passphrase opens it.
    pub fn is_encrypted(&self) -> bool {
        self.is_encrypted
    }

    /// Gives it its passphrase, or says why that can be none.
    pub fn unlock(&mut self, passphrase: SecretValue) -> Result<(), ValueError> {
        passphrase.as_passphrase()?;
        self.passphrase = Some(passphrase);
        Ok(())
    }
}

/// An image with all that it stands on, each file open: what was looked at is what qemu-img gets.
#[derive(Debug)]
pub struct Source {
    layers: Vec<Layer>,
    /// What the guest sees, in bytes; `None` where only qemu-img can tell.
    pub size: Option<u64>,
}

impl Source {
    /// Opens an image and its backing images.
    ///
    /// The format of a plain image is not guessed: a guest can write a header of another format, which names any
    /// file of the host as its backing image, into its raw disk. Without a format only encrypted images are taken,
    /// whose guest cannot write outside the encryption.
    pub fn open(path: &Path, format: Option<SourceFormat>, writable: bool) -> Result<Self, VolumeError> {
        let (top, image) = open(path, writable)?;
        let is_luks = is_luks(path, &image)?;
        if image.encryption.is_none() && format.is_none() {
            return Err(VolumeError::FormatNotSaid(path.to_owned()));
        }
        let found = image.format;
        match format {
            Some(
                format @ (SourceFormat::Vmdk | SourceFormat::Vdi | SourceFormat::Vhdx | SourceFormat::Vpc),
            ) => {
                if is_luks || found == ImageFormat::Qcow2 {
                    return Err(other_format(path, &image, format.as_str()));
                }
                let layer = layer(Place::File(top), path, format.as_str(), false);
                return Ok(Self { layers: vec![layer], size: None });
            }
            Some(SourceFormat::Raw) if found == ImageFormat::Qcow2 && is_luks => {
                return Err(other_format(path, &image, "raw"));
            }
            // What a guest may write into its plain disk is data.
            Some(SourceFormat::Raw) if !is_luks => {
                let size = Some(image.file_size);
                return Ok(Self { layers: vec![layer(Place::File(top), path, "raw", false)], size });
            }
            Some(SourceFormat::Qcow2) if found != ImageFormat::Qcow2 => {
                return Err(other_format(path, &image, "qcow2"));
            }
            _ => {}
        }
        let mut this = Self { layers: Vec::new(), size: Some(image.virtual_size) };
        this.add_chain(top, path, image)?;
        Ok(this)
    }

    /// Looks at an image of a cluster, which holds the guest's bytes, maybe inside LUKS.
    pub async fn in_cluster(
        rbd: Rc<Rbd>,
        name: RbdName,
        format: Option<SourceFormat>,
        interrupts: &mut Interrupts,
    ) -> Result<Self, VolumeError> {
        let image = rbd.look(&name, interrupts).await?;
        let path = name.path();
        if let Some(other) = format.filter(|format| *format != SourceFormat::Raw) {
            return Err(other_format(&path, &image, other.as_str()));
        }
        let (driver, is_encrypted) = match (image.format, &image.encryption) {
            (ImageFormat::Raw, Some(ImageEncryption::Luks1(_))) => ("luks", true),
            (ImageFormat::Raw, Some(ImageEncryption::Luks2(_))) => (LIBRBD, true),
            (ImageFormat::Qcow2, Some(_)) => return Err(other_format(&path, &image, "raw")),
            _ if format.is_none() => return Err(VolumeError::FormatNotSaid(path)),
            // What a guest may write into its plain disk is data.
            _ => ("raw", false),
        };
        let size = if is_encrypted { image.virtual_size } else { image.file_size };
        let top = layer(Place::Cluster(rbd, name), &path, driver, is_encrypted);
        Ok(Self { layers: vec![top], size: Some(size) })
    }

    fn add_chain(&mut self, file: File, path: &Path, image: Image) -> Result<(), VolumeError> {
        let (mut file, mut path, mut image) = (file, path.to_owned(), image);
        loop {
            let is_luks = is_luks(&path, &image)?;
            if image.data_file {
                let why = format!("{} has its data in another file, which is not supported", path.display());
                return Err(VolumeError::Request(why));
            }
            let driver = match image.format {
                ImageFormat::Qcow2 => "qcow2",
                ImageFormat::Raw if is_luks => "luks",
                ImageFormat::Raw => "raw",
            };
            self.layers.push(layer(Place::File(file), &path, driver, is_luks));
            let Some(backing) = image.backing.take() else { return Ok(()) };
            if self.layers.len() >= MOST_LAYERS {
                let why =
                    format!("{} stands on more than {MOST_LAYERS} images", self.layers[0].path.display());
                return Err(VolumeError::Request(why));
            }
            let below = path.parent().unwrap_or(Path::new("")).join(file_name(&path, &backing.name)?);
            let said = backing.format.as_deref().ok_or_else(|| VolumeError::FormatNotSaid(below.clone()))?;
            let (opened, found) = open(&below, false)?;
            let found_luks = matches!(found.encryption, Some(ImageEncryption::Luks1(_)));
            match said {
                "qcow2" if found.format == ImageFormat::Qcow2 => {}
                "luks" if found.format == ImageFormat::Raw && found_luks => {}
                "raw" if !found_luks => {
                    // Whatever header is in it is the guest's.
                    self.layers.push(layer(Place::File(opened), &below, "raw", false));
                    return Ok(());
                }
                _ => return Err(other_format(&below, &found, said)),
            }
            (file, path, image) = (opened, below, found);
        }
    }

    /// The image and what it stands on, from the top.
    pub fn layers_mut(&mut self) -> impl Iterator<Item = &mut Layer> {
        self.layers.iter_mut()
    }

    /// The image itself.
    pub fn top(&self) -> &Layer {
        &self.layers[0]
    }

    /// What the guest sees of it now, in bytes.
    pub(super) fn look_at_size(&self) -> Result<u64, VolumeError> {
        let top = self.top();
        let image = match &top.place {
            Place::File(file) => Image::read(file, &top.path)?,
            Place::Cluster(..) => return Ok(self.size.unwrap_or_default()),
        };
        // The header of another format in a plain raw image is the guest's.
        Ok(if top.driver == "raw" { image.file_size } else { image.virtual_size })
    }

    /// Hands all of it to qemu-img, and returns the name under which it opens it.
    pub(super) fn name(&self, call: &mut Call) -> Result<String, VolumeError> {
        let mut options = Value::Null;
        for (n, layer) in self.layers.iter().enumerate().rev() {
            let storage = match &layer.place {
                Place::File(file) => json!({ "driver": "file", "filename": call.file(file)? }),
                Place::Cluster(rbd, name) => {
                    call.remote();
                    rbd.node(name, call)?
                }
            };
            let mut node = match layer.driver {
                LIBRBD => storage,
                driver => json!({ "driver": driver, "file": storage }),
            };
            if let Some(passphrase) = &layer.passphrase {
                let id = format!("source{n}");
                call.secret(&id, passphrase)?;
                match layer.driver {
                    "luks" => node["key-secret"] = id.into(),
                    LIBRBD => node["encrypt"] = json!({ "format": "luks2", "key-secret": id }),
                    _ => node["encrypt"] = json!({ "format": "luks", "key-secret": id }),
                }
            }
            if layer.driver == "qcow2" {
                node["backing"] = options;
            }
            options = node;
        }
        Ok(format!("json:{options}"))
    }

    /// A failure of qemu-img as what it is.
    pub(super) fn failure(&self, error: VolumeError) -> VolumeError {
        let error = match &self.top().place {
            Place::Cluster(_, name) => rbd::told(name, error),
            Place::File(_) => error,
        };
        let VolumeError::Program { message, .. } = &error else { return error };
        match refusal::meaning(message).map(|meaning| meaning.cause) {
            Some(Cause::WrongSecret(Credential::Passphrase)) => {
                let paths =
                    self.layers.iter().filter(|l| l.is_encrypted).map(|l| l.path.display().to_string());
                VolumeError::WrongPassphrase(paths.collect::<Vec<_>>().join(" or "))
            }
            Some(Cause::InUse) => VolumeError::InUse(self.top().path.clone()),
            _ => error,
        }
    }
}

fn layer(place: Place, path: &Path, driver: &'static str, is_encrypted: bool) -> Layer {
    Layer { place, path: path.to_owned(), driver, is_encrypted, passphrase: None }
}

fn open(path: &Path, writable: bool) -> Result<(File, Image), VolumeError> {
    let mut file = image::open(path, false)?;
    if writable {
        // What is no image was said to be none by now: a directory is not opened for writing.
        file = image::open(path, true)?;
    }
    let image = Image::read(&file, path)?;
    Ok((file, image))
}

/// The path in the name of a backing image. QEMU takes what stands before a colon for a protocol.
fn file_name<'a>(image: &Path, name: &'a str) -> Result<&'a str, VolumeError> {
    let name = name.strip_prefix("file:").unwrap_or(name);
    if name.starts_with('/') || !name.split('/').next().unwrap_or_default().contains(':') {
        return Ok(name);
    }
    Err(VolumeError::Request(format!("{} stands on {name}, which is no file", image.display())))
}

/// Whether a passphrase opens it, if QEMU's own drivers open it at all.
fn is_luks(path: &Path, image: &Image) -> Result<bool, VolumeError> {
    let what = match image.encryption {
        None => return Ok(false),
        Some(ImageEncryption::Luks1(_)) => return Ok(true),
        Some(ImageEncryption::Luks2(_)) => "LUKS2",
        Some(ImageEncryption::QcowAes) => "the old AES of qcow2",
    };
    let why = format!("{} is encrypted with {what}, which QEMU does not open", path.display());
    Err(VolumeError::Request(why))
}

fn other_format(path: &Path, image: &Image, said: &str) -> VolumeError {
    let found = match (image.format, &image.encryption) {
        (ImageFormat::Qcow2, None) => "qcow2",
        (ImageFormat::Qcow2, Some(_)) => "encrypted qcow2",
        (ImageFormat::Raw, None) => "raw",
        (ImageFormat::Raw, Some(_)) => "LUKS",
    };
    VolumeError::OtherFormat { path: path.to_owned(), found, said: said.to_owned() }
}
