//! Smart cards.

use crate::domain::devices::smartcard::{Smartcard, SmartcardSource};
use crate::qemu::properties::Properties;
use crate::qemu::{CommandLine, JsonObject};
use crate::xml::Diagnostics;

use super::{Context, Placed, QemuDevice, alias, chardev, device, has_info};

impl Placed for Smartcard {
    has_info!();
}

impl QemuDevice for Smartcard {
    fn tell(&self, context: &Context, line: &mut CommandLine, _: &mut Diagnostics) {
        let name = alias(&self.info);
        let mut card = JsonObject::new();
        match &self.source {
            SmartcardSource::Host => {
                card.put("driver", "ccid-card-emulated");
                card.put("backend", "nss-emulated");
            }
            SmartcardSource::Certificates { names, database } => {
                card.put("driver", "ccid-card-emulated");
                card.put("backend", "certificates");
                for (number, certificate) in names.iter().enumerate() {
                    card.put(&format!("cert{}", number + 1), certificate.as_str());
                }
                card.put("db", database.as_str());
            }
            SmartcardSource::Passthrough(source) => {
                let id = format!("char{name}");
                chardev::tell(source, &id, name, context, line);
                card.put("driver", "ccid-card-passthru");
                card.put("chardev", id);
            }
        }
        card.put("id", name);
        device(line, card, &self.info);
    }
}
