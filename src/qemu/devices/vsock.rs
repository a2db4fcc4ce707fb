//! Sockets between the guest and the host.

use uuid::Uuid;

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
    fn tell(&self, context: &Context, line: &mut CommandLine, _: &mut Diagnostics) {
        /// What libvirt's tests get where any number will do.
        const NOMINAL_CID: u32 = 42;
        let fd = line.descriptor(Resource::VhostVsock, self.info.span);
        let any = if line.nominal { NOMINAL_CID } else { own_cid(context.domain.general.uuid) };
        let mut vsock = virtio::start("vhost-vsock", self.model, &self.virtio);
        vsock.put("id", alias(&self.info));
        vsock.put("guest-cid", self.cid.unwrap_or(any));
        vsock.put("vhostfd", fd.to_string());
        device(line, vsock, &self.info);
    }
}

/// The CID of a guest that names none: from its UUID, so that it is the same at each start, and another one than
/// other guests'. libvirt's is the lowest that is free.
fn own_cid(uuid: Uuid) -> u32 {
    /// Below are those that people give, and the host's; above is the one that means any.
    const FIRST: u32 = 1 << 16;
    let [a, b, c, d, ..] = *uuid.as_bytes();
    FIRST + u32::from_be_bytes([a, b, c, d]) % (u32::MAX - 1 - FIRST)
}
