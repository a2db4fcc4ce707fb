//! Memory that guests share.

use serde_json::json;

use crate::domain::devices::shmem::{Shmem, ShmemModel, ShmemRole};
use crate::qemu::addresses::Plug;
use crate::qemu::plan::{comma_escaped, object};
use crate::qemu::properties::Properties;
use crate::qemu::{CommandLine, JsonObject, QemuObject};
use crate::xml::Diagnostics;

use super::{Context, Placed, QemuDevice, alias, device, has_info};

impl Placed for Shmem {
    has_info!();

    fn plug(&self) -> Option<Plug> {
        Some(Plug::Conventional)
    }
}

impl QemuDevice for Shmem {
    fn tell(&self, _: &Context, line: &mut CommandLine, _: &mut Diagnostics) {
        let name = alias(&self.info);
        let mut shmem = JsonObject::new();
        shmem.put("driver", self.model.as_str());
        shmem.put("id", name);
        match self.model {
            ShmemModel::Plain => {
                let memory = format!("shmmem-{name}");
                line.object(QemuObject::Plain(object(json!({
                    "qom-type": "memory-backend-file",
                    "id": memory,
                    "mem-path": format!("/dev/shm/{}", self.name),
                    "size": self.size,
                    "share": true,
                }))));
                shmem.put("memdev", memory);
            }
            ShmemModel::Doorbell => {
                let chardev = format!("char{name}");
                let server = self.server.as_ref().map_or_else(
                    || format!("/var/lib/libvirt/shmem-{}-sock", self.name),
                    |path| path.display().to_string(),
                );
                line.text("-chardev", format!("socket,id={chardev},path={}", comma_escaped(&server)));
                shmem.put("chardev", chardev);
                shmem.put_some("vectors", self.vectors);
                shmem.put_some("ioeventfd", self.ioeventfd);
            }
        }
        shmem.put_some("master", self.role.map(|role| role == ShmemRole::Master));
        device(line, shmem, &self.info);
    }
}
