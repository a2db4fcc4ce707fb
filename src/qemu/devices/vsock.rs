//! Sockets between the guest and the host.

use crate::domain::devices::vsock::Vsock;
use crate::qemu::addresses::Plug;
use crate::qemu::properties::Properties;
use crate::qemu::{CommandLine, Resource};
use crate::xml::Diagnostics;

use super::{Context, Placed, QemuDevice, alias, device, has_info, virtio};

impl Placed for Vsock {
    has_info!();

    fn plug(&self) -> Option<Plug> {
        Some(virtio::plug(self.model))
    }
}

impl QemuDevice for Vsock {
    fn tell(&self, _: &Context, line: &mut CommandLine, _: &mut Diagnostics) {
        /// What libvirt's tests get where any number will do; a start finds out which one is free.
        const NOMINAL_CID: u32 = 42;
        let fd = line.descriptor(Resource::VhostVsock { cid: self.cid }, self.info.span);
        let mut vsock = virtio::start("vhost-vsock", self.model, &self.virtio);
        vsock.put("id", alias(&self.info));
        vsock.put("guest-cid", self.cid.unwrap_or(NOMINAL_CID));
        vsock.put("vhostfd", fd.to_string());
        device(line, vsock, &self.info);
    }
}
