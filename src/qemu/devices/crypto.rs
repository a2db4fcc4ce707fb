//! Crypto devices.

use serde_json::json;

use crate::domain::devices::crypto::{Crypto, CryptoBackend};
use crate::qemu::addresses::Plug;
use crate::qemu::plan::object;
use crate::qemu::properties::Properties;
use crate::qemu::{CommandLine, JsonObject, QemuObject};
use crate::xml::Diagnostics;

use super::{Context, Placed, QemuDevice, alias, device, has_info};

impl Placed for Crypto {
    has_info!();

    fn plug(&self) -> Option<Plug> {
        Some(Plug::Conventional)
    }
}

impl QemuDevice for Crypto {
    fn tell(&self, _: &Context, line: &mut CommandLine, _: &mut Diagnostics) {
        let name = alias(&self.info);
        let id = format!("obj{name}");
        let kind = match self.backend {
            CryptoBackend::Builtin => "cryptodev-backend-builtin",
            CryptoBackend::Lkcf => "cryptodev-backend-lkcf",
        };
        let mut backend = object(json!({"qom-type": kind, "id": id}));
        backend.put_some("queues", self.queues.filter(|q| *q > 0));
        line.object(QemuObject::Plain(backend));
        let mut crypto = JsonObject::new();
        crypto.put("driver", "virtio-crypto-pci");
        crypto.put("cryptodev", id);
        crypto.put("id", name);
        device(line, crypto, &self.info);
    }
}
