//! USB hubs.

use crate::domain::devices::hub::Hub;
use crate::qemu::properties::Properties;
use crate::qemu::{CommandLine, JsonObject};
use crate::xml::Diagnostics;

use super::{Context, Placed, QemuDevice, alias, device, has_info};

impl Placed for Hub {
    has_info!();

    fn on_usb(&self) -> bool {
        true
    }
}

impl QemuDevice for Hub {
    fn tell(&self, _: &Context, line: &mut CommandLine, _: &mut Diagnostics) {
        let mut hub = JsonObject::new();
        hub.put("driver", "usb-hub");
        hub.put("id", alias(&self.info));
        device(line, hub, &self.info);
    }
}
