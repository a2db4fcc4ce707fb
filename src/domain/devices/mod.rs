//! `<devices>`.

pub mod audio;
pub mod character;
pub mod chardev;
pub(super) mod check;
pub mod controller;
pub mod crypto;
pub mod emulated_tpm;
pub mod filesystem;
pub mod graphics;
pub mod hostdev;
pub mod hub;
pub mod input;
pub mod interface;
pub mod iommu;
pub mod memballoon;
pub mod memory_device;
pub mod panic;
pub mod password;
pub mod pstore;
pub mod redirdev;
pub mod rng;
pub mod rom;
pub mod shmem;
pub mod smartcard;
pub mod sound;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod tpm;
pub mod video;
pub mod virtio;
pub mod virtiofsd;
pub mod vsock;
pub mod watchdog;

use crate::xml::{Diagnostics, Element, Span};

use super::DeviceInfo;
use super::disk::{self, Disk};

/// All of a guest's devices, each kind in the order of the XML.
#[derive(Debug, Clone, Default)]
pub struct Devices {
    /// The QEMU program, if the XML names one.
    pub emulator: Option<String>,
    /// `<disk>`.
    pub disks: Vec<Disk>,
    /// `<controller>`.
    pub controllers: Vec<controller::Controller>,
    /// `<interface>`.
    pub interfaces: Vec<interface::Interface>,
    /// `<serial>`.
    pub serials: Vec<character::Serial>,
    /// `<parallel>`.
    pub parallels: Vec<character::Parallel>,
    /// `<console>`.
    pub consoles: Vec<character::Console>,
    /// `<channel>`.
    pub channels: Vec<character::Channel>,
    /// `<input>`.
    pub inputs: Vec<input::Input>,
    /// `<graphics>`.
    pub graphics: Vec<graphics::Graphics>,
    /// `<video>`.
    pub videos: Vec<video::Video>,
    /// `<sound>`.
    pub sounds: Vec<sound::Sound>,
    /// `<audio>`.
    pub audios: Vec<audio::Audio>,
    /// `<hub>`.
    pub hubs: Vec<hub::Hub>,
    /// `<watchdog>`.
    pub watchdogs: Vec<watchdog::Watchdog>,
    /// `<memballoon>`; a guest has one unless it says that it has none.
    pub memballoon: Option<memballoon::Memballoon>,
    /// `<rng>`.
    pub rngs: Vec<rng::Rng>,
    /// `<panic>`.
    pub panics: Vec<panic::Panic>,
    /// `<pstore>`.
    pub pstore: Option<pstore::Pstore>,
    /// `<filesystem>`.
    pub filesystems: Vec<filesystem::Filesystem>,
    /// `<hostdev>`.
    pub hostdevs: Vec<hostdev::Hostdev>,
    /// `<smartcard>`.
    pub smartcards: Vec<smartcard::Smartcard>,
    /// `<shmem>`.
    pub shmems: Vec<shmem::Shmem>,
    /// `<tpm>`.
    pub tpms: Vec<tpm::Tpm>,
    /// `<redirdev>`.
    pub redirdevs: Vec<redirdev::Redirdev>,
    /// `<redirfilter>`: which devices may be redirected; the first rule that fits decides.
    pub redirect_rules: Vec<redirdev::RedirectRule>,
    /// `<iommu>`.
    pub iommu: Option<iommu::Iommu>,
    /// `<vsock>`.
    pub vsock: Option<vsock::Vsock>,
    /// `<crypto>`.
    pub cryptos: Vec<crypto::Crypto>,
    /// Where a `<lease>` of a lock manager stands.
    pub leases: Vec<Span>,
    /// `<memory>`.
    pub memories: Vec<memory_device::MemoryDevice>,
}

impl Devices {
    /// Everything that a guest can boot from.
    pub fn bootable(&self) -> impl Iterator<Item = &DeviceInfo> {
        let disks = self.disks.iter().map(|d| &d.info);
        disks
            .chain(self.interfaces.iter().map(|d| &d.info))
            .chain(self.hostdevs.iter().map(|d| &d.info))
            .chain(self.redirdevs.iter().map(|d| &d.info))
            .chain(self.filesystems.iter().map(|d| &d.info))
    }

