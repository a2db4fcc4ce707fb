//! The firmware of a guest: a file that the XML names or describes, and where it keeps its variables.

use crate::keywords;
use crate::xml::{Diagnostics, Element, Span};

use super::disk::{Format, Image, Source};

keywords! {
    /// How QEMU is given the firmware.
    pub enum LoaderType {
        /// A ROM image (`-bios`).
        Rom = "rom",
        /// A flash chip.
        Pflash = "pflash",
    }
}

keywords! {
    /// A kind of firmware, to be chosen from the descriptors of the host.
    pub enum FirmwareKind {
        /// SeaBIOS.
        Bios = "bios",
        /// UEFI.
        Efi = "efi",
    }
}

keywords! {
    /// The format of a firmware's file.
    pub enum FirmwareFormat {
        /// None.
        Raw = "raw",
        /// QEMU's.
        Qcow2 = "qcow2",
    }
}

keywords! {
    /// What a chosen firmware has or has not.
    pub enum FirmwareFeature {
        /// Keys to check signatures by, from the start.
        EnrolledKeys = "enrolled-keys",
        /// Checked signatures of what is booted.
        SecureBoot = "secure-boot",
    }
}

/// What `<os>` says about firmware.
#[derive(Debug, Clone, Default)]
pub struct Firmware {
    /// `firmware=` of `<os>`.
    pub kind: Option<(FirmwareKind, Span)>,
    /// `<firmware>`: what it has to have, or must not.
    pub features: Vec<(FirmwareFeature, bool)>,
    /// `<loader>`.
    pub loader: Option<Loader>,
    /// `<nvram>`.
    pub nvram: Option<Nvram>,
}

/// `<loader>`.
#[derive(Debug, Clone)]
pub struct Loader {
    /// Where it stands.
    pub span: Span,
    /// The firmware's path; `None` only where one is to be chosen.
    pub path: Option<String>,
    /// How QEMU is given it.
    pub kind: Option<LoaderType>,
    /// Whether the guest may not write to it.
    pub readonly: Option<bool>,
    /// Whether the firmware needs system management mode for secure boot.
    pub secure: Option<bool>,
    /// Whether the firmware keeps no variables.
    pub stateless: Option<bool>,
    /// The format of its file.
    pub format: Option<FirmwareFormat>,
}

/// `<nvram>`: the variables of this guest's firmware.
#[derive(Debug, Clone)]
pub struct Nvram {
    /// Where it stands.
    pub span: Span,
    /// The image that they are kept in, whose format is in `format`; `None`: where libvirt keeps them.
    pub image: Option<Image>,
    /// What they are copied from if they are not there.
    pub template: Option<String>,
    /// The format of their image.
    pub format: Option<FirmwareFormat>,
}

impl Firmware {
    pub(super) fn from_xml(os: &Element, diagnostics: &mut Diagnostics) -> Self {
        let kind = os.keyword("firmware", diagnostics);
        let mut this = Self {
            kind: kind.map(|k| (k, os.span)),
            loader: Loader::from_xml(os, kind.is_some(), diagnostics),
            nvram: Nvram::from_xml(os, diagnostics),
            features: Vec::new(),
        };
        if let Some(list) = os.only_child("firmware", diagnostics) {
            for feature in list.children("feature") {
                let name = feature.require_keyword("name", diagnostics);
                feature.require("enabled", diagnostics);
                this.features.extend(name.zip(feature.yes_no("enabled", diagnostics)));
            }
        }
        this.check(diagnostics);
        this
    }

    fn check(&self, diagnostics: &mut Diagnostics) {
        let stateless = self.loader.as_ref().filter(|l| l.stateless == Some(true));
        if let (Some(loader), Some(nvram)) = (stateless, &self.nvram) {
            diagnostics
                .error(nvram.span, "a stateless firmware keeps no variables: it has no <nvram>")
                .related(loader.span, "stateless by this");
        }
        let rom = match (&self.loader, self.kind) {
            (_, Some((kind, _))) => kind == FirmwareKind::Bios,
            (Some(loader), None) => loader.kind != Some(LoaderType::Pflash),
            (None, None) => true,
        };
        if let Some(nvram) = self.nvram.as_ref().filter(|_| rom) {
            diagnostics
                .error(nvram.span, "only a firmware in flash keeps variables in an <nvram>")
                .hint("UEFI: <os firmware='efi'>, or <loader readonly='yes' type='pflash'>PATH</loader>");
        }
        let has = |feature, wanted| self.features.contains(&(feature, wanted));
        if has(FirmwareFeature::EnrolledKeys, true)
            && has(FirmwareFeature::SecureBoot, false)
            && let Some((_, span)) = self.kind
        {
            diagnostics.error(span, "enrolled keys are for secure boot, which is not wanted");
        }
        let writable = self.loader.as_ref().filter(|l| !rom && l.readonly == Some(false));
        if let (Some(loader), Some(nvram)) = (writable, &self.nvram) {
            diagnostics
                .error(nvram.span, "a firmware that can be written to keeps its variables in itself")
                .related(loader.span, "writable by this");
        }
        if let Some(loader) = &self.loader {
            loader.check(rom, self.kind.is_some(), diagnostics);
        }
    }
}

