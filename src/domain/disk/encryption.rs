//! `<encryption>` of a disk or of one of its images.

use crate::secret::{SecretLookup, SecretRef, UsageKind};
use crate::xml::{Diagnostics, Element, Span, keywords};

keywords! {
    /// How an image is encrypted.
    pub enum EncryptionFormat {
        /// LUKS version 1.
        Luks = "luks",
        /// LUKS version 2 (librbd only).
        Luks2 = "luks2",
        /// LUKS of the version that the image has (librbd only).
        LuksAny = "luks-any",
    }
}

keywords! {
    /// Who decrypts.
    #[derive(Default)]
    pub enum Engine {
        /// QEMU's block layer.
        #[default]
        Qemu = "qemu",
        /// Ceph's client library.
        Librbd = "librbd",
    }
}

/// An image's encryption. It has a secret: there is no value of this type without one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encryption {
    /// Where it stands.
    pub span: Span,
    /// How the image is encrypted.
    pub format: EncryptionFormat,
    /// Who decrypts.
    pub engine: Engine,
    /// The passphrases: one, or with librbd one for each layer from the top image down.
    pub secrets: Vec<SecretRef>,
}

/// The encryption was asked for but is not usable; why is among the diagnostics. A disk whose encryption
/// cannot be read must not become a plain disk, so this is an error and not an absence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused;

impl Encryption {
    /// Reads an image's encryption from where it may stand: in its `<source>`, or (the top image only) in the
    /// `<disk>` itself.
    pub(super) fn from_places(
        disk: Option<&Element>,
        source: Option<&Element>,
        diagnostics: &mut Diagnostics,
    ) -> Result<Option<Self>, Refused> {
        let outer = disk.and_then(|d| d.only_child("encryption", diagnostics));
        let inner = source.and_then(|s| s.only_child("encryption", diagnostics));
        match (outer, inner) {
            (None, None) => Ok(None),
            (Some(e), None) | (None, Some(e)) => Self::from_xml(e, diagnostics).map(Some),
            (Some(outer), Some(inner)) => {
                outer.mark_read();
                inner.mark_read();
                diagnostics
                    .error(inner.span, "the encryption is given twice, in the <disk> and in its <source>")
                    .related(outer.span, "the first one")
                    .hint("keep the one in <source>");
                Err(Refused)
            }
        }
    }

    fn from_xml(e: &Element, diagnostics: &mut Diagnostics) -> Result<Self, Refused> {
        let engine = match e.attribute("engine") {
            None => Some(Engine::Qemu),
            Some(_) => e.keyword("engine", diagnostics),
        };
        let format = Self::format(e, diagnostics);
        let text = engine == Some(Engine::Qemu);
        let secrets: Vec<_> = e.children("secret").filter_map(|s| secret(s, text, diagnostics)).collect();
        for cipher in e.children("cipher").chain(e.children("ivgen")) {
            cipher.mark_read();
            diagnostics
                .error(cipher.span, format!("<{}> belongs in a volume, not in a disk", cipher.name))
                .hint("the image's own header says which cipher it has");
        }
        if e.child("secret").is_none() {
            diagnostics.error(e.span, "<encryption> has no <secret>").hint(
                "without a passphrase the image cannot be opened: add <secret type='passphrase' uuid='...'/>",
            );
        }
        let (Some(engine), Some(format)) = (engine, format) else { return Err(Refused) };
        if engine == Engine::Qemu && format != EncryptionFormat::Luks {
            diagnostics
                .error(e.span, format!("QEMU's own encryption does not do '{}'", format.as_str()))
                .hint("QEMU does format='luks'; other versions need engine='librbd' and an RBD image");
            return Err(Refused);
        }
        if engine == Engine::Qemu && secrets.len() > 1 {
            diagnostics
                .error(e.span, "an image that QEMU decrypts has one secret")
                .hint("several secrets are for layered RBD images with engine='librbd'");
            return Err(Refused);
        }
        if secrets.is_empty() {
            return Err(Refused);
        }
        Ok(Self { span: e.span, format, engine, secrets })
    }

    fn format(e: &Element, diagnostics: &mut Diagnostics) -> Option<EncryptionFormat> {
        if let Some(word) = e.attribute("format").filter(|a| a.value == "qcow") {
            diagnostics
                .error(word.span, "QEMU's system emulators refuse the old 'qcow' encryption (AES)")
                .hint(
                    "convert the image to LUKS: qemu-img convert can still read it, \
                     and writes -O qcow2 -o encrypt.format=luks,encrypt.key-secret=...",
                );
            return None;
        }
        e.require_keyword("format", diagnostics)
    }
}

fn secret(e: &Element, text: bool, diagnostics: &mut Diagnostics) -> Option<SecretRef> {
    let kind = e.require("type", diagnostics);
    if kind.is_some_and(|k| k != "passphrase") {
        diagnostics.error(e.span, "an encryption's secret is of type 'passphrase'");
    }
    let lookup = SecretLookup::from_xml(e, diagnostics);
    kind.filter(|k| *k == "passphrase")?;
    Some(SecretRef { lookup: lookup?, kind: UsageKind::Volume, text, span: e.span })
}
