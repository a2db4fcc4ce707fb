//! What a `<tpm>` asks of its emulator, swtpm.

use std::path::PathBuf;

use uuid::Uuid;

use crate::secret::{SecretLookup, SecretRef, UsageKind};
use crate::xml::{Diagnostics, Element, keywords};

use super::tpm::TpmModel;

keywords! {
    /// Which specification a TPM follows.
    pub enum TpmVersion {
        /// TPM 1.2.
        V1 = "1.2",
        /// TPM 2.0.
        V2 = "2.0",
    }
}

keywords! {
    /// What an emulated TPM keeps its state in.
    pub enum TpmStateType {
        /// A directory.
        Dir = "dir",
        /// A file or block device.
        File = "file",
    }
}

keywords! {
    /// Algorithms of registers that a TPM 2.0 measures with.
    pub enum PcrBank {
        /// SHA-1.
        Sha1 = "sha1",
        /// SHA-256.
        Sha256 = "sha256",
        /// SHA-384.
        Sha384 = "sha384",
        /// SHA-512.
        Sha512 = "sha512",
    }
}

/// Where an emulated TPM keeps its state, if the XML says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TpmState {
    /// In this directory.
    Directory(PathBuf),
    /// In this file or block device.
    File(PathBuf),
}

/// `<backend type='emulator'>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmulatedTpm {
    /// The specification.
    pub version: TpmVersion,
    /// Where the state is; `None`: where libvirt keeps it.
    pub state: Option<TpmState>,
    /// What the state is encrypted with.
    pub secret: Option<SecretRef>,
    /// Which banks are on, whatever the guest's firmware chose; none: those that are.
    pub banks: Vec<PcrBank>,
    /// The profile of a new TPM 2.0.
    pub profile: Option<String>,
    /// How much swtpm tells of its work.
    pub debug: Option<u32>,
}

impl EmulatedTpm {
    /// Reads a `<backend>`.
    pub fn from_xml(backend: &Element, model: TpmModel, diagnostics: &mut Diagnostics) -> Self {
        let version = backend.keyword("version", diagnostics).unwrap_or(match model {
            TpmModel::Tis => TpmVersion::V1,
            TpmModel::Crb => TpmVersion::V2,
        });
        if model == TpmModel::Crb && version == TpmVersion::V1 {
            diagnostics.error(backend.span, "a TPM 1.2 is reached by model='tpm-tis'");
        }
        // Whether the state outlives a guest that is not defined: here it always stays.
        backend.yes_no("persistent_state", diagnostics);
        let banks = match backend.only_child("active_pcr_banks", diagnostics) {
            Some(element) => banks(element, diagnostics),
            None => Vec::new(),
        };
        let profile = backend.only_child("profile", diagnostics).and_then(|profile| {
            if let Some(removal) = profile.attribute("remove_disabled") {
                diagnostics.unsupported(removal.span, "vmward leaves disabled algorithms in TPM profiles");
            }
            profile.get("source").or_else(|| profile.get("name")).map(str::to_owned)
        });
        if version == TpmVersion::V1 && (!banks.is_empty() || profile.is_some()) {
            diagnostics.error(backend.span, "PCR banks and profiles are of TPM 2.0 (version='2.0')");
        }
        Self {
            version,
            state: backend.only_child("source", diagnostics).and_then(|s| state(s, diagnostics)),
            secret: backend.only_child("encryption", diagnostics).and_then(|e| secret(e, diagnostics)),
            banks,
            profile,
            debug: backend.number("debug", diagnostics),
        }
    }
}

fn banks(element: &Element, diagnostics: &mut Diagnostics) -> Vec<PcrBank> {
    use crate::xml::Keyword;
    let mut banks = Vec::new();
    for child in &element.children {
        child.mark_read();
        match PcrBank::WORDS.iter().find(|(word, _)| *word == child.name) {
            Some((_, bank)) => banks.push(*bank),
            None => {
                diagnostics.error(child.span, format!("a TPM has no bank '{}'", child.name));
            }
        }
    }
    banks
}

fn state(source: &Element, diagnostics: &mut Diagnostics) -> Option<TpmState> {
    let kind = source.require_keyword("type", diagnostics)?;
    let path = source.require("path", diagnostics)?.into();
    Some(match kind {
        TpmStateType::Dir => TpmState::Directory(path),
        TpmStateType::File => TpmState::File(path),
    })
}

fn secret(encryption: &Element, diagnostics: &mut Diagnostics) -> Option<SecretRef> {
    let text = encryption.require("secret", diagnostics)?;
    let span = encryption.attribute("secret").map_or(encryption.span, |a| a.span);
    let Ok(uuid) = Uuid::try_parse(text) else {
        diagnostics.error(span, format!("'{text}' is not a UUID"));
        return None;
    };
    Some(SecretRef { lookup: SecretLookup::Uuid(uuid), kind: UsageKind::Vtpm, text: false, span })
}
