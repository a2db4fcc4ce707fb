//! `<input>`.

use std::path::PathBuf;

use crate::domain::DeviceInfo;
use crate::xml::{Diagnostics, Element, keywords};

use super::virtio::{VirtioModel, VirtioOptions};

keywords! {
    /// What an input device is.
    pub enum InputType {
        /// A mouse.
        Mouse = "mouse",
        /// A tablet: a pointer with absolute positions.
        Tablet = "tablet",
        /// A keyboard.
        Keyboard = "keyboard",
        /// An input device of the host, as the guest's own.
        Passthrough = "passthrough",
        /// An input device of the host, through QEMU.
        Evdev = "evdev",
    }
}

keywords! {
    /// The bus of an input device.
    pub enum InputBus {
        /// PS/2: part of the machine.
        Ps2 = "ps2",
        /// USB.
        Usb = "usb",
        /// Virtio.
        Virtio = "virtio",
    }
}

keywords! {
    /// Key combinations that give an evdev device to the host and back.
    pub enum GrabToggle {
        /// Both Ctrl keys.
        CtrlCtrl = "ctrl-ctrl",
        /// Both Alt keys.
        AltAlt = "alt-alt",
        /// Both Shift keys.
        ShiftShift = "shift-shift",
        /// Both Meta keys.
        MetaMeta = "meta-meta",
        /// Scroll lock.
        ScrollLock = "scrolllock",
        /// Ctrl and scroll lock.
        CtrlScrollLock = "ctrl-scrolllock",
    }
}

/// An `<input>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// Where it is and what it is called.
    pub info: DeviceInfo,
    /// What it is.
    pub kind: InputType,
    /// Its bus.
    pub bus: InputBus,
    /// Which virtio.
    pub model: VirtioModel,
    /// The device of the host.
    pub device: Option<PathBuf>,
    /// evdev: whether all devices are taken together.
    pub grab_all: bool,
    /// evdev: which keys give it to the host and back.
    pub grab_toggle: Option<GrabToggle>,
    /// evdev: whether keys repeat.
    pub repeat: Option<bool>,
    /// What all virtio devices take.
    pub virtio: VirtioOptions,
}

impl Input {
    /// Reads an `<input>`.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let info = DeviceInfo::from_xml(element, diagnostics);
        let kind: InputType = element.require_keyword("type", diagnostics)?;
        let default = match kind {
            InputType::Tablet => InputBus::Usb,
            InputType::Passthrough => InputBus::Virtio,
            InputType::Mouse | InputType::Keyboard | InputType::Evdev => InputBus::Ps2,
        };
        let bus = match element.attribute("bus") {
            Some(_) => element.keyword("bus", diagnostics)?,
            None => default,
        };
        let fits = match kind {
            InputType::Tablet => bus != InputBus::Ps2,
            InputType::Passthrough => bus == InputBus::Virtio,
            // It has none: what it types arrives at the guest's keyboard and mouse.
            InputType::Evdev => bus == InputBus::Ps2,
            InputType::Mouse | InputType::Keyboard => true,
        };
        if !fits {
            diagnostics
                .error(element.span, format!("there is no {} on the {} bus", kind.as_str(), bus.as_str()));
        }
        let mut input = Self {
            info,
            kind,
            bus,
            model: element.keyword("model", diagnostics).unwrap_or(VirtioModel::Virtio),
            device: None,
            grab_all: false,
            grab_toggle: None,
            repeat: None,
            virtio: VirtioOptions::of_device(element, diagnostics),
        };
        // QEMU has both flavours of virtio-input-host alone.
        if input.model != VirtioModel::Virtio && kind != InputType::Passthrough {
            diagnostics.error(
                element.span,
                format!("there is no {} of model '{}'", kind.as_str(), input.model.as_str()),
            );
        }
        input.read_source(element, diagnostics);
        Some(input)
    }

    fn read_source(&mut self, element: &Element, diagnostics: &mut Diagnostics) {
        let name = match self.kind {
            InputType::Passthrough => "evdev",
            InputType::Evdev => "dev",
            InputType::Mouse | InputType::Tablet | InputType::Keyboard => return,
        };
        let Some(source) = element.only_child("source", diagnostics) else {
            diagnostics.error(element.span, format!("<input> lacks its <source {name}='...'/>"));
            return;
        };
        self.device = source.require(name, diagnostics).map(PathBuf::from);
        if self.kind == InputType::Evdev {
            self.grab_all = match source.get("grab") {
                Some("all") => true,
                Some(_) => {
                    diagnostics.error(source.span, "'grab' takes all");
                    false
                }
                None => false,
            };
            self.grab_toggle = source.keyword("grabToggle", diagnostics);
            self.repeat = source.on_off("repeat", diagnostics);
        }
    }
}
