//! Stores for a guest's last words.

use std::path::Path;

use serde_json::json;

use crate::domain::devices::pstore::Pstore;
use crate::qemu::addresses::Plug;
use crate::qemu::plan::object;
use crate::qemu::properties::Properties;
use crate::qemu::{CommandLine, JsonObject, QemuObject};
use crate::xml::Diagnostics;

use super::{Context, Placed, QemuDevice, alias, device, has_info};

/// Where libvirt keeps what outlives a guest's run.
const DIRECTORY: &str = "/var/lib/libvirt/qemu/nvram";

impl Placed for Pstore {
    has_info!();

    fn plug(&self) -> Option<Plug> {
        Some(Plug::Conventional)
    }
}

impl QemuDevice for Pstore {
    fn tell(&self, context: &Context, line: &mut CommandLine, diagnostics: &mut Diagnostics) {
        if !context.domain.features.acpi {
            diagnostics.error(self.info.span, "<pstore> needs ACPI: <features><acpi/></features>");
        }
        let name = alias(&self.info);
        let memory = format!("mem{name}");
        let usual = || Path::new(DIRECTORY).join(format!("{}_PSTORE.raw", context.domain.name()));
        line.object(QemuObject::Plain(object(json!({
            "qom-type": "memory-backend-file",
            "id": memory,
            "mem-path": self.path.clone().unwrap_or_else(usual).display().to_string(),
            "size": self.size,
            "share": true,
        }))));
        let mut store = JsonObject::new();
        store.put("driver", "acpi-erst");
        store.put("id", name);
        store.put("memdev", memory);
        device(line, store, &self.info);
    }
}
