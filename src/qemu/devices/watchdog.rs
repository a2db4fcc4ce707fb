//! Watchdogs.

use crate::domain::devices::watchdog::{Watchdog, WatchdogAction, WatchdogModel};
use crate::qemu::addresses::Plug;
use crate::qemu::properties::Properties;
use crate::qemu::{CommandLine, JsonObject, Resource};
use crate::xml::Diagnostics;

use super::{Context, Placed, QemuDevice, alias, device, has_info};

impl Placed for Watchdog {
    has_info!();

    fn plug(&self) -> Option<Plug> {
        (self.model == WatchdogModel::I6300esb).then_some(Plug::Conventional)
    }
}

impl QemuDevice for Watchdog {
    fn tell(&self, _: &Context, line: &mut CommandLine, _: &mut Diagnostics) {
        if self.model == WatchdogModel::Itco {
            // It is there in any case; this lets it reset the guest.
            line.text("-global", "ICH9-LPC.noreboot=off");
            return;
        }
        let mut watchdog = JsonObject::new();
        watchdog.put("driver", self.model.as_str());
        watchdog.put("id", alias(&self.info));
        device(line, watchdog, &self.info);
    }
}

/// QEMU has one action for all watchdogs.
pub(super) fn tell_action(context: &Context, line: &mut CommandLine) {
    let Some(watchdog) = context.domain.devices.watchdogs.first() else { return };
    let action = match watchdog.action {
        WatchdogAction::Dump => {
            line.require(
                Resource::Unavailable("memory dumps on a watchdog's alarm".to_owned()),
                watchdog.info.span,
            );
            WatchdogAction::Pause
        }
        action => action,
    };
    line.text("-watchdog-action", action.as_str());
}