    /// The host's side of everything that is a stream of characters.
    pub fn chardevs(&self) -> impl Iterator<Item = &chardev::Chardev> {
        let cards = self.smartcards.iter().filter_map(|card| match &card.source {
            smartcard::SmartcardSource::Passthrough(chardev) => Some(chardev),
            _ => None,
        });
        let entropy = self.rngs.iter().filter_map(|rng| match &rng.backend {
            rng::RngBackend::Egd(chardev) => Some(chardev),
            _ => None,
        });
        let channels = self.channels.iter().map(|c| &c.chardev);
        channels
            .chain(self.redirdevs.iter().map(|r| &r.chardev))
            .chain(self.serials.iter().map(|s| &s.chardev))
            .chain(self.parallels.iter().map(|p| &p.chardev))
            .chain(self.consoles.iter().map(|c| &c.chardev))
            .chain(cards)
            .chain(entropy)
    }

    /// Those of them that are devices of the guest's of that name, with its side.
    pub fn ports(&self) -> impl Iterator<Item = (&DeviceInfo, &chardev::Chardev)> {
        let serials = self.serials.iter().map(|s| (&s.info, &s.chardev));
        serials
            .chain(self.parallels.iter().map(|p| (&p.info, &p.chardev)))
            .chain(self.consoles.iter().map(|c| (&c.info, &c.chardev)))
            .chain(self.channels.iter().map(|c| (&c.info, &c.chardev)))
    }

    /// Reads `<devices>`.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Self {
        /// Every element of a name, each through its own reader.
        macro_rules! each {
            ($name:literal, $device:ty) => {
                element.children($name).filter_map(|e| <$device>::from_xml(e, diagnostics)).collect()
            };
        }
        Self {
            emulator: element.child_text("emulator").map(str::to_owned),
            disks: disk::all_from_xml(element, diagnostics),
            controllers: each!("controller", controller::Controller),
            interfaces: each!("interface", interface::Interface),
            serials: each!("serial", character::Serial),
            parallels: each!("parallel", character::Parallel),
            consoles: each!("console", character::Console),
            channels: each!("channel", character::Channel),
            inputs: each!("input", input::Input),
            graphics: each!("graphics", graphics::Graphics),
            videos: each!("video", video::Video),
            sounds: each!("sound", sound::Sound),
            audios: each!("audio", audio::Audio),
            hubs: each!("hub", hub::Hub),
            watchdogs: each!("watchdog", watchdog::Watchdog),
            memballoon: element
                .only_child("memballoon", diagnostics)
                .and_then(|e| memballoon::Memballoon::from_xml(e, diagnostics)),
            rngs: each!("rng", rng::Rng),
            panics: each!("panic", panic::Panic),
            pstore: element
                .only_child("pstore", diagnostics)
                .and_then(|e| pstore::Pstore::from_xml(e, diagnostics)),
            filesystems: each!("filesystem", filesystem::Filesystem),
            hostdevs: each!("hostdev", hostdev::Hostdev),
            smartcards: each!("smartcard", smartcard::Smartcard),
            shmems: each!("shmem", shmem::Shmem),
            tpms: each!("tpm", tpm::Tpm),
            redirdevs: each!("redirdev", redirdev::Redirdev),
            redirect_rules: element
                .only_child("redirfilter", diagnostics)
                .map(|e| redirdev::RedirectRule::all_from_xml(e, diagnostics))
                .unwrap_or_default(),
            iommu: element
                .only_child("iommu", diagnostics)
                .and_then(|e| iommu::Iommu::from_xml(e, diagnostics)),
            vsock: element
                .only_child("vsock", diagnostics)
                .and_then(|e| vsock::Vsock::from_xml(e, diagnostics)),
            cryptos: each!("crypto", crypto::Crypto),
            leases: element
                .children("lease")
                .map(|lease| {
                    // All of it is for a lock manager: a start with it is refused.
                    lease.mark_read();
                    lease.span
                })
                .collect(),
            memories: each!("memory", memory_device::MemoryDevice),
        }
    }
}
