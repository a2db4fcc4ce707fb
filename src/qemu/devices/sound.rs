//! Sound cards.

use crate::domain::devices::sound::{Codec, Sound, SoundModel};
use crate::qemu::addresses::Plug;
use crate::qemu::properties::Properties;
use crate::qemu::{CommandLine, JsonObject};
use crate::xml::Diagnostics;

use super::{Context, Placed, QemuDevice, alias, audio, device, has_info, virtio};

/// PCM streams of a virtio card that names no number: one to play and one to record.
const DEFAULT_STREAMS: u32 = 2;

impl Placed for Sound {
    has_info!();

    fn plug(&self) -> Option<Plug> {
        match self.model {
            SoundModel::Es1370 | SoundModel::Ac97 | SoundModel::Ich6 | SoundModel::Ich9 => {
                Some(Plug::Conventional)
            }
            SoundModel::Virtio => Some(Plug::Express),
            SoundModel::Sb16 | SoundModel::Pcspk | SoundModel::Usb => None,
        }
    }

    fn on_usb(&self) -> bool {
        self.model == SoundModel::Usb
    }
}

impl QemuDevice for Sound {
    fn tell(&self, context: &Context, line: &mut CommandLine, diagnostics: &mut Diagnostics) {
        let name = alias(&self.info);
        let audiodev = audio::name_for(self.audio, self.info.span, context, diagnostics);
        if audiodev.is_none() && self.audio.is_none() {
            diagnostics
                .error(
                    self.info.span,
                    "the guest's graphics play no sound, and it has no <audio> to play this card",
                )
                .hint("add <audio id='1' type='pipewire'/>, or another type");
        }
        let driver = match self.model {
            // A part of every PC; it only needs an audio backend, which is an option of the machine.
            SoundModel::Pcspk => return,
            SoundModel::Sb16 => "sb16",
            SoundModel::Es1370 => "ES1370",
            SoundModel::Ac97 => "AC97",
            SoundModel::Ich6 => "intel-hda",
            SoundModel::Ich9 => "ich9-intel-hda",
            SoundModel::Usb => "usb-audio",
            SoundModel::Virtio => "virtio-sound-pci",
        };
        if !context.capabilities.has_device(driver) {
            diagnostics.error(self.info.span, format!("this QEMU has no '{driver}'"));
        }
        let mut sound = JsonObject::new();
        sound.put("driver", driver);
        virtio::put(&self.virtio, &mut sound);
        sound.put("id", name);
        if !self.model.has_codecs() {
            sound.put_some("audiodev", audiodev.as_deref());
        }
        sound.put_some("multi", self.multichannel);
        if self.model == SoundModel::Virtio {
            sound.put("streams", self.streams.unwrap_or(DEFAULT_STREAMS));
        }
        device(line, sound, &self.info);
        if !self.model.has_codecs() {
            return;
        }
        let duplex = [Codec::Duplex];
        let codecs = if self.codecs.is_empty() { &duplex[..] } else { &self.codecs };
        for (number, codec) in codecs.iter().enumerate() {
            let mut told = JsonObject::new();
            told.put("driver", format!("hda-{}", codec.as_str()));
            told.put("id", format!("{name}-codec{number}"));
            told.put("bus", format!("{name}.0"));
            told.put("cad", number);
            told.put_some("audiodev", audiodev.as_deref());
            line.json("-device", told);
        }
    }
}
