//! One image of a disk: where it is, in which format, how it is encrypted, and what is behind it.

use crate::domain::size;
use crate::secret::SecretRef;
use crate::xml::{Diagnostics, Element, Span, keywords};

use super::encryption::{Encryption, Engine, Refused};
use super::source::Source;

keywords! {
    /// The format of an image.
    pub enum Format {
        /// None: the bytes are the disk's.
        Raw = "raw",
        /// QEMU's.
        Qcow2 = "qcow2",
        /// A directory shown as a FAT file system.
        Fat = "fat",
        /// QEMU's enhanced one.
        Qed = "qed",
        /// VMware's.
        Vmdk = "vmdk",
        /// VirtualBox's.
        Vdi = "vdi",
        /// Virtual PC's.
        Vpc = "vpc",
        /// Hyper-V's (VHDX).
        Vhd = "vhd",
        /// Virtuozzo's.
        Ploop = "ploop",
        /// Bochs'.
        Bochs = "bochs",
        /// Compressed loop images.
        Cloop = "cloop",
        /// Apple's.
        Dmg = "dmg",
    }
}

impl Format {
    /// Whether an image of this format can be an overlay.
    pub fn has_backing(self) -> bool {
        matches!(self, Self::Qcow2 | Self::Qed | Self::Vmdk)
    }

    /// Reads a format's name. What libvirt knows and QEMU does not run gets an answer that helps.
    fn from_xml(e: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let word = e.attribute("type")?;
        let (message, hint) = match word.value.as_str() {
            "qcow" => ("the old 'qcow' format is not run", "convert it: qemu-img convert -O qcow2"),
            "cow" => ("the 'cow' format is long gone from QEMU", "convert it to qcow2 with an old qemu-img"),
            "dir" => ("'dir' is no format", "a directory is <disk type='dir'> with <driver type='fat'/>"),
            "iso" => ("'iso' is no format of an image", "an ISO file is type='raw'"),
            "vhdx" => ("the format VHDX is called 'vhd' here, as libvirt has it", "write type='vhd'"),
            "luks" => (
                "'luks' is no format of its own",
                "an encrypted raw image is type='raw' with <encryption format='luks'> and its <secret>",
            ),
            "auto" | "aio" | "none" => {
                ("the format of an image is not guessed", "say type='raw' or type='qcow2'")
            }
            _ => return e.keyword("type", diagnostics),
        };
        diagnostics.error(word.span, message).hint(hint);
        None
    }
}

keywords! {
    /// What becomes of a start when the image is not there.
    #[derive(Default)]
    pub enum StartupPolicy {
        /// There is none.
        #[default]
        Mandatory = "mandatory",
        /// There is none: a guest that vmward starts boots, and only one that comes from elsewhere may lack it.
        Requisite = "requisite",
        /// The guest starts without it.
        Optional = "optional",
    }
}

/// A part of a storage unit that is the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// Its first byte.
    pub offset: u64,
    /// How many bytes.
    pub size: u64,
}

impl Slice {
    fn from_xml(source: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let slices = source.only_child("slices", diagnostics)?;
        let slice = slices.only_child("slice", diagnostics)?;
        if slice.require("type", diagnostics)? != "storage" {
            diagnostics.error(slice.span, "only slices of type 'storage' exist");
            return None;
        }
        let mut number = |name| {
            slice.require(name, diagnostics)?;
            slice.number(name, diagnostics)
        };
        let (offset, size) = (number("offset"), number("size"));
        Some(Self { offset: offset?, size: size? })
    }
}

/// What is behind an image.
#[derive(Debug, Clone, Default)]
pub enum Backing {
    /// What the image's own header says.
    #[default]
    AsInHeader,
    /// Nothing (`<backingStore/>`).
    Nothing,
    /// Another image.
    Image(Box<Image>),
}

/// One image.
#[derive(Debug, Clone)]
pub struct Image {
    /// Where it stands: its `<source>`.
    pub span: Span,
    /// Where it is.
    pub source: Source,
    /// Its format.
    pub format: Format,
    /// Its encryption.
    pub encryption: Option<Encryption>,
    /// The part of the source that it is.
    pub slice: Option<Slice>,
    /// qcow2: the raw image that the guest's data is in, while this one has only what describes it.
    pub data_store: Option<Box<Image>>,
    /// What becomes of a start when it is not there.
    pub startup_policy: StartupPolicy,
    /// The most bytes that qcow2 caches of its metadata.
    pub metadata_cache: Option<u64>,
    /// QEMU does not write to it.
    pub readonly: bool,
    /// What is behind it.
    pub backing: Backing,
}

