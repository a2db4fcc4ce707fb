//! Random number generators.

use serde_json::json;

use crate::domain::devices::rng::{Rng, RngBackend};
use crate::qemu::addresses::Plug;
use crate::qemu::plan::object;
use crate::qemu::properties::Properties;
use crate::qemu::{CommandLine, QemuObject};
use crate::xml::Diagnostics;

use super::{Context, Placed, QemuDevice, alias, chardev, device, has_info, virtio};

/// The period that libvirt takes where a rate names none, in ms.
const DEFAULT_PERIOD_MS: u32 = 1000;

impl Placed for Rng {
    has_info!();

    fn plug(&self) -> Option<Plug> {
        Some(virtio::plug(self.model))
    }
}

impl QemuDevice for Rng {
    fn tell(&self, context: &Context, line: &mut CommandLine, _: &mut Diagnostics) {
        let name = alias(&self.info);
        let id = format!("obj{name}");
        let backend = match &self.backend {
            RngBackend::Random(path) => json!({"qom-type": "rng-random", "id": id, "filename": path}),
            RngBackend::Builtin => json!({"qom-type": "rng-builtin", "id": id}),
            RngBackend::Egd(source) => {
                let chardev = format!("char{name}");
                chardev::tell(source, &chardev, name, context, line);
                json!({"qom-type": "rng-egd", "id": id, "chardev": chardev})
            }
        };
        line.object(QemuObject::Plain(object(backend)));
        let mut rng = virtio::start("virtio-rng", self.model, &self.virtio);
        rng.put("rng", id);
        rng.put("id", name);
        if let Some((bytes, period)) = self.rate.filter(|(bytes, _)| *bytes > 0) {
            rng.put("max-bytes", bytes);
            rng.put("period", period.unwrap_or(DEFAULT_PERIOD_MS));
        }
        device(line, rng, &self.info);
    }
}
