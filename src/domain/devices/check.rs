//! The rules between devices and the rest of their guest.

use crate::domain::Domain;
use crate::domain::backing::MemorySource;
use crate::domain::os::Chipset;
use crate::xml::{Diagnostics, Span};

use super::audio::AudioType;
use super::chardev::{Backend, Chardev};
use super::filesystem::FilesystemDriver;
use super::graphics::GraphicsKind;
use super::interface::Source;
use super::video::VideoBackend;
use super::watchdog::WatchdogModel;

/// Says what of a guest's devices contradicts each other, or the guest.
pub(in crate::domain) fn in_domain(domain: &Domain, diagnostics: &mut Diagnostics) {
    shared_memory(domain, diagnostics);
    spice(domain, diagnostics);
    displays(domain, diagnostics);
    blobs(domain, diagnostics);
    iothreads(domain, diagnostics);
    watchdogs(domain, diagnostics);
    let devices = &domain.devices;
    at_most_one(devices.tpms.iter().map(|t| t.info.span), "a guest has one TPM", diagnostics);
    at_most_one(
        devices.smartcards.iter().map(|s| s.info.span),
        "QEMU has one smart card for a guest",
        diagnostics,
    );
    for (index, panic) in devices.panics.iter().enumerate() {
        let same = devices.panics[..index].iter().find(|p| p.model == panic.model);
        twice(
            panic.info.span,
            same.map(|p| p.info.span),
            &format!("two panic notifiers are of model '{}'", panic.model.as_str()),
            diagnostics,
        );
    }
    for (index, audio) in devices.audios.iter().enumerate() {
        let same = devices.audios[..index].iter().find(|a| a.id == audio.id);
        twice(
            audio.span,
            same.map(|a| a.span),
            &format!("two <audio> have the id {}", audio.id),
            diagnostics,
        );
    }
}

fn at_most_one(mut spans: impl Iterator<Item = Span>, message: &str, diagnostics: &mut Diagnostics) {
    let first = spans.next();
    if let Some(second) = spans.next() {
        twice(second, first, message, diagnostics);
    }
}

fn twice(at: Span, first: Option<Span>, message: &str, diagnostics: &mut Diagnostics) {
    if let Some(first) = first {
        diagnostics.error(at, message).related(first, "the first one");
    }
}

/// Processes outside QEMU that move the guest's data have to see it.
fn shared_memory(domain: &Domain, diagnostics: &mut Diagnostics) {
    const WHY: &str = "whoever serves this device has to see the guest's memory, which is not shared";
    const HINT: &str = "write <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>";
    if domain.shares_memory() {
        return;
    }
    let devices = &domain.devices;
    for filesystem in devices.filesystems.iter().filter(|f| f.driver == FilesystemDriver::Virtiofs) {
        diagnostics.error(filesystem.info.span, WHY).hint(HINT);
    }
    // libvirt 10 shows a command line for these, though no such guest works.
    let interfaces = devices.interfaces.iter().filter(|i| matches!(i.source, Source::VhostUser { .. }));
    let videos = devices.videos.iter().filter(|v| v.backend == VideoBackend::VhostUser);
    for info in interfaces.map(|i| &i.info).chain(videos.map(|v| &v.info)) {
        diagnostics.outside_qemu(info.span, WHY).hint(HINT);
    }
}

/// SPICE's own channels lead to SPICE's clients.
fn spice(domain: &Domain, diagnostics: &mut Diagnostics) {
    let devices = &domain.devices;
    if devices.graphics.iter().any(|g| matches!(g.kind, GraphicsKind::Spice(_))) {
        return;
    }
    for audio in devices.audios.iter().filter(|a| a.kind == AudioType::Spice) {
        diagnostics.error(audio.span, "this sounds at clients of SPICE, and the guest has no SPICE");
    }
    let to_spice = |c: &&Chardev| matches!(c.backend, Backend::SpiceVmc | Backend::SpicePort(_));
    for chardev in devices.chardevs().filter(to_spice) {
        diagnostics
            .error(chardev.span, "this leads to clients of SPICE, and the guest has no SPICE")
            .hint("add <graphics type='spice' autoport='yes'/>, or leave this out");
    }
}

/// A screen that a host device draws is seen through graphics.
fn displays(domain: &Domain, diagnostics: &mut Diagnostics) {
    if !domain.devices.graphics.is_empty() {
        return;
    }
    for hostdev in domain.devices.hostdevs.iter().filter(|h| h.display == Some(true)) {
        diagnostics.error(hostdev.info.span, "display='on' needs <graphics> that show it");
    }
}

/// Resources that the host's graphics card maps have to be in memory that it can map.
fn blobs(domain: &Domain, diagnostics: &mut Diagnostics) {
    if domain.backing.source == Some(MemorySource::Memfd) {
        return;
    }
    for video in domain.devices.videos.iter().filter(|v| v.blob == Some(true)) {
        diagnostics
            .error(video.info.span, "blob='on' needs guest memory that is a memfd")
            .hint("write <memoryBacking><source type='memfd'/></memoryBacking>");
    }
}

fn iothreads(domain: &Domain, diagnostics: &mut Diagnostics) {
    for controller in &domain.devices.controllers {
        let Some(id) = controller.scsi().and_then(|scsi| scsi.iothread) else { continue };
        if !domain.iothreads.contains(id) {
            diagnostics
                .error(controller.info.span, format!("the guest has no I/O thread {id}"))
                .hint("<iothreads>N</iothreads> makes the threads 1 to N");
        }
    }
}

/// Which watchdogs a machine has; QEMU has one action for all of them.
fn watchdogs(domain: &Domain, diagnostics: &mut Diagnostics) {
    let watchdogs = &domain.devices.watchdogs;
    for watchdog in watchdogs {
        let model = watchdog.model.as_str();
        let there = match watchdog.model {
            WatchdogModel::I6300esb => true,
            WatchdogModel::Ib700 => domain.os.chipset == Chipset::I440fx,
            WatchdogModel::Itco => domain.os.chipset == Chipset::Q35,
        };
        if !there {
            diagnostics
                .error(
                    watchdog.info.span,
                    format!("the machine '{}' has no watchdog of model '{model}'", domain.os.machine),
                )
                .hint("every machine can have model='i6300esb'");
        }
    }
    if let Some((first, rest)) = watchdogs.split_first() {
        for other in rest.iter().filter(|w| w.action != first.action) {
            diagnostics
                .error(other.info.span, "QEMU has one action for all watchdogs of a guest")
                .related(first.info.span, "another action");
        }
    }
}