impl Image {
    /// A writable image without anything special about it.
    pub fn plain(source: Source, format: Format, span: Span) -> Self {
        Self {
            span,
            source,
            format,
            encryption: None,
            slice: None,
            data_store: None,
            startup_policy: StartupPolicy::Mandatory,
            metadata_cache: None,
            readonly: false,
            backing: Backing::AsInHeader,
        }
    }

    /// The image of a `<disk>`; `None` if there is no medium. Everything of the source that cannot be read
    /// is refused: a disk without its encryption, or on another source, must not start.
    pub(super) fn top_from_xml(
        disk: &Element,
        readonly: bool,
        diagnostics: &mut Diagnostics,
    ) -> Result<Option<Self>, Refused> {
        let driver = disk.child("driver");
        let format = match driver {
            Some(e) if e.attribute("type").is_some() => {
                Some(Format::from_xml(e, diagnostics).ok_or(Refused)?)
            }
            _ => None,
        };
        let cache = driver.and_then(|d| metadata_cache(d, diagnostics));
        Self::from_parts(disk, Some(disk), format, cache, readonly, diagnostics)
    }

    /// The image that a firmware's variables are in: the `<source>` of an `<nvram>`. Its format is not said there.
    pub(in crate::domain) fn of_nvram(
        parent: &Element,
        element: Option<&Element>,
        diagnostics: &mut Diagnostics,
    ) -> Option<Self> {
        let source = Source::from_xml(parent, None, element, diagnostics).ok().flatten()?;
        let element = element?;
        let mut image = Self::plain(source, Format::Raw, element.span);
        image.encryption = Encryption::from_places(None, Some(element), diagnostics).ok()?;
        image.check(diagnostics).ok()?;
        Some(image)
    }

    /// The image of a `<backingStore>`.
    fn backing_from_xml(store: &Element, diagnostics: &mut Diagnostics) -> Result<Option<Self>, Refused> {
        let Some(e) = store.only_child("format", diagnostics) else {
            diagnostics.error(store.span, format!("<{}> lacks a <format>", store.name));
            return Err(Refused);
        };
        e.require("type", diagnostics).ok_or(Refused)?;
        let format = Format::from_xml(e, diagnostics).ok_or(Refused)?;
        let cache = metadata_cache(e, diagnostics);
        Self::from_parts(store, None, Some(format), cache, true, diagnostics)
    }

    fn from_parts(
        parent: &Element,
        disk: Option<&Element>,
        format: Option<Format>,
        metadata_cache: Option<u64>,
        readonly: bool,
        diagnostics: &mut Diagnostics,
    ) -> Result<Option<Self>, Refused> {
        let element = parent.only_child("source", diagnostics);
        let source = Source::from_xml(parent, disk, element, diagnostics)?;
        let encryption = Encryption::from_places(disk, element, diagnostics)?;
        let data_store = element.map_or(Ok(None), |e| Self::data_store(e, readonly, diagnostics))?;
        let backing = Self::backing(parent, diagnostics)?;
        // The number that libvirt gave the image in a running guest; vmward gives its own.
        element.and_then(|e| e.get("index"));
        let startup_policy =
            element.and_then(|e| e.keyword("startupPolicy", diagnostics)).unwrap_or_default();
        let (Some(source), Some(element)) = (source, element) else {
            if let Some(encryption) = &encryption {
                diagnostics.error(encryption.span, "there is no image that this encryption could be of");
                return Err(Refused);
            }
            return Ok(None);
        };
        let image = Self {
            span: element.span,
            format: format.unwrap_or(Format::Raw),
            source,
            encryption,
            slice: Slice::from_xml(element, diagnostics),
            data_store,
            startup_policy,
            metadata_cache,
            readonly,
            backing,
        };
        image.check(diagnostics)?;
        Ok(Some(image))
    }

