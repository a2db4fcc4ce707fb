//! `<audio>`: where sound goes on the host.

use crate::xml::{Diagnostics, Element, Span, keywords};

keywords! {
    /// Audio backends.
    pub enum AudioType {
        /// Nowhere.
        None = "none",
        /// ALSA.
        Alsa = "alsa",
        /// CoreAudio.
        CoreAudio = "coreaudio",
        /// D-Bus.
        Dbus = "dbus",
        /// JACK.
        Jack = "jack",
        /// OSS.
        Oss = "oss",
        /// PipeWire.
        Pipewire = "pipewire",
        /// PulseAudio.
        PulseAudio = "pulseaudio",
        /// SDL.
        Sdl = "sdl",
        /// The SPICE client.
        Spice = "spice",
        /// A WAV file.
        File = "file",
    }
}

/// A value that QEMU takes for an audio backend, as JSON: number, word or truth.
pub type AudioOption = (&'static str, serde_json::Value);

/// An `<audio>`.
#[derive(Debug, Clone, PartialEq)]
pub struct Audio {
    /// Where it stands.
    pub span: Span,
    /// Its number; other devices name it.
    pub id: u32,
    /// Where sound goes.
    pub kind: AudioType,
    /// PipeWire: the directory of its socket.
    pub runtime_dir: Option<String>,
    /// Options of the whole, as QEMU names them.
    pub options: Vec<AudioOption>,
    /// Options of recording.
    pub input: Vec<AudioOption>,
    /// Options of playing.
    pub output: Vec<AudioOption>,
}

/// How a value is read.
#[derive(Clone, Copy)]
enum Form {
    Number,
    Word,
    YesNo,
}
use Form::{Number, Word, YesNo};

/// Attributes of `<audio>`: the type that has it, the XML's name, QEMU's.
const WHOLE: &[(Option<AudioType>, &str, &str, Form)] = &[
    (None, "timerPeriod", "timer-period", Number),
    (Some(AudioType::File), "path", "path", Word),
    (Some(AudioType::PulseAudio), "serverName", "server", Word),
    (Some(AudioType::Oss), "tryMMap", "try-mmap", YesNo),
    (Some(AudioType::Oss), "exclusive", "exclusive", YesNo),
    (Some(AudioType::Oss), "dspPolicy", "dsp-policy", Number),
];

/// Attributes of `<input>` and `<output>` that all types have.
const DIRECTION: &[(&str, &str, Form)] = &[
    ("mixingEngine", "mixing-engine", YesNo),
    ("fixedSettings", "fixed-settings", YesNo),
    ("voices", "voices", Number),
    ("bufferLength", "buffer-length", Number),
];

/// Attributes that only some types have; they follow the settings.
const SPECIAL: &[(&[AudioType], &str, &str, Form)] = &[
    (&[AudioType::Alsa, AudioType::Oss], "dev", "dev", Word),
    (&[AudioType::CoreAudio, AudioType::Oss, AudioType::Sdl], "bufferCount", "buffer-count", Number),
    (&[AudioType::Oss], "tryPoll", "try-poll", YesNo),
    (&[AudioType::PulseAudio, AudioType::Pipewire], "name", "name", Word),
    (&[AudioType::PulseAudio, AudioType::Pipewire], "streamName", "stream-name", Word),
    (&[AudioType::PulseAudio, AudioType::Pipewire], "latency", "latency", Number),
    (&[AudioType::Jack], "serverName", "server-name", Word),
    (&[AudioType::Jack], "clientName", "client-name", Word),
    (&[AudioType::Jack], "connectPorts", "connect-ports", Word),
    (&[AudioType::Jack], "exactName", "exact-name", YesNo),
];

/// `<settings>` of a direction with fixed settings.
const SETTINGS: &[(&str, &str, Form)] =
    &[("frequency", "frequency", Number), ("channels", "channels", Number), ("format", "format", Word)];

fn option(
    element: &Element,
    name: &str,
    form: Form,
    diagnostics: &mut Diagnostics,
) -> Option<serde_json::Value> {
    Some(match form {
        Number => element.number::<u64>(name, diagnostics)?.into(),
        Word => element.get(name)?.into(),
        YesNo => element.yes_no(name, diagnostics)?.into(),
    })
}

impl Audio {
    /// The backend of a guest that says nothing about audio.
    pub fn silent(kind: AudioType) -> Self {
        Self {
            span: Span::default(),
            id: 1,
            kind,
            runtime_dir: None,
            options: Vec::new(),
            input: Vec::new(),
            output: Vec::new(),
        }
    }

    /// Reads an `<audio>`.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let kind: AudioType = element.require_keyword("type", diagnostics)?;
        let id = element.require("id", diagnostics).and(element.number("id", diagnostics))?;
        if id == 0 {
            diagnostics.error(element.span, "the ids of <audio> start at 1");
        }
        let mut options = Vec::new();
        for (of, name, property, form) in WHOLE {
            if of.is_none_or(|of| of == kind)
                && let Some(value) = option(element, name, *form, diagnostics)
            {
                options.push((*property, value));
            }
        }
        // SDL takes its driver from the environment.
        if kind == AudioType::Sdl {
            element.get("driver");
        }
        let mut direction = |name: &str| {
            element
                .only_child(name, diagnostics)
                .map(|d| read_direction(d, kind, diagnostics))
                .unwrap_or_default()
        };
        let (input, output) = (direction("input"), direction("output"));
        let runtime_dir = (kind == AudioType::Pipewire).then(|| element.get("runtimeDir").map(str::to_owned));
        let runtime_dir = runtime_dir.flatten();
        Some(Self { span: element.span, id, kind, runtime_dir, options, input, output })
    }
}

fn read_direction(element: &Element, kind: AudioType, diagnostics: &mut Diagnostics) -> Vec<AudioOption> {
    let mut found = Vec::new();
    for (name, property, form) in DIRECTION {
        if let Some(value) = option(element, name, *form, diagnostics) {
            found.push((*property, value));
        }
    }
    if let Some(settings) = element.only_child("settings", diagnostics) {
        if element.get("fixedSettings") != Some("yes") {
            diagnostics.error(settings.span, "<settings> needs fixedSettings='yes'");
        }
        for (name, property, form) in SETTINGS {
            if let Some(value) = option(settings, name, *form, diagnostics) {
                found.push((*property, value));
            }
        }
    }
    for (of, name, property, form) in SPECIAL {
        if of.contains(&kind)
            && let Some(value) = option(element, name, *form, diagnostics)
        {
            found.push((*property, value));
        }
    }
    found
}
