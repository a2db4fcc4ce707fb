//! Input devices.

use crate::domain::devices::input::{Input, InputBus, InputType};
use crate::qemu::addresses::Plug;
use crate::qemu::properties::Properties;
use crate::qemu::{CommandLine, JsonObject, QemuObject};
use crate::xml::Diagnostics;

use super::{Context, Placed, QemuDevice, alias, device, has_info, virtio};

impl Placed for Input {
    has_info!();

    fn plug(&self) -> Option<Plug> {
        (self.bus == InputBus::Virtio).then(|| virtio::plug(self.model))
    }

    fn on_usb(&self) -> bool {
        self.bus == InputBus::Usb
    }
}

impl QemuDevice for Input {
    fn tell(&self, _: &Context, line: &mut CommandLine, _: &mut Diagnostics) {
        let name = alias(&self.info);
        if self.kind == InputType::Evdev {
            let mut linux = JsonObject::new();
            linux.put("qom-type", "input-linux");
            linux.put("id", name);
            linux.put_some("evdev", self.device.as_ref().and_then(|d| d.to_str()));
            linux.put_some("repeat", self.repeat);
            linux.put_some("grab_all", self.grab_all.then_some(true));
            linux.put_some("grab-toggle", self.grab_toggle.map(|g| g.as_str()));
            line.object(QemuObject::Plain(linux));
            return;
        }
        let mut input = match self.bus {
            // Part of the machine.
            InputBus::Ps2 => return,
            InputBus::Usb => {
                let mut input = JsonObject::new();
                input.put(
                    "driver",
                    match self.kind {
                        InputType::Tablet => "usb-tablet",
                        InputType::Keyboard => "usb-kbd",
                        InputType::Mouse | InputType::Passthrough | InputType::Evdev => "usb-mouse",
                    },
                );
                input
            }
            InputBus::Virtio => {
                let base = match self.kind {
                    InputType::Tablet => "virtio-tablet",
                    InputType::Keyboard => "virtio-keyboard",
                    InputType::Mouse | InputType::Evdev => "virtio-mouse",
                    InputType::Passthrough => "virtio-input-host",
                };
                virtio::start(base, self.model, &self.virtio)
            }
        };
        input.put("id", name);
        if self.kind == InputType::Passthrough {
            input.put_some("evdev", self.device.as_ref().and_then(|d| d.to_str()));
        }
        device(line, input, &self.info);
    }
}
