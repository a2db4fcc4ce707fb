//! Making a volume.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use crate::keywords;
use crate::secret::SecretValue;

use super::qemu_img::Call;
use super::staging::Staging;
use super::{
    Cipher, Image, ImageEncryption, ImageFormat, ImageLock, Interrupts, Kdf, QemuImg, Source, VolumeError,
};

/// The id of the passphrase's secret object in qemu-img.
const SECRET_ID: &str = "sec0";

keywords! {
    /// The formats that volumes are made in. Both are encrypted with LUKS.
    #[derive(Default)]
    pub enum VolumeFormat {
        /// QEMU's own format, LUKS inside.
        #[default]
        Qcow2 = "qcow2",
        /// LUKS around the guest's bytes.
        Raw = "raw",
    }
}

keywords! {
    /// How much of the volume has its place on disk from the start.
    #[derive(Default)]
    pub enum Preallocation {
        /// Nothing.
        #[default]
        Off = "off",
        /// The tables of qcow2.
        Metadata = "metadata",
        /// Everything, as blocks that the file system keeps free for it.
        Falloc = "falloc",
        /// Everything, written.
        Full = "full",
    }
}

/// What a volume stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// Its path; a relative one is relative to the volume's directory, as QEMU reads it.
    pub path: PathBuf,
    /// Its format.
    pub format: VolumeFormat,
}

/// What only qcow2 has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Qcow2Options {
    /// Bytes in a cluster.
    pub cluster_size: Option<u64>,
    /// Reference counts are put off until the image is closed.
    pub lazy_refcounts: bool,
    /// Subclusters.
    pub extended_l2: bool,
}

/// Whose file it is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Owner {
    /// The user.
    pub uid: Option<u32>,
    /// The group.
    pub gid: Option<u32>,
}

/// A volume to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVolume {
    /// Where.
    pub path: PathBuf,
    /// In which format.
    pub format: VolumeFormat,
    /// What the guest sees, in bytes; `None` takes that of the backing image.
    pub size: Option<u64>,
    /// How it is encrypted.
    pub cipher: Cipher,
    /// What the key derivation costs.
    pub kdf: Kdf,
    /// What is allocated from the start.
    pub preallocation: Preallocation,
    /// What it stands on.
    pub backing: Option<Backing>,
    /// What only qcow2 has.
    pub qcow2: Qcow2Options,
    /// The file's permission bits.
    pub mode: u32,
    /// Its owner.
    pub owner: Owner,
    /// Whether what is there may be replaced.
    pub replace: bool,
}

impl NewVolume {
    /// Says what is wrong before anything is made: no secret, no file.
    pub fn check(&self) -> Result<(), VolumeError> {
        let wrong = |why: &str| Err(VolumeError::Request(why.to_owned()));
        self.cipher.check().map_err(VolumeError::Request)?;
        if self.format == VolumeFormat::Raw {
            if self.backing.is_some() {
                return wrong("a raw volume cannot stand on a backing image; qcow2 can");
            }
            if self.qcow2 != Qcow2Options::default() {
                return wrong(
                    "clusters, subclusters and lazy reference counts are qcow2's; a raw volume has none",
                );
            }
            if self.preallocation == Preallocation::Metadata {
                return wrong("a raw volume has no metadata to preallocate; take falloc or full");
            }
        }
        if self.path.file_name().is_none() {
            return wrong("the path names no file");
        }
        self.check_target()
    }

    fn check_target(&self) -> Result<(), VolumeError> {
        match self.path.symlink_metadata() {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(VolumeError::io(&self.path, "looked at")(e)),
            Ok(_) if !self.replace => Err(VolumeError::Exists(self.path.clone())),
            Ok(there) if !there.is_file() => Err(VolumeError::NotAFile {
                path: self.path.clone(),
                what: super::image::kind_name(there.file_type()),
            }),
            Ok(_) => Ok(()),
        }
    }

