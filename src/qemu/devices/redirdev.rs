//! Redirected USB devices.

use crate::domain::devices::redirdev::{Redirdev, RedirectRule};
use crate::qemu::properties::Properties;
use crate::qemu::{CommandLine, JsonObject};
use crate::xml::Diagnostics;

use super::{Context, Placed, QemuDevice, alias, chardev, device, has_info};

impl Placed for Redirdev {
    has_info!();

    fn on_usb(&self) -> bool {
        true
    }
}

impl QemuDevice for Redirdev {
    fn tell(&self, context: &Context, line: &mut CommandLine, _: &mut Diagnostics) {
        let name = alias(&self.info);
        let id = format!("char{name}");
        chardev::tell(&self.chardev, &id, name, context, line);
        let mut redirected = JsonObject::new();
        redirected.put("driver", "usb-redir");
        redirected.put("chardev", id);
        redirected.put("id", name);
        let rules = &context.domain.devices.redirect_rules;
        if !rules.is_empty() {
            redirected.put("filter", rules.iter().map(rule).collect::<Vec<_>>().join("|"));
        }
        redirected.put_some("bootindex", self.info.boot_order);
        device(line, redirected, &self.info);
    }
}

/// As usbredir writes it: class, vendor, product, version, and whether the device is let through.
fn rule(rule: &RedirectRule) -> String {
    let wide = |number: Option<u16>| number.map_or("-1".to_owned(), |n| format!("0x{n:04X}"));
    let class = rule.class.map_or("-1".to_owned(), |n| format!("0x{n:02X}"));
    format!(
        "{class}:{}:{}:{}:{}",
        wide(rule.vendor),
        wide(rule.product),
        wide(rule.version),
        u8::from(rule.allow)
    )
}
