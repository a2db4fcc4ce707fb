//! Where disks sit. What QEMU is told about them is [`crate::qemu::storage`]'s.

use crate::domain::devices::virtio::VirtioModel;
use crate::domain::disk::{Bus, Disk};
use crate::qemu::addresses::Plug;

use super::{Placed, has_info};

impl Placed for Disk {
    has_info!();

    fn plug(&self) -> Option<Plug> {
        (self.bus == Bus::Virtio).then_some(match self.model {
            Some(VirtioModel::Transitional) => Plug::Conventional,
            None | Some(VirtioModel::Virtio | VirtioModel::NonTransitional) => Plug::Express,
        })
    }

    fn on_usb(&self) -> bool {
        self.bus == Bus::Usb
    }
}
