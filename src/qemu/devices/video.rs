//! Graphics cards.

use crate::domain::devices::video::{Video, VideoBackend, VideoModel};
use crate::domain::devices::virtio::VirtioOptions;
use crate::qemu::addresses::Plug;
use crate::qemu::properties::Properties;
use crate::qemu::{CommandLine, JsonObject, Resource};
use crate::xml::Diagnostics;

use super::{Context, Placed, QemuDevice, alias, device, has_info, virtio};

/// What libvirt gives a card that names no memory, in KiB.
const QXL_RAM_KIB: u64 = 64 << 10;
const QXL_VGAMEM_KIB: u64 = 16 << 10;
const VGA_VRAM_KIB: u64 = 16 << 10;

impl Placed for Video {
    has_info!();

    fn plug(&self) -> Option<Plug> {
        match self.model {
            VideoModel::Vga | VideoModel::Cirrus | VideoModel::Vmvga | VideoModel::Qxl => {
                Some(Plug::Conventional)
            }
            VideoModel::Virtio | VideoModel::Bochs => Some(Plug::Express),
            VideoModel::Ramfb | VideoModel::None => None,
        }
    }
}

impl Video {
    fn driver(&self) -> Option<&'static str> {
        let gl = self.accel3d == Some(true);
        Some(match (self.model, self.primary) {
            (VideoModel::None, _) => return None,
            (VideoModel::Vga, _) => "VGA",
            (VideoModel::Cirrus, _) => "cirrus-vga",
            (VideoModel::Vmvga, _) => "vmware-svga",
            (VideoModel::Qxl, true) => "qxl-vga",
            (VideoModel::Qxl, false) => "qxl",
            (VideoModel::Bochs, _) => "bochs-display",
            (VideoModel::Ramfb, _) => "ramfb",
            (VideoModel::Virtio, true) => match (self.backend, gl) {
                (VideoBackend::VhostUser, _) => "vhost-user-vga",
                (VideoBackend::Qemu, true) => "virtio-vga-gl",
                (VideoBackend::Qemu, false) => "virtio-vga",
            },
            (VideoModel::Virtio, false) => match (self.backend, gl) {
                (VideoBackend::VhostUser, _) => "vhost-user-gpu-pci",
                (VideoBackend::Qemu, true) => "virtio-gpu-gl-pci",
                (VideoBackend::Qemu, false) => "virtio-gpu-pci",
            },
        })
    }
}

impl QemuDevice for Video {
    fn tell(&self, context: &Context, line: &mut CommandLine, diagnostics: &mut Diagnostics) {
        let Some(driver) = self.driver() else { return };
        if !context.capabilities.has_device(driver) {
            diagnostics
                .error(self.info.span, format!("this QEMU has no '{driver}'"))
                .hint("use <model type='virtio'/> or <model type='vga'/>, or install QEMU's modules");
        }
        let name = alias(&self.info);
        let chardev = format!("chr-vu-{name}");
        let external = self.backend == VideoBackend::VhostUser;
        if external {
            let fd = line.descriptor(
                Resource::Unavailable("graphics cards drawn by a vhost-user process".to_owned()),
                self.info.span,
            );
            line.text("-chardev", format!("socket,id={chardev},fd={fd}"));
        }
        let mut video = JsonObject::new();
        video.put("driver", driver);
        if external && self.primary {
            if self.virtio != VirtioOptions::default() {
                diagnostics.warning(
                    self.info.span,
                    "the virtio options of a primary card that a process draws change nothing, as with libvirt",
                );
            }
        } else {
            virtio::put(&self.virtio, &mut video);
        }
        video.put("id", name);
        match self.model {
            VideoModel::Qxl => {
                video.put("max_outputs", self.heads.unwrap_or(1));
                let ram = self.ram.map_or(QXL_RAM_KIB, rounded);
                let vram = self.vram.map_or(QXL_RAM_KIB, rounded);
                video.put("ram_size", ram << 10);
                video.put("vram_size", vram << 10);
                video.put("vram64_size_mb", self.vram64.map_or(0, rounded) >> 10);
                video.put("vgamem_mb", self.vgamem.map_or(QXL_VGAMEM_KIB, rounded) >> 10);
            }
            VideoModel::Vga | VideoModel::Vmvga => {
                video.put("vgamem_mb", self.vram.map_or(VGA_VRAM_KIB, rounded) >> 10);
            }
            VideoModel::Bochs => video.put("vgamem", self.vram.unwrap_or(VGA_VRAM_KIB) << 10),
            VideoModel::Virtio => {
                video.put("max_outputs", self.heads.unwrap_or(1));
                video.put_some("blob", self.blob);
            }
            VideoModel::Cirrus | VideoModel::Ramfb | VideoModel::None => {}
        }
        if let Some((x, y)) = self.resolution {
            video.put("xres", x);
            video.put("yres", y);
        }
        if external {
            video.put("chardev", chardev);
        }
        device(line, video, &self.info);
    }
}

/// QXL's sizes are powers of two.
fn rounded(kib: u64) -> u64 {
    kib.checked_next_power_of_two().unwrap_or(kib)
}