    /// What the guest will see of an empty one.
    pub fn empty_size(&self) -> Result<u64, VolumeError> {
        let backing = self.backing.as_ref().map(|b| b.look(&self.path)).transpose()?;
        match (self.size, backing) {
            (Some(size), _) => Ok(size),
            (None, Some(image)) => Ok(image.virtual_size),
            (None, None) => Err(VolumeError::Request("a volume without a backing image needs a size".into())),
        }
    }

    /// How qemu-img is told to make it in an open file.
    fn call(
        &self,
        staging: &Staging,
        content: Content<'_>,
        passphrase: Option<&SecretValue>,
    ) -> Result<Call, VolumeError> {
        let (mut call, format) = match content {
            Content::Empty(_) => (Call::new("create"), "-f"),
            Content::Image(..) => (Call::new("convert"), "-O"),
        };
        call.arg(if matches!(content, Content::Empty(_)) { "-q" } else { "-p" });
        let (driver, prefix) = match (self.format, passphrase) {
            (VolumeFormat::Raw, None) => ("raw", ""),
            (VolumeFormat::Raw, Some(_)) => ("luks", ""),
            (VolumeFormat::Qcow2, _) => ("qcow2", "encrypt."),
        };
        call.arg(format).arg(driver);
        if let Some(backing) = &self.backing {
            // -u: the backing image is not opened, which would take its passphrase. It was looked at above.
            call.arg("-u").arg("-b").arg(backing.name()?).arg("-F").arg(backing.driver(&self.path)?);
        }
        let mut options = Vec::new();
        if self.format == VolumeFormat::Qcow2 {
            options.push("compat=1.1".to_owned());
            options.extend(self.qcow2.cluster_size.map(|n| format!("cluster_size={n}")));
            if self.qcow2.lazy_refcounts {
                options.push("lazy_refcounts=on".to_owned());
            }
            if self.qcow2.extended_l2 {
                options.push("extended_l2=on".to_owned());
            }
        }
        if let Some(passphrase) = passphrase {
            if self.format == VolumeFormat::Qcow2 {
                options.push("encrypt.format=luks".to_owned());
            }
            options.push(format!("{prefix}key-secret={SECRET_ID}"));
            options.extend(self.cipher.options(prefix));
            options.extend(self.kdf.iter_time(passphrase).map(|ms| format!("{prefix}iter-time={ms}")));
        }
        if self.preallocation != Preallocation::Off {
            options.push(format!("preallocation={}", self.preallocation.as_str()));
        }
        if !options.is_empty() {
            call.arg("-o").arg(options.join(","));
        }
        if let Some(passphrase) = passphrase {
            call.secret(SECRET_ID, passphrase)?;
        }
        if let Content::Image(source, _) = content {
            let name = source.name(&mut call)?;
            call.arg(name);
        }
        let path = call.file(&staging.file)?;
        call.arg(path);
        if let Content::Empty(size) = content {
            call.arg(size.to_string());
        }
        Ok(call)
    }
}

impl Backing {
    fn resolved(&self, volume: &Path) -> PathBuf {
        volume.parent().unwrap_or(Path::new("")).join(&self.path)
    }

    fn look(&self, volume: &Path) -> Result<Image, VolumeError> {
        let path = self.resolved(volume);
        let image = Image::probe(&path)?;
        let said = match self.format {
            VolumeFormat::Raw => ImageFormat::Raw,
            VolumeFormat::Qcow2 => ImageFormat::Qcow2,
        };
        // Raw means what it says: a guest may have written a qcow2 header into its raw disk. The reverse,
        // a qcow2 image that is none, can only be a mistake.
        if said == ImageFormat::Qcow2 && image.format != said {
            return Err(VolumeError::OtherFormat { path, found: "raw", said: "qcow2".to_owned() });
        }
        Ok(image)
    }

    /// As the volume's header names it. QEMU takes what stands before a colon for a protocol.
    fn name(&self) -> Result<String, VolumeError> {
        let name = self.path.to_str().ok_or_else(|| {
            VolumeError::Request("qcow2 names its backing image in UTF-8, which this path is not".into())
        })?;
        let plain = name.starts_with('/') || !name.contains(':');
        Ok(if plain { name.to_owned() } else { format!("./{name}") })
    }

