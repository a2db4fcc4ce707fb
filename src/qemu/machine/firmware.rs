//! The guest's firmware: a ROM, or flash chips with the nodes behind them.

use serde_json::json;

use crate::domain::Domain;
use crate::domain::disk::{Engine, Format, Image, Protocol, Source};
use crate::domain::firmware::{FirmwareFormat, LoaderType};
use crate::qemu::plan::object;
use crate::qemu::storage::LocalImage;
use crate::qemu::{CommandLine, Host, JsonObject, Preparation, Tls, storage};
use crate::xml::{Diagnostics, Span};

use super::descriptors::{self, Found};

/// Where libvirt keeps the variables of guests that say nothing: a guest that moves here keeps its own.
const NVRAM_DIR: &str = "/var/lib/libvirt/qemu/nvram";

/// What the names of the nodes and objects of a firmware's variables begin with.
pub const FIRMWARE_VARIABLES: &str = "libvirt-pflash1";

/// The node with the firmware's own image.
const STORAGE: &str = "libvirt-pflash0-storage";

/// A firmware that has been decided on.
pub(super) struct Chosen {
    path: String,
    kind: LoaderType,
    format: FirmwareFormat,
    readonly: bool,
    /// Needs system management mode, which alone may write to its flash.
    secure: bool,
    variables: Option<Variables>,
    span: Span,
}

/// Where a firmware keeps its variables.
struct Variables {
    image: Image,
    template: Option<String>,
    span: Span,
}

/// The firmware of a guest; `None`: QEMU's own.
pub(super) fn choose(domain: &Domain, host: &Host, diagnostics: &mut Diagnostics) -> Option<Chosen> {
    let firmware = &domain.os.firmware;
    let found = descriptors::find(domain, host);
    if let Some((kind, span)) = firmware.kind {
        if found.is_none() {
            diagnostics
                .error(span, format!("the host has no {} firmware as this guest asks for", kind.as_str()))
                .hint(
                    "install one (Debian: ovmf or seabios), or name its file in <loader> without firmware=",
                );
        }
        return found.map(|found| of_descriptor(domain, found));
    }
    let loader = firmware.loader.as_ref()?;
    let path = loader.path.clone()?;
    let kind = loader.kind.unwrap_or(LoaderType::Rom);
    let known = descriptors::of_path(host, &path);
    descriptors::check_features(domain, known.as_ref(), loader.span, diagnostics);
    let format = loader.format.or(found.as_ref().map(|f| f.format)).unwrap_or(FirmwareFormat::Raw);
    let secure = found.as_ref().map_or(loader.secure == Some(true), |f| f.secure);
    if secure && found.is_none() && domain.features.smm != Some(true) {
        diagnostics
            .error(
                loader.span,
                "no descriptor knows this firmware, so it is to be said what secure boot needs",
            )
            .hint("system management mode: <features><smm state='on'/></features>");
    }
    // What is shared between guests is not theirs to write to. A file of the guest's own is.
    let readonly = loader.readonly.unwrap_or(known.is_some() || firmware.nvram.is_some());
    let stateful = kind == LoaderType::Pflash && readonly && loader.stateless != Some(true);
    let template =
        found.and_then(|f| f.template).or(known.and_then(|d| d.template().map(|t| t.filename.clone())));
    let variables = stateful.then(|| variables(domain, format, template));
    Some(Chosen { path, kind, format, readonly, secure, variables, span: loader.span })
}

fn of_descriptor(domain: &Domain, found: Found) -> Chosen {
    let stateless = domain.os.firmware.loader.as_ref().is_some_and(|l| l.stateless == Some(true));
    let (path, kind) = (found.path, found.kind);
    let variables =
        (kind == LoaderType::Pflash && !stateless).then(|| variables(domain, found.format, found.template));
    let (format, secure, span) = (found.format, found.secure, domain.os.span);
    Chosen { path, kind, format, readonly: true, secure, variables, span }
}

fn variables(domain: &Domain, format: FirmwareFormat, template: Option<String>) -> Variables {
    let nvram = domain.os.firmware.nvram.as_ref();
    let format = nvram.and_then(|n| n.format).unwrap_or(format);
    let span = nvram.map_or(domain.os.span, |n| n.span);
    let default = || {
        let path = format!("{NVRAM_DIR}/{}_VARS.{}", domain.name(), extension(format));
        Image::plain(Source::File(path), Format::Raw, span)
    };
    let mut image = nvram.and_then(|n| n.image.clone()).unwrap_or_else(default);
    image.format = match format {
        FirmwareFormat::Raw => Format::Raw,
        FirmwareFormat::Qcow2 => Format::Qcow2,
    };
    // A copy of the template would be plain.
    let template = template.filter(|_| image.encryption.is_none());
    Variables { image, template: nvram.and_then(|n| n.template.clone()).or(template), span }
}

