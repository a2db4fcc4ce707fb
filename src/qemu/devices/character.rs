//! Serial and parallel ports, consoles and channels.

use serde_json::json;

use crate::domain::DeviceInfo;
use crate::domain::devices::character::{
    Channel, ChannelTarget, Console, ConsoleType, Parallel, Serial, SerialType,
};
use crate::qemu::addresses::Plug;
use crate::qemu::plan::object;
use crate::qemu::properties::Properties;
use crate::qemu::{CommandLine, JsonObject};
use crate::xml::Diagnostics;

use super::{Context, Placed, QemuDevice, alias, chardev, device, has_info};

fn chardev_id(info: &DeviceInfo) -> String {
    format!("char{}", alias(info))
}

impl Placed for Serial {
    has_info!();

    fn plug(&self) -> Option<Plug> {
        (self.kind == SerialType::Pci).then_some(Plug::Conventional)
    }

    fn on_usb(&self) -> bool {
        self.kind == SerialType::Usb
    }
}

impl QemuDevice for Serial {
    fn tell(&self, context: &Context, line: &mut CommandLine, _: &mut Diagnostics) {
        let id = chardev_id(&self.info);
        chardev::tell(&self.chardev, &id, alias(&self.info), context, line);
        let mut serial = JsonObject::new();
        serial.put(
            "driver",
            match self.kind {
                SerialType::Isa => "isa-serial",
                SerialType::Pci => "pci-serial",
                SerialType::Usb => "usb-serial",
                SerialType::IsaDebug => "isa-debugcon",
            },
        );
        serial.put("chardev", id);
        serial.put("id", alias(&self.info));
        if self.kind == SerialType::Isa {
            serial.put_some("index", self.port);
        }
        device(line, serial, &self.info);
    }
}

impl QemuDevice for Parallel {
    fn tell(&self, context: &Context, line: &mut CommandLine, _: &mut Diagnostics) {
        let id = chardev_id(&self.info);
        chardev::tell(&self.chardev, &id, alias(&self.info), context, line);
        let mut parallel = JsonObject::new();
        parallel.put("driver", "isa-parallel");
        parallel.put("chardev", id);
        parallel.put("id", alias(&self.info));
        device(line, parallel, &self.info);
    }
}

impl Placed for Parallel {
    has_info!();
}

impl Placed for Console {
    has_info!();
}

impl QemuDevice for Console {
    fn tell(&self, context: &Context, line: &mut CommandLine, _: &mut Diagnostics) {
        if self.kind == ConsoleType::Serial {
            // The first serial port by another name.
            return;
        }
        let id = chardev_id(&self.info);
        chardev::tell(&self.chardev, &id, alias(&self.info), context, line);
        let mut console = JsonObject::new();
        console.put("driver", "virtconsole");
        console.put("chardev", id);
        console.put("id", alias(&self.info));
        // As libvirt has it, QEMU finds the port of a console that was given none.
        if self.info.address_span.is_some() {
            console.extend(self.info.place.clone());
        }
        line.json("-device", console);
    }
}

impl Placed for Channel {
    has_info!();
}

impl QemuDevice for Channel {
    fn tell(&self, context: &Context, line: &mut CommandLine, _: &mut Diagnostics) {
        let name = alias(&self.info);
        let id = chardev_id(&self.info);
        chardev::tell(&self.chardev, &id, name, context, line);
        match &self.target {
            ChannelTarget::Virtio(target) => {
                let mut channel = JsonObject::new();
                channel.put("driver", "virtserialport");
                channel.extend(self.info.place.clone());
                channel.put("chardev", id);
                channel.put("id", name);
                channel.put_some("name", target.as_deref());
                line.json("-device", channel);
            }
            ChannelTarget::Guestfwd { address, port } => {
                let forward = format!("tcp:{address}:{port}-chardev:{id}");
                line.json(
                    "-netdev",
                    object(json!({"type": "user", "guestfwd": [{"str": forward}], "id": name})),
                );
            }
        }
    }
}