    /// `<dataStore>`: a source with a format, as a backing store is, but always raw.
    fn data_store(
        source: &Element,
        readonly: bool,
        diagnostics: &mut Diagnostics,
    ) -> Result<Option<Box<Self>>, Refused> {
        let Some(store) = source.only_child("dataStore", diagnostics) else { return Ok(None) };
        let Some(mut image) = Self::backing_from_xml(store, diagnostics)? else {
            diagnostics.error(store.span, "<dataStore> lacks a <source>");
            return Err(Refused);
        };
        image.readonly = readonly;
        if image.format != Format::Raw || image.encryption.is_some() {
            diagnostics.error(image.span, "the data of a qcow2 image is in a plain raw image");
            return Err(Refused);
        }
        Ok(Some(Box::new(image)))
    }

    fn backing(parent: &Element, diagnostics: &mut Diagnostics) -> Result<Backing, Refused> {
        let Some(store) = parent.only_child("backingStore", diagnostics) else {
            return Ok(Backing::AsInHeader);
        };
        store.get("index");
        if store.attribute("type").is_none() && store.children.is_empty() {
            return Ok(Backing::Nothing);
        }
        Ok(Self::backing_from_xml(store, diagnostics)?
            .map_or(Backing::AsInHeader, |image| Backing::Image(Box::new(image))))
    }

    /// The rules about one image. Those about its encryption are refusals: nothing overrides them.
    fn check(&self, diagnostics: &mut Diagnostics) -> Result<(), Refused> {
        let mut refused = Ok(());
        if let Some(e) = &self.encryption {
            let message = match e.engine {
                Engine::Librbd if !self.source.is_rbd() => Some("librbd decrypts RBD images only".to_owned()),
                Engine::Qemu if !matches!(self.format, Format::Raw | Format::Qcow2) => {
                    Some(format!("QEMU has no encryption for the format '{}'", self.format.as_str()))
                }
                Engine::Qemu if matches!(self.source, Source::VhostUser(_) | Source::VhostVdpa(_)) => {
                    Some("QEMU does not see the data of this disk and cannot decrypt it".to_owned())
                }
                _ => None,
            };
            if let Some(message) = message {
                diagnostics.error(e.span, message);
                refused = Err(Refused);
            }
        }
        if matches!(self.backing, Backing::Image(_)) && !self.format.has_backing() {
            diagnostics
                .error(
                    self.span,
                    format!("an image of the format '{}' has no backing image", self.format.as_str()),
                )
                .hint("leave out <backingStore>, or say what the image is in <driver type='...'/>");
        }
        if let Some(store) = &self.data_store {
            if self.format != Format::Qcow2 {
                diagnostics.error(store.span, "only qcow2 images have their data elsewhere");
            }
            if let Some(encryption) = &self.encryption {
                // QEMU would encrypt only what describes the data.
                diagnostics
                    .error(encryption.span, "an encrypted qcow2 image cannot have its data in another image");
                refused = Err(Refused);
            }
        }
        if matches!(self.source, Source::Directory(_)) != (self.format == Format::Fat) {
            diagnostics
                .error(self.span, "a directory is shown as 'fat', and only directories are")
                .hint("<disk type='dir'> with <driver name='qemu' type='fat'/>");
        } else if self.format == Format::Fat && !self.readonly {
            diagnostics
                .error(self.span, "QEMU cannot write to a directory that it shows as a file system")
                .hint("add <readonly/>, or share the directory with <filesystem>");
        }
        refused
    }

    /// The image behind it that the XML names.
    pub fn backing_image(&self) -> Option<&Image> {
        match &self.backing {
            Backing::Image(image) => Some(image),
            Backing::AsInHeader | Backing::Nothing => None,
        }
    }

    /// The secrets that it uses, storage before format.
    pub fn secrets(&self) -> impl Iterator<Item = SecretRef> + '_ {
        let auth = |source: &Source| source.auth().map(|auth| auth.secret.clone());
        let encryption = self.encryption.iter().flat_map(|e| e.secrets.iter().cloned());
        let data = self.data_store.iter().filter_map(move |store| auth(&store.source));
        auth(&self.source).into_iter().chain(encryption).chain(data)
    }
}

/// `<metadata_cache><max_size unit='...'>`, in bytes.
fn metadata_cache(parent: &Element, diagnostics: &mut Diagnostics) -> Option<u64> {
    let size = parent.only_child("metadata_cache", diagnostics)?.only_child("max_size", diagnostics)?;
    size::of_element(size, 1, diagnostics)
}
