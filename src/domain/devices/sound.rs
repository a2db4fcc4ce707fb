//! `<sound>`.

use crate::domain::DeviceInfo;
use crate::xml::{Diagnostics, Element, keywords};

use super::virtio::VirtioOptions;

keywords! {
    /// Sound cards.
    pub enum SoundModel {
        /// Sound Blaster 16, on ISA.
        Sb16 = "sb16",
        /// Ensoniq ES1370.
        Es1370 = "es1370",
        /// The PC's speaker.
        Pcspk = "pcspk",
        /// AC97.
        Ac97 = "ac97",
        /// Intel HD Audio.
        Ich6 = "ich6",
        /// Intel HD Audio of the ICH9 chipset.
        Ich9 = "ich9",
        /// USB audio.
        Usb = "usb",
        /// virtio-sound.
        Virtio = "virtio",
    }
}

impl SoundModel {
    /// Whether it takes codecs.
    pub fn has_codecs(self) -> bool {
        matches!(self, Self::Ich6 | Self::Ich9)
    }
}

keywords! {
    /// What an HD Audio codec does.
    pub enum Codec {
        /// In and out by line.
        Duplex = "duplex",
        /// In by microphone, out by line.
        Micro = "micro",
        /// Out alone.
        Output = "output",
    }
}

/// A `<sound>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sound {
    /// Where it is and what it is called.
    pub info: DeviceInfo,
    /// The card.
    pub model: SoundModel,
    /// Its codecs; none: one duplex codec.
    pub codecs: Vec<Codec>,
    /// USB: more than two channels.
    pub multichannel: Option<bool>,
    /// virtio: the number of PCM streams.
    pub streams: Option<u32>,
    /// What all virtio devices take.
    pub virtio: VirtioOptions,
    /// The audio backend that plays it.
    pub audio: Option<u32>,
}

impl Sound {
    /// Reads a `<sound>`.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let info = DeviceInfo::from_xml(element, diagnostics);
        let model: SoundModel = element.require_keyword("model", diagnostics)?;
        let codecs: Vec<_> = if model.has_codecs() {
            element.children("codec").filter_map(|c| c.require_keyword("type", diagnostics)).collect()
        } else {
            Vec::new()
        };
        let multichannel =
            (model == SoundModel::Usb).then(|| element.yes_no("multichannel", diagnostics)).flatten();
        let is_virtio = model == SoundModel::Virtio;
        let streams = is_virtio.then(|| element.number("streams", diagnostics)).flatten();
        let virtio =
            if is_virtio { VirtioOptions::of_device(element, diagnostics) } else { VirtioOptions::default() };
        let audio = element.only_child("audio", diagnostics).and_then(|a| a.number("id", diagnostics));
        Some(Self { info, model, codecs, multichannel, streams, virtio, audio })
    }
}
