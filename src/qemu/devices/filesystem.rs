//! Directories of the host in the guest.

use crate::domain::devices::filesystem::{
    AccessMode, Filesystem, FilesystemDriver, FilesystemSource, Multidevs,
};
use crate::qemu::addresses::Plug;
use crate::qemu::plan::comma_escaped;
use crate::qemu::properties::Properties;
use crate::qemu::{CommandLine, Helper, JsonObject, Service, SharedDirectory};
use crate::xml::Diagnostics;

use super::{Context, Placed, QemuDevice, alias, device, has_info, virtio};

impl Placed for Filesystem {
    has_info!();

    fn plug(&self) -> Option<Plug> {
        match self.driver {
            FilesystemDriver::Virtiofs => Some(Plug::Express),
            FilesystemDriver::Path | FilesystemDriver::Handle => Some(virtio::plug(self.model)),
        }
    }
}

impl QemuDevice for Filesystem {
    fn tell(&self, context: &Context, line: &mut CommandLine, diagnostics: &mut Diagnostics) {
        match self.driver {
            FilesystemDriver::Virtiofs => self.tell_virtiofs(context, line, diagnostics),
            FilesystemDriver::Path | FilesystemDriver::Handle => self.tell_9p(line),
        }
    }
}

impl Filesystem {
    fn tell_9p(&self, line: &mut CommandLine) {
        let name = alias(&self.info);
        let id = format!("fsdev-{name}");
        let FilesystemSource::Directory(path) = &self.source else { return };
        let mut fsdev = match self.driver {
            FilesystemDriver::Handle => "handle".to_owned(),
            _ => format!(
                "local,security_model={}",
                match self.access {
                    AccessMode::Passthrough => "passthrough",
                    AccessMode::Mapped => "mapped",
                    AccessMode::Squash => "none",
                }
            ),
        };
        match self.multidevs {
            None | Some(Multidevs::Default) => {}
            Some(multidevs) => fsdev.push_str(&format!(",multidevs={}", multidevs.as_str())),
        }
        for (option, mode) in [("fmode", self.file_mode), ("dmode", self.directory_mode)] {
            if let Some(mode) = mode {
                fsdev.push_str(&format!(",{option}={mode:04o}"));
            }
        }
        if let Some(policy) = self.write_policy {
            fsdev.push_str(&format!(",writeout={}", policy.as_str()));
        }
        fsdev.push_str(&format!(",id={id},path={}", comma_escaped(&path.display().to_string())));
        if self.readonly {
            fsdev.push_str(",readonly=on");
        }
        line.text("-fsdev", fsdev);
        let mut filesystem = virtio::start("virtio-9p", self.model, &self.virtio);
        filesystem.put("id", name);
        filesystem.put("fsdev", id);
        filesystem.put("mount_tag", self.tag.as_str());
        device(line, filesystem, &self.info);
    }

    fn tell_virtiofs(&self, context: &Context, line: &mut CommandLine, diagnostics: &mut Diagnostics) {
        let name = alias(&self.info);
        let chardev = format!("chr-vu-{name}");
        let path = match &self.source {
            FilesystemSource::Socket(path) => path.clone(),
            FilesystemSource::Directory(directory) => {
                let socket = context.capabilities.host.virtiofs_socket(context.domain.name(), name);
                let shared = SharedDirectory { directory: directory.clone(), daemon: self.daemon.clone() };
                line.helpers.push(Helper {
                    device: name.to_owned(),
                    socket: socket.clone(),
                    service: Service::Directory(shared),
                    span: self.info.span,
                });
                socket
            }
        };
        if self.access != AccessMode::Passthrough {
            diagnostics.error(self.info.span, "virtiofs knows only accessmode='passthrough'");
        }
        line.text(
            "-chardev",
            format!("socket,id={chardev},path={}", comma_escaped(&path.display().to_string())),
        );
        let mut filesystem = JsonObject::new();
        filesystem.put("driver", "vhost-user-fs-pci");
        virtio::put(&self.virtio, &mut filesystem);
        filesystem.put("id", name);
        filesystem.put("chardev", chardev);
        filesystem.put_some("queue-size", self.queue_size);
        filesystem.put("tag", self.tag.as_str());
        filesystem.put_some("bootindex", self.info.boot_order);
        device(line, filesystem, &self.info);
    }
}