fn extension(format: FirmwareFormat) -> &'static str {
    match format {
        FirmwareFormat::Raw => "fd",
        FirmwareFormat::Qcow2 => "qcow2",
    }
}

impl Chosen {
    /// Whether it only works in a machine with system management mode.
    pub(super) fn needs_smm(&self) -> bool {
        self.secure
    }

    /// The image that it is in.
    fn image(&self) -> LocalImage {
        let is_qcow2 = self.format == FirmwareFormat::Qcow2;
        LocalImage {
            path: self.path.clone(),
            node: STORAGE.to_owned(),
            read_only: self.readonly,
            direct: false,
            backing_in_header: is_qcow2,
            data_in_header: is_qcow2,
            luks: None,
            span: self.span,
        }
    }

    /// The flash chips of the machine with their nodes.
    pub(super) fn machine_properties(&self) -> Vec<(&'static str, String)> {
        if self.kind == LoaderType::Rom {
            return Vec::new();
        }
        let variables = self.variables.as_ref().map(|v| ("pflash1", v.node().to_owned()));
        [("pflash0", "libvirt-pflash0-format".to_owned())].into_iter().chain(variables).collect()
    }
}

impl Variables {
    /// The node that stands for them: raw images have none but that of their storage.
    fn node(&self) -> &'static str {
        let decrypted = self.image.encryption.as_ref().is_some_and(|e| e.engine == Engine::Qemu);
        match self.image.format {
            Format::Raw if !decrypted => "libvirt-pflash1-storage",
            _ => "libvirt-pflash1-format",
        }
    }
}

/// `-bios`.
pub(super) fn rom(firmware: Option<&Chosen>, line: &mut CommandLine) {
    if let Some(firmware) = firmware.filter(|f| f.kind == LoaderType::Rom) {
        line.text("-bios", firmware.path.clone());
    }
}

/// The nodes behind the flash chips.
pub(super) fn nodes(
    firmware: Option<&Chosen>,
    tls: &Tls,
    line: &mut CommandLine,
    diagnostics: &mut Diagnostics,
) {
    let Some(firmware) = firmware.filter(|f| f.kind == LoaderType::Pflash) else { return };
    line.images.push(firmware.image());
    line.json(
        "-blockdev",
        object(json!({
            "driver": "file",
            "filename": firmware.path,
            "node-name": STORAGE,
            "auto-read-only": true,
            "discard": "unmap",
        })),
    );
    line.json("-blockdev", format_node("pflash0", firmware.format, firmware.readonly));
    if let Some(variables) = &firmware.variables {
        variables.add(tls, line, diagnostics);
    }
    if firmware.secure {
        line.text("-global", "driver=cfi.pflash01,property=secure,value=on");
    }
}

fn format_node(chip: &str, format: FirmwareFormat, readonly: bool) -> JsonObject {
    object(json!({
        "node-name": format!("libvirt-{chip}-format"),
        "read-only": readonly,
        "driver": format.as_str(),
        "file": format!("libvirt-{chip}-storage"),
    }))
}

impl Variables {
    fn add(&self, tls: &Tls, line: &mut CommandLine, diagnostics: &mut Diagnostics) {
        match (&self.image.source, &self.template) {
            (Source::File(path), Some(template)) => line.preparations.push(Preparation::Copy {
                from: template.into(),
                to: path.into(),
                span: self.span,
            }),
            (Source::Network(network), _)
                if network.auth.is_some() && matches!(network.protocol, Protocol::Ssh { .. }) =>
            {
                diagnostics.error(self.span, "a firmware's variables are not behind a password for SSH");
                return;
            }
            (Source::File(_) | Source::Block { .. } | Source::Network(_), _) => {}
            _ => {
                diagnostics.unsupported(
                    self.span,
                    "vmward keeps a firmware's variables in a file, on a block device or on a server",
                );
                return;
            }
        }
        let plan = storage::plan_image(&self.image, FIRMWARE_VARIABLES, tls);
        plan.objects.into_iter().for_each(|o| line.object(o));
        plan.nodes.into_iter().for_each(|n| line.json("-blockdev", n));
        line.images.extend(plan.images);
    }
}