    /// QEMU's driver for it: a raw volume that is encrypted is opened by `luks`.
    fn driver(&self, volume: &Path) -> Result<&'static str, VolumeError> {
        Ok(match (self.format, self.look(volume)?.encryption) {
            (VolumeFormat::Qcow2, _) => "qcow2",
            (VolumeFormat::Raw, Some(ImageEncryption::Luks1(_))) => "luks",
            (VolumeFormat::Raw, _) => "raw",
        })
    }
}

/// What is to be in a new volume.
#[derive(Clone, Copy)]
pub(super) enum Content<'a> {
    /// Nothing, or what it stands on: that many bytes.
    Empty(u64),
    /// What the guest sees of an image: that many bytes, where it is known.
    Image(&'a Source, Option<u64>),
}

/// Makes a volume. On any failure there is no file, or the one that was there before. `progress` gets the
/// share of the volume that is on disk where all of it is to be, and nothing else to show otherwise.
pub async fn create(
    qemu_img: &QemuImg,
    volume: &NewVolume,
    passphrase: &SecretValue,
    interrupts: &mut Interrupts,
    progress: &mut dyn FnMut(Option<f64>),
) -> Result<(), VolumeError> {
    volume.check()?;
    let size = volume.empty_size()?;
    make(qemu_img, volume, Content::Empty(size), Some(passphrase), interrupts, progress).await.map(drop)
}

/// Makes a volume with what is to be in it; without a passphrase it is plain. Returns what the guest sees, in bytes.
pub(super) async fn make(
    qemu_img: &QemuImg,
    volume: &NewVolume,
    content: Content<'_>,
    passphrase: Option<&SecretValue>,
    interrupts: &mut Interrupts,
    progress: &mut dyn FnMut(Option<f64>),
) -> Result<u64, VolumeError> {
    let size = match content {
        Content::Empty(size) => Some(size),
        Content::Image(_, size) => size,
    };
    let everything = matches!(volume.preallocation, Preallocation::Falloc | Preallocation::Full);
    let staging = Staging::new(&volume.path)?;
    let mut tick = |share: Option<f64>| {
        let written = staging.file.metadata().map_or(0, |m| m.blocks() * 512);
        let allocated = size.filter(|_| everything).map(|size| (written as f64 / size as f64).min(1.0));
        progress(share.or(allocated));
    };
    qemu_img.run(|| volume.call(&staging, content, passphrase), interrupts, &mut tick).await?;
    let made = seen(volume, &staging, size, passphrase.is_some())?;
    let set = VolumeError::io(&volume.path, "given its owner and permissions");
    fchown(&staging.file, volume.owner.uid, volume.owner.gid)
        .and_then(|()| staging.file.set_permissions(Permissions::from_mode(volume.mode)))
        .map_err(set)?;
    interrupts.check().await?;
    let _lock = match volume.replace {
        true => lock_existing(&volume.path)?,
        false => None,
    };
    staging.commit(volume.replace)?;
    Ok(made)
}

/// What the guest will see of what qemu-img made. No word of it is taken for that.
fn seen(
    volume: &NewVolume,
    staging: &Staging,
    size: Option<u64>,
    encrypted: bool,
) -> Result<u64, VolumeError> {
    let made = Image::read(&staging.file, &volume.path)?;
    let is_luks = matches!(made.encryption, Some(ImageEncryption::Luks1(_)));
    // What a guest wrote into a plain raw disk is no header of ours.
    let plain_raw = !encrypted && volume.format == VolumeFormat::Raw;
    let now = if plain_raw { made.file_size } else { made.virtual_size };
    match (is_luks == encrypted || plain_raw) && size.is_none_or(|size| size == now) {
        true => Ok(now),
        false => Err(VolumeError::CameOutPlain),
    }
}

/// A volume that a guest runs from is not replaced.
fn lock_existing(path: &Path) -> Result<Option<ImageLock>, VolumeError> {
    match std::fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => ImageLock::take(&file, path).map(Some),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(VolumeError::io(path, "opened")(e)),
    }
}
