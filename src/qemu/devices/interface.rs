//! Network interfaces.

use serde_json::{Value, json};

use crate::domain::devices::interface::{
    DirectMode, Interface, InterfaceModel, NetBackend, Source, Teaming, TunnelEnd, TxMode,
};
use crate::domain::devices::virtio::VirtioModel;
use crate::qemu::addresses::Plug;
use crate::qemu::plan::{comma_escaped, object};
use crate::qemu::properties::Properties;
use crate::qemu::{CommandLine, Helper, JsonObject, Macvtap, Resource, Service, Tap};
use crate::xml::Diagnostics;

use super::{Context, Placed, QemuDevice, alias, chardev, device, has_info, virtio};

/// Seconds after which a lost connection to passt is tried again, as libvirt has it.
const PASST_RECONNECT: u32 = 5;

impl Placed for Interface {
    has_info!();

    fn plug(&self) -> Option<Plug> {
        match self.model {
            InterfaceModel::UsbNet => None,
            // What is in a slot of the host is PCIe nowadays.
            _ if matches!(self.source, Source::Hostdev(_)) => Some(Plug::Express),
            InterfaceModel::Virtio | InterfaceModel::VirtioNonTransitional => Some(Plug::Express),
            InterfaceModel::Rtl8139
            | InterfaceModel::E1000
            | InterfaceModel::Vmxnet3
            | InterfaceModel::VirtioTransitional => Some(Plug::Conventional),
            // Names that libvirt only hands on: it puts them where Express devices go.
            _ => Some(Plug::Express),
        }
    }

    fn on_usb(&self) -> bool {
        self.model == InterfaceModel::UsbNet
    }
}

impl QemuDevice for Interface {
    fn tell(&self, context: &Context, line: &mut CommandLine, diagnostics: &mut Diagnostics) {
        for (what, span) in &self.host_only {
            line.require(Resource::Unavailable((*what).to_owned()), *span);
        }
        if self.link.is_some_and(|state| state == crate::domain::devices::interface::LinkState::Down) {
            line.require(Resource::Unavailable("interfaces without a link".to_owned()), self.info.span);
        }
        let name = alias(&self.info);
        if let Source::Hostdev(host) = &self.source {
            let mut told = JsonObject::new();
            told.put("driver", "vfio-pci");
            told.put("host", host.to_string());
            told.put("id", name);
            if let Some(Teaming::Transient(persistent)) = &self.teaming {
                told.put("failover_pair_id", persistent.as_str());
            }
            told.put_some("bootindex", self.info.boot_order);
            line.require(Resource::Unavailable("devices of the host".to_owned()), self.info.span);
            device(line, told, &self.info);
            return;
        }
        let net = format!("host{name}");
        let mut netdev = self.netdev(&net, name, context, line, diagnostics);
        netdev.put("id", net.as_str());
        line.json("-netdev", netdev);
        self.card(&net, name, line);
    }
}

impl Interface {
    /// Queue pairs.
    fn queue_count(&self) -> u32 {
        if self.model.is_virtio() { self.driver.queues.unwrap_or(1).max(1) } else { 1 }
    }

    /// The host's side.
    fn netdev(
        &self,
        id: &str,
        name: &str,
        context: &Context,
        line: &mut CommandLine,
        diagnostics: &mut Diagnostics,
    ) -> JsonObject {
        let span = self.info.span;
        match &self.source {
            Source::User { addresses } => {
                let mut net = object(json!({"type": "user"}));
                for network in addresses {
                    if network.address.is_ipv4() {
                        let prefix = network.prefix.map(|p| format!("/{p}")).unwrap_or_default();
                        net.put("net", format!("{}{prefix}", network.address));
                    } else {
                        net.put("ipv6-prefix", network.address.to_string());
                        net.put_some("ipv6-prefixlen", network.prefix);
                    }
                }
                net
            }
            Source::Passt(passt) => {
                let socket = context.capabilities.host.passt_socket(context.domain.name(), name);
                line.helpers.push(Helper {
                    device: name.to_owned(),
                    socket: socket.clone(),
                    service: Service::Network(passt.clone()),
                    span,
                });
                let mut stream = object(json!({
                    "type": "stream",
                    "addr": {"type": "unix", "path": socket.display().to_string()},
                    "server": false,
                }));
                // QEMU 7.2, the first to have this kind of network, does not connect again.
                if context.capabilities.at_least(8, 0) {
                    let (option, value) = context.capabilities.reconnect(PASST_RECONNECT);
                    stream.put(option, value);
                }
                stream
            }
            Source::Ethernet => self.tap(None, context, line),
            Source::Bridge(bridge) => self.tap(Some(bridge), context, line),
            Source::Network(_) => self.foreign_tap("networks of libvirt", context, line),
            Source::Direct { device, mode } => self.macvtap(device, *mode, context, line),
            Source::VhostUser { path, listen, reconnect } => {
                if !self.model.is_virtio() {
                    diagnostics.error(span, "a vhost-user interface is a virtio card");
                }
                let id = format!("char{name}");
                let path = comma_escaped(&path.display().to_string());
                let server = if *listen { ",server=on" } else { "" };
                let reconnect = chardev::reconnecting(context, *reconnect);
                line.text("-chardev", format!("socket,id={id},path={path}{server}{reconnect}"));
                let mut net = object(json!({"type": "vhost-user", "chardev": id}));
                net.put_some("queues", Some(self.queue_count()).filter(|q| *q > 1));
                net
            }
            Source::Vdpa(path) => {
                let set = line.fd_set(Resource::Device(path.clone()), &format!("{name}-vdpa"), span);
                let mut net = object(json!({"type": "vhost-vdpa", "vhostdev": set}));
                net.put_some("queues", Some(self.queue_count()).filter(|q| *q > 1));
                net
            }
            Source::Server(end) => object(json!({"type": "socket", "listen": end_point(end)})),
            Source::Client(end) => object(json!({"type": "socket", "connect": end_point(end)})),
            Source::Mcast(end) => object(json!({"type": "socket", "mcast": end_point(end)})),
            Source::Udp { remote, local } => {
                object(json!({"type": "socket", "udp": end_point(remote), "localaddr": end_point(local)}))
            }
            // Told before.
            Source::Hostdev(_) => object(json!({"id": id})),
        }
    }

