//! Choosing a firmware by what the XML asks of it.

use crate::domain::Domain;
use crate::domain::firmware::{FirmwareFormat, FirmwareKind, LoaderType};
use crate::domain::launch_security::LaunchSecurity;
use crate::domain::os::Chipset;
use crate::qemu::Host;
use crate::qemu::capabilities::FirmwareDescriptor;
use crate::xml::{Diagnostics, Keyword, Span};

/// A firmware that fits.
pub(super) struct Found {
    pub(super) path: String,
    pub(super) kind: LoaderType,
    pub(super) format: FirmwareFormat,
    pub(super) secure: bool,
    pub(super) template: Option<String>,
}

/// What the host's descriptors say of a firmware that the XML names.
pub(super) fn of_path(host: &Host, path: &str) -> Option<FirmwareDescriptor> {
    host.firmware().into_iter().find(|d| d.is_at(path))
}

/// Features asked of a firmware that the XML names: what is unknown has none.
pub(super) fn check_features(
    domain: &Domain,
    known: Option<&FirmwareDescriptor>,
    span: Span,
    diagnostics: &mut Diagnostics,
) {
    for (feature, wanted) in &domain.os.firmware.features {
        let has = known.is_some_and(|d| d.has(feature.as_str()));
        if *wanted && !has {
            diagnostics.error(
                span,
                format!("no descriptor says that this firmware has the feature '{}'", feature.as_str()),
            );
        } else if !*wanted && has {
            diagnostics.error(span, format!("this firmware has the feature '{}'", feature.as_str()));
        }
    }
}

/// The first firmware of the host that is what the guest asks for: the one that the XML names, or any.
pub(super) fn find(domain: &Domain, host: &Host) -> Option<Found> {
    host.firmware().iter().find_map(|d| fitting(domain, d))
}

fn fitting(domain: &Domain, descriptor: &FirmwareDescriptor) -> Option<Found> {
    let firmware = &domain.os.firmware;
    let loader = firmware.loader.as_ref();
    let path = loader.and_then(|l| l.path.as_deref());
    let interface = match firmware.kind {
        Some((FirmwareKind::Efi, _)) => "uefi",
        Some((FirmwareKind::Bios, _)) => "bios",
        None if loader.is_some_and(|l| l.kind == Some(LoaderType::Pflash)) => "uefi",
        None => "bios",
    };
    // Descriptors name versions of machine types, aliases stand for the latest.
    let machine = match (domain.os.machine.as_str(), domain.os.chipset) {
        ("q35", _) => "pc-q35-latest",
        ("pc", _) => "pc-i440fx-latest",
        (machine, Chipset::I440fx | Chipset::Q35) => machine,
    };
    let smm = descriptor.has("requires-smm");
    let fits = descriptor.is(interface)
        && descriptor.fits(machine)
        && path.is_none_or(|path| descriptor.is_at(path))
        && !(smm && domain.features.smm == Some(false));
    if !fits || !features_fit(domain, descriptor) {
        return None;
    }
    if let Some(path) = descriptor.rom() {
        let (kind, format) = (LoaderType::Rom, FirmwareFormat::Raw);
        return Some(Found { path: path.to_owned(), kind, format, secure: false, template: None });
    }
    let flash = descriptor.flash(loader.is_some_and(|l| l.stateless == Some(true)))?;
    let format = FirmwareFormat::from_word(&flash.format)?;
    let nvram = firmware.nvram.as_ref();
    let wanted = loader.and_then(|l| l.format).or(nvram.and_then(|n| n.format));
    // A path is one of a format; of all others, raw ones are preferred.
    if format != wanted.unwrap_or(if path.is_some() { format } else { FirmwareFormat::Raw }) {
        return None;
    }
    let template = descriptor.template().map(|t| t.filename.clone());
    if let Some(wanted) = nvram.and_then(|n| n.template.as_ref())
        && template.as_ref() != Some(wanted)
    {
        return None;
    }
    Some(Found { path: flash.filename.clone(), kind: LoaderType::Pflash, format, secure: smm, template })
}

fn features_fit(domain: &Domain, descriptor: &FirmwareDescriptor) -> bool {
    let firmware = &domain.os.firmware;
    let asked = firmware.features.iter().all(|(feature, wanted)| descriptor.has(feature.as_str()) == *wanted);
    let secure = firmware.loader.as_ref().and_then(|l| l.secure);
    let protection = domain.launch_security.as_ref().map_or(&[][..], LaunchSecurity::firmware_features);
    let power = [("acpi-s3", domain.power.suspend_to_mem), ("acpi-s4", domain.power.suspend_to_disk)];
    asked
        && protection.iter().all(|feature| descriptor.has(feature))
        && secure.is_none_or(|wanted| descriptor.has("secure-boot") == wanted)
        && power.iter().all(|(name, wanted)| *wanted != Some(true) || descriptor.has(name))
}
