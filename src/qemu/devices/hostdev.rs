//! Devices of the host.

use serde_json::json;

use crate::domain::Address;
use crate::domain::devices::hostdev::{GuestReset, Hostdev, HostdevSource, IscsiUnit};
use crate::qemu::addresses::Plug;
use crate::qemu::plan::object;
use crate::qemu::properties::Properties;
use crate::qemu::{CommandLine, JsonObject, QemuObject, Resource, SecretObject, SecretSource};
use crate::xml::Diagnostics;

use super::{Context, Placed, QemuDevice, alias, device, has_info, interface, virtio};

impl Placed for Hostdev {
    has_info!();

    fn plug(&self) -> Option<Plug> {
        if self.info.address == Some(Address::Unassigned) {
            return None;
        }
        match self.source {
            HostdevSource::Pci(_) | HostdevSource::Mdev(_) => Some(Plug::Express),
            HostdevSource::Vhost(_) => Some(virtio::plug(self.model)),
            _ => None,
        }
    }

    fn on_usb(&self) -> bool {
        matches!(self.source, HostdevSource::UsbAddress { .. } | HostdevSource::UsbKind { .. })
    }
}

impl Hostdev {
    /// Whether it sits on a SCSI bus of the guest.
    pub(in crate::qemu) fn on_scsi(&self) -> bool {
        matches!(self.source, HostdevSource::Scsi(_) | HostdevSource::Iscsi(_))
    }
}

impl QemuDevice for Hostdev {
    fn tell(&self, context: &Context, line: &mut CommandLine, _: &mut Diagnostics) {
        let name = alias(&self.info);
        let span = self.info.span;
        let mut told = JsonObject::new();
        match &self.source {
            _ if self.info.address == Some(Address::Unassigned) => return,
            HostdevSource::Pci(host) => {
                line.require(Resource::Unavailable("PCI devices of the host".to_owned()), span);
                told.put("driver", self.vfio());
                told.put("host", host.to_string());
                told.put("id", name);
            }
            HostdevSource::Mdev(uuid) => {
                line.require(Resource::Unavailable("mediated devices of the host".to_owned()), span);
                told.put("driver", self.vfio());
                told.put("id", name);
                told.put("sysfsdev", format!("/sys/bus/mdev/devices/{uuid}"));
                // QEMU would choose by what the device can do.
                if self.display.is_none() {
                    told.put("display", "off");
                }
            }
            HostdevSource::UsbAddress { bus, device } => {
                line.require(Resource::Unavailable("USB devices of the host".to_owned()), span);
                told.put("driver", "usb-host");
                told.put("hostdevice", format!("/dev/bus/usb/{bus:03}/{device:03}"));
                told.put("id", name);
            }
            HostdevSource::UsbKind { vendor, product } => {
                line.require(Resource::Unavailable("USB devices of the host".to_owned()), span);
                told.put("driver", "usb-host");
                told.put("vendorid", *vendor);
                told.put("productid", *product);
                told.put("id", name);
            }
            HostdevSource::Vhost(wwpn) => {
                let fd = line.descriptor(Resource::VhostScsi, span);
                told = virtio::start("vhost-scsi", self.model, &Default::default());
                told.put("wwpn", wwpn.as_str());
                told.put("vhostfd", fd.to_string());
                told.put("id", name);
            }
            HostdevSource::Scsi(_) | HostdevSource::Iscsi(_) => {
                told.put("driver", "scsi-generic");
                told.put("drive", self.tell_backend(context, line));
                told.put("id", name);
            }
        }
        told.put_some("failover_pair_id", self.teaming.as_deref());
        told.put_some("display", self.display.map(|on| if on { "on" } else { "off" }));
        told.put_some("ramfb", self.ramfb.filter(|on| *on));
        match self.guest_reset {
            None => {}
            Some(GuestReset::Off) => told.put("guest-reset", false),
            Some(GuestReset::Uninitialized) => {
                told.put("guest-reset", true);
                told.put("guest-resets-all", false);
            }
            Some(GuestReset::On) => {
                told.put("guest-reset", true);
                told.put("guest-resets-all", true);
            }
        }
        told.put_some("bootindex", self.info.boot_order);
        interface::rom(&self.rom, &mut told);
        device(line, told, &self.info);
    }
}

impl Hostdev {
    /// A device with a frame buffer cannot be unplugged.
    fn vfio(&self) -> &'static str {
        if self.ramfb == Some(true) { "vfio-pci-nohotplug" } else { "vfio-pci" }
    }

    /// The node of a SCSI unit; its name. Numbers follow those of the disks.
    fn tell_backend(&self, context: &Context, line: &mut CommandLine) -> String {
        let scsi = context.domain.devices.hostdevs.iter().filter(|h| h.on_scsi());
        let before = scsi.take_while(|h| h.info.alias != self.info.alias).count();
        let node =
            format!("libvirt-{}-backend", crate::qemu::storage::backend_number(context.domain, before));
        let mut told = match &self.source {
            HostdevSource::Iscsi(unit) => iscsi(unit, &node, line),
            _ => {
                line.require(Resource::Unavailable("SCSI devices of the host".to_owned()), self.info.span);
                // A start would look up which generic device the unit is.
                object(json!({"driver": "host_device", "filename": "/dev/sg0"}))
            }
        };
        told.put("node-name", node.as_str());
        told.put("read-only", self.readonly);
        line.json("-blockdev", told);
        node
    }
}

fn iscsi(unit: &IscsiUnit, node: &str, line: &mut CommandLine) -> JsonObject {
    let mut told = object(json!({
        "driver": "iscsi",
        "portal": format!("{}:{}", unit.host, unit.port),
        "target": unit.target,
        "lun": unit.unit,
        "transport": "tcp",
    }));
    if let Some(auth) = &unit.auth {
        let id = format!("{node}-secret0");
        line.object(QemuObject::Secret(SecretObject {
            id: id.clone(),
            source: SecretSource::Keystore(auth.secret.clone()),
        }));
        told.put("user", auth.username.as_str());
        told.put("password-secret", id);
    }
    told.put_some("initiator-name", unit.initiator.as_deref());
    told
}
