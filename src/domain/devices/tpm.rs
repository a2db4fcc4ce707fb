//! `<tpm>`.

use std::path::PathBuf;

use crate::domain::DeviceInfo;
use crate::secret::SecretRef;
use crate::xml::{Diagnostics, Element, keywords};

use super::emulated_tpm::EmulatedTpm;

keywords! {
    /// How the guest reaches its TPM.
    pub enum TpmModel {
        /// TPM interface specification.
        Tis = "tpm-tis",
        /// Command response buffer.
        Crb = "tpm-crb",
    }
}

keywords! {
    /// What is behind it.
    pub enum TpmType {
        /// The host's TPM.
        Passthrough = "passthrough",
        /// swtpm.
        Emulator = "emulator",
        /// An emulator that somebody else started.
        External = "external",
    }
}

/// What is behind a TPM, in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TpmBackend {
    /// The host's TPM.
    Passthrough(PathBuf),
    /// swtpm.
    Emulator(EmulatedTpm),
    /// The socket of an emulator that somebody else started.
    External(PathBuf),
}

/// A `<tpm>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tpm {
    /// Where it is and what it is called.
    pub info: DeviceInfo,
    /// How the guest reaches it.
    pub model: TpmModel,
    /// What is behind it.
    pub backend: TpmBackend,
}

impl Tpm {
    /// Reads a `<tpm>`.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let info = DeviceInfo::from_xml(element, diagnostics);
        let model = match element.attribute("model") {
            Some(_) => element.keyword("model", diagnostics)?,
            None => TpmModel::Tis,
        };
        let Some(backend) = element.only_child("backend", diagnostics) else {
            diagnostics.error(element.span, "<tpm> lacks its <backend>");
            return None;
        };
        if let Some(version) = backend.attribute("version").filter(|v| v.value == "1.2")
            && model == TpmModel::Crb
        {
            diagnostics
                .error(version.span, "a TPM 1.2 has no command response buffer")
                .hint("use model='tpm-tis'");
        }
        let backend = match backend.require_keyword("type", diagnostics)? {
            TpmType::Passthrough => {
                let path = backend.only_child("device", diagnostics).and_then(|d| d.get("path"));
                TpmBackend::Passthrough(path.unwrap_or("/dev/tpm0").into())
            }
            TpmType::Emulator => TpmBackend::Emulator(EmulatedTpm::from_xml(backend, model, diagnostics)),
            TpmType::External => {
                let Some(source) = backend.only_child("source", diagnostics) else {
                    diagnostics.error(backend.span, "an external TPM needs the <source> of its socket");
                    return None;
                };
                if source.get("type") != Some("unix") || source.get("mode") == Some("bind") {
                    diagnostics.error(source.span, "QEMU connects to an external TPM through a unix socket");
                }
                TpmBackend::External(source.require("path", diagnostics)?.into())
            }
        };
        Some(Self { info, model, backend })
    }
    /// The secret that it uses.
    pub fn secret(&self) -> Option<&SecretRef> {
        match &self.backend {
            TpmBackend::Emulator(emulator) => emulator.secret.as_ref(),
            TpmBackend::Passthrough(_) | TpmBackend::External(_) => None,
        }
    }
}
