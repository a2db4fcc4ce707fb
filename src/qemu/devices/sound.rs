//! Sound cards.

use crate::domain::devices::sound::{Codec, Sound, SoundModel};
use crate::qemu::addresses::Plug;
use crate::qemu::properties::Properties;
use crate::qemu::{CommandLine, JsonObject};
use crate::xml::Diagnostics;

use super::{Context, Placed, QemuDevice, alias, audio, device, has_info};

impl Placed for Sound {
    has_info!();

    fn plug(&self) -> Option<Plug> {
        let pci =
            matches!(self.model, SoundModel::Es1370 | SoundModel::Ac97 | SoundModel::Ich6 | SoundModel::Ich9);
        pci.then_some(Plug::Conventional)
    }

    fn on_usb(&self) -> bool {
        self.model == SoundModel::Usb
    }
}

impl QemuDevice for Sound {
    fn tell(&self, context: &Context, line: &mut CommandLine, diagnostics: &mut Diagnostics) {
        let name = alias(&self.info);
        let audiodev = audio::name_for(self.audio, self.info.span, context, diagnostics);
        let driver = match self.model {
            // A part of every PC; it only needs an audio backend, which is an option of the machine.
            SoundModel::Pcspk => return,
            SoundModel::Sb16 => "sb16",
            SoundModel::Es1370 => "ES1370",
            SoundModel::Ac97 => "AC97",
            SoundModel::Ich6 => "intel-hda",
            SoundModel::Ich9 => "ich9-intel-hda",
            SoundModel::Usb => "usb-audio",
        };
        let mut sound = JsonObject::new();
        sound.put("driver", driver);
        sound.put("id", name);
        if !self.model.has_codecs() {
            sound.put_some("audiodev", audiodev.as_deref());
        }
        sound.put_some("multi", self.multichannel);
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