    fn tap(&self, bridge: Option<&String>, context: &Context, line: &mut CommandLine) -> JsonObject {
        let tap = Tap {
            name: self.target.clone(),
            existing: self.existing_target,
            bridge: bridge.cloned(),
            vnet_header: self.model.is_virtio(),
            multi_queue: self.queue_count() > 1,
            mac: self.mac,
            mtu: self.mtu,
        };
        self.tap_options(Resource::Tap(tap), context, line)
    }

    fn macvtap(
        &self,
        device: &str,
        mode: DirectMode,
        context: &Context,
        line: &mut CommandLine,
    ) -> JsonObject {
        let macvtap = Macvtap {
            name: self.target.clone(),
            device: device.to_owned(),
            mode,
            mac: self.mac,
            mtu: self.mtu,
        };
        self.tap_options(Resource::Macvtap(macvtap), context, line)
    }

    /// A tap device on something that vmward does not manage.
    fn foreign_tap(&self, what: &'static str, context: &Context, line: &mut CommandLine) -> JsonObject {
        self.tap_options(Resource::ForeignTap(what), context, line)
    }

    fn tap_options(&self, resource: Resource, context: &Context, line: &mut CommandLine) -> JsonObject {
        let mut net = object(json!({"type": "tap"}));
        let queues = self.queue_count();
        put_descriptors("fd", &line.queue_descriptors(resource, queues, self.info.span), &mut net);
        // Without the user's word the kernel does it where it can.
        let vhost = match self.driver.name {
            Some(NetBackend::Vhost) => true,
            Some(NetBackend::Qemu) => false,
            None => context.capabilities.host.vhost_net,
        };
        if self.model.is_virtio() && vhost {
            net.put("vhost", true);
            let numbers = line.queue_descriptors(Resource::VhostNet, queues, self.info.span);
            put_descriptors("vhostfd", &numbers, &mut net);
        }
        net.put_some("sndbuf", self.sndbuf);
        net
    }

    /// The guest's side.
    fn card(&self, net: &str, name: &str, line: &mut CommandLine) {
        let driver = &self.driver;
        let mut card = match self.model {
            InterfaceModel::Virtio => virtio::start("virtio-net", VirtioModel::Virtio, &driver.virtio),
            InterfaceModel::VirtioTransitional => {
                virtio::start("virtio-net", VirtioModel::Transitional, &driver.virtio)
            }
            InterfaceModel::VirtioNonTransitional => {
                virtio::start("virtio-net", VirtioModel::NonTransitional, &driver.virtio)
            }
            other => object(json!({ "driver": other.as_str() })),
        };
        if self.model.is_virtio() {
            card.put_some(
                "tx",
                driver.tx_mode.map(|mode| match mode {
                    TxMode::Iothread => "bh",
                    TxMode::Timer => "timer",
                }),
            );
            card.put_some("ioeventfd", driver.ioeventfd);
            card.put_some("event_idx", driver.event_idx);
            for (property, on) in &driver.offloads {
                card.put(property, *on);
            }
            if let Some(queues) = driver.queues.filter(|q| *q > 1) {
                card.put("mq", true);
                // One for each queue, one for the control queue, one for the configuration.
                card.put("vectors", 2 * queues + 2);
            }
            card.put_some("rx_queue_size", driver.rx_queue_size);
            card.put_some("tx_queue_size", driver.tx_queue_size);
            card.put_some("host_mtu", self.mtu);
            card.put_some("rss", driver.rss);
            card.put_some("hash", driver.rss_hash_report);
            card.put_some("failover", (self.teaming == Some(Teaming::Persistent)).then_some(true));
        }
        card.put("netdev", net);
        card.put("id", name);
        card.put_some("mac", self.mac.map(mac_text));
        card.put_some("bootindex", self.info.boot_order);
        card.extend(self.info.place.clone());
        rom(&self.rom, &mut card);
        line.json("-device", card);
    }
}

/// `<rom>` of any PCI device.
pub(super) fn rom(rom: &crate::domain::devices::rom::Rom, told: &mut JsonObject) {
    if rom.enabled == Some(false) {
        // QEMU's way to say that there is none.
        told.put("romfile", "");
        return;
    }
    told.put_some("rombar", rom.bar.map(u8::from));
    told.put_some("romfile", rom.file.as_ref().map(|f| f.display().to_string()));
}

fn put_descriptors(name: &str, numbers: &[i32], net: &mut JsonObject) {
    let all = numbers.iter().map(i32::to_string).collect::<Vec<_>>().join(":");
    let name = if numbers.len() > 1 { format!("{name}s") } else { name.to_owned() };
    net.put(&name, Value::String(all));
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

fn end_point(end: &TunnelEnd) -> String {
    format!("{}:{}", end.address, end.port)
}