impl Loader {
    fn from_xml(os: &Element, chosen: bool, diagnostics: &mut Diagnostics) -> Option<Self> {
        let element = os.only_child("loader", diagnostics)?;
        let path = element.text();
        if path.is_empty() && !chosen {
            diagnostics
                .error(element.span, "<loader> names no firmware")
                .hint("name its file, or have one chosen: <os firmware='efi'>");
        } else if !path.is_empty() && !path.starts_with('/') {
            diagnostics.error(element.text_place(), "the path of a firmware starts with '/'");
        }
        Some(Self {
            span: element.span,
            path: Some(path.to_owned()).filter(|p| !p.is_empty()),
            kind: element.keyword("type", diagnostics),
            readonly: element.yes_no("readonly", diagnostics),
            secure: element.yes_no("secure", diagnostics),
            stateless: element.yes_no("stateless", diagnostics),
            format: element.keyword("format", diagnostics),
        })
    }

    fn check(&self, rom: bool, chosen: bool, diagnostics: &mut Diagnostics) {
        if rom {
            if self.readonly == Some(false) {
                diagnostics.error(self.span, "a ROM is read-only");
            }
            if self.secure == Some(true) {
                diagnostics.error(self.span, "secure boot needs a firmware in flash: type='pflash'");
            }
            if self.stateless == Some(false) {
                diagnostics.error(self.span, "a ROM keeps no variables: it is always stateless");
            }
            if self.format.is_some_and(|f| f != FirmwareFormat::Raw) {
                diagnostics.error(self.span, "a ROM image is raw");
            }
        }
        if chosen {
            let fits = if rom { LoaderType::Rom } else { LoaderType::Pflash };
            if self.kind.is_some_and(|kind| kind != fits) {
                diagnostics.error(self.span, format!("such a firmware is of type '{}'", fits.as_str()));
            }
            if !rom && self.readonly == Some(false) {
                diagnostics.error(self.span, "a firmware that is chosen from the host's is read-only").hint(
                    "name a copy that is this guest's own: <loader readonly='no' type='pflash'>PATH</loader>",
                );
            }
        }
    }
}

impl Nvram {
    fn from_xml(os: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let element = os.only_child("nvram", diagnostics)?;
        let path = element.text();
        let image = if element.attribute("type").is_some() {
            if !path.is_empty() {
                diagnostics.error(element.text_place(), "an <nvram> with a type has its place in <source>");
            }
            let source = element.only_child("source", diagnostics);
            Image::of_nvram(element, source, diagnostics)
        } else {
            let file = Some(path).filter(|p| !p.is_empty()).map(|p| Source::File(p.to_owned()));
            file.map(|source| Image::plain(source, Format::Raw, element.span))
        };
        let format = element.keyword("format", diagnostics);
        let of_template: Option<FirmwareFormat> = element.keyword("templateFormat", diagnostics);
        if of_template.is_some_and(|f| f != format.unwrap_or(f)) {
            diagnostics.unsupported(
                element.span,
                "vmward copies the template as it is: its format is that of the variables",
            );
        }
        if let Some(template) = element.attribute("template")
            && image.as_ref().is_some_and(|image| image.encryption.is_some())
        {
            diagnostics
                .unsupported(template.name_span, "vmward copies no template into encrypted variables")
                .hint("copy it once: qemu-img convert -n, into a volume of vmward volume create");
        }
        Some(Self {
            span: element.span,
            image,
            template: element.get("template").map(str::to_owned),
            format: format.or(of_template),
        })
    }
}
