//! Audio backends.

use serde_json::Value;

use crate::domain::devices::audio::{Audio, AudioOption, AudioType};
use crate::domain::devices::graphics::GraphicsKind;
use crate::qemu::properties::Properties;
use crate::qemu::{CommandLine, JsonObject};
use crate::xml::{Diagnostics, Span};

use super::Context;

/// The backend of a guest that names none: the SPICE client, QEMU's window, or silence.
fn default(context: &Context) -> Audio {
    let graphics = &context.domain.devices.graphics;
    let has = |wanted: fn(&GraphicsKind) -> bool| graphics.iter().any(|g| wanted(&g.kind));
    Audio::silent(if has(|g| matches!(g, GraphicsKind::Spice(_))) {
        AudioType::Spice
    } else if has(|g| matches!(g, GraphicsKind::Sdl { .. })) {
        AudioType::Sdl
    } else {
        AudioType::None
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
        None => Some(format!("audio{}", audios.first().map_or(1, |a| a.id))),
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
    if audios.is_empty() {
        tell_one(&default(context), line);
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
}

fn put_all(options: &[AudioOption], told: &mut JsonObject) {
    for (name, value) in options {
        told.put(name, value.clone());
    }
}
