//! The memory balloon.

use crate::domain::devices::memballoon::Memballoon;
use crate::qemu::CommandLine;
use crate::qemu::addresses::Plug;
use crate::qemu::properties::Properties;
use crate::xml::Diagnostics;

use super::{Context, Placed, QemuDevice, alias, device, has_info, virtio};

impl Placed for Memballoon {
    has_info!();

    fn plug(&self) -> Option<Plug> {
        self.model.map(virtio::plug)
    }
}

impl QemuDevice for Memballoon {
    fn tell(&self, _: &Context, line: &mut CommandLine, _: &mut Diagnostics) {
        let Some(model) = self.model else { return };
        let mut balloon = virtio::start("virtio-balloon", model, &self.virtio);
        balloon.put("id", alias(&self.info));
        balloon.put_some("deflate-on-oom", self.autodeflate);
        balloon.put_some("free-page-reporting", self.free_page_reporting);
        device(line, balloon, &self.info);
    }
}
