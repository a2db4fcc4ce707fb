//! Audio backends.

use serde_json::Value;

use crate::domain::devices::audio::{Audio, AudioOption, AudioType};
use crate::domain::devices::graphics::GraphicsKind;
use crate::qemu::properties::Properties;
use crate::qemu::{CommandLine, JsonObject};
use crate::xml::{Diagnostics, Span};

use super::Context;

/// The backend of a guest that names none: the last graphics that sound can go with decide. With VNC it is silence.
fn default(context: &Context) -> Option<Audio> {
    let graphics = &context.domain.devices.graphics;
    if graphics.is_empty() {
        return Some(Audio::silent(AudioType::None));
    }
    graphics.iter().rev().find_map(|g| match &g.kind {
        GraphicsKind::Spice(_) => Some(Audio::silent(AudioType::Spice)),
        GraphicsKind::Vnc(_) => Some(Audio::silent(AudioType::None)),
        GraphicsKind::Sdl { .. } | GraphicsKind::EglHeadless { .. } | GraphicsKind::Dbus { .. } => None,
    })
}

/// The id of a backend in QEMU: the one asked for, or the first.
pub(super) fn name_for(
    wanted: Option<u32>,
    at: Span,
    context: &Context,
    diagnostics: &mut Diagnostics,
) -> Option<String> {
    let audios = &context.domain.devices.audios;
    match wanted {
        None => match audios.first() {
            Some(audio) => Some(format!("audio{}", audio.id)),
            None => default(context).map(|audio| format!("audio{}", audio.id)),
        },
        Some(id) if audios.iter().any(|a| a.id == id) => Some(format!("audio{id}")),
        Some(id) => {
            diagnostics.error(at, format!("the guest has no <audio> with the id {id}"));
            None
        }
    }
}

/// Adds all of them.
pub(super) fn tell(context: &Context, line: &mut CommandLine) {
    let audios = &context.domain.devices.audios;
    if let Some(audio) = default(context).filter(|_| audios.is_empty()) {
        tell_one(&audio, line);
    }
    for audio in audios {
        tell_one(audio, line);
    }
}

fn tell_one(audio: &Audio, line: &mut CommandLine) {
    let driver = match audio.kind {
        AudioType::PulseAudio => "pa",
        AudioType::File => "wav",
        other => other.as_str(),
    };
    let mut told = JsonObject::new();
    told.put("id", format!("audio{}", audio.id));
    told.put("driver", driver);
    put_all(&audio.options, &mut told);
    for (name, options) in [("in", &audio.input), ("out", &audio.output)] {
        if !options.is_empty() {
            let mut direction = JsonObject::new();
            put_all(options, &mut direction);
            told.put(name, Value::Object(direction));
        }
    }
    line.json("-audiodev", told);
    let runtime_dir = audio.runtime_dir.iter().map(|dir| ("PIPEWIRE_RUNTIME_DIR".to_owned(), dir.clone()));
    line.environment.extend(runtime_dir);
}

fn put_all(options: &[AudioOption], told: &mut JsonObject) {
    for (name, value) in options {
        told.put(name, value.clone());
    }
}
