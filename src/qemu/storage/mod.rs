//! Disks as QEMU has them: the nodes of their images, the secrets that open them, the device that the guest sees.
//!
//! Names and numbers are libvirt's (`libvirt-N-storage`, `libvirt-N-format`, ...), so that what people know
//! of a running guest's block graph stays true.

mod filter;
mod frontend;
pub mod image;
mod local;
mod node;
mod protocol;
mod server;

pub use filter::is_filter;
pub use local::{Images, LocalImage, RawLuks};
pub use server::{Server, ServerImage};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::domain::Domain;
use crate::domain::disk::{Disk, EncryptionFormat, Image, Source};
use crate::xml::Diagnostics;

use super::properties::Properties;
use super::{Capabilities, DiskPlan, Helper, Service, Tls};

/// Hands out the numbers of nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeNumbers {
    last: u32,
}

impl NodeNumbers {
    /// The numbers that are left once a guest has started: each of its images has one.
    pub fn after_start(domain: &Domain) -> Self {
        let hostdevs = domain.devices.hostdevs.iter().filter(|h| h.on_scsi()).count();
        Self { last: backend_number(domain, hostdevs) - 1 }
    }

    /// Whether something is named after a number that no disk has got yet.
    pub fn is_later(&self, name: &str) -> bool {
        let number = name.strip_prefix("libvirt-").and_then(|rest| rest.split('-').next());
        number.and_then(|n| n.parse::<u32>().ok()).is_some_and(|n| n > self.last)
    }

    /// The next number.
    fn take(&mut self) -> u32 {
        self.last += 1;
        self.last
    }

    /// The next numbers for the images of a disk, from the top to the base.
    fn take_for(&mut self, disk: &Disk) -> Vec<u32> {
        (0..wanted(disk)).map(|_| self.take()).collect()
    }
}

/// The number of a host device on a SCSI bus, which has `before` such devices before it: they follow the disks.
pub(super) fn backend_number(domain: &Domain, before: usize) -> u32 {
    let disks: u32 = domain.devices.disks.iter().map(wanted).sum();
    disks.saturating_add(u32::try_from(before).unwrap_or(u32::MAX)).saturating_add(1)
}

/// How many numbers a disk takes. libvirt gives one to an empty drive, too.
fn wanted(disk: &Disk) -> u32 {
    let images = disk.chain().map(|image| 1 + usize::from(image.data_store.is_some())).sum::<usize>();
    u32::try_from(images).unwrap_or(u32::MAX).max(1)
}

/// What QEMU is told of all disks of a guest, in the order of `domain`. Aliases and addresses are assigned
/// before. Numbers count from the last disk to the first.
pub fn plan_disks(
    domain: &Domain,
    capabilities: &Capabilities,
    diagnostics: &mut Diagnostics,
) -> Vec<DiskPlan> {
    let mut numbers = NodeNumbers { last: 0 };
    let mut plans: Vec<_> = domain
        .devices
        .disks
        .iter()
        .rev()
        .filter_map(|disk| plan_disk(disk, &mut numbers, capabilities, diagnostics))
        .collect();
    plans.reverse();
    if let Some((first, span)) = plans.iter_mut().find_map(|p| p.reservations.map(|span| (p, span))) {
        let socket = capabilities.host.reservations_socket(domain.name(), protocol::MANAGED_HELPER);
        let (object, helper) = protocol::managed_helper(socket, span);
        first.objects.insert(0, object);
        first.helpers.push(helper);
    }
    for plan in &mut plans {
        let alias = plan.device.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
        serve(plan, &alias, domain.name(), capabilities, |_| false);
    }
    plans
}

/// Has a disk's images that a helper serves be found where that listens. The helpers are numbered from the base image on: what
/// comes on top does not change their names. `taken` are the names of others.
pub fn serve(
    plan: &mut DiskPlan,
    disk: &str,
    domain: &str,
    capabilities: &Capabilities,
    taken: impl Fn(&str) -> bool,
) {
    let devices = (0..).map(|number: u32| format!("{disk}-nbdkit{number}")).filter(|name| !taken(name));
    for ((node, file, span), device) in plan.served.drain(..).zip(devices) {
        let socket = capabilities.host.helper_socket(domain, &device);
        let of_qemu = plan.nodes.iter_mut().filter(|n| n.get("node-name").is_some_and(|name| *name == node));
        let of_others = plan.servers.iter_mut().filter(|image| image.node == node);
        for node in of_qemu.chain(of_others.map(|image| &mut image.server.node)) {
            node.put("server", json!({ "type": "unix", "path": socket }));
        }
        plan.helpers.push(Helper { device, socket, service: Service::Ssh(file), span });
    }
}

/// What QEMU is told of one disk, whose alias and address are assigned before.
pub fn plan_disk(
    disk: &Disk,
    numbers: &mut NodeNumbers,
    capabilities: &Capabilities,
    diagnostics: &mut Diagnostics,
) -> Option<DiskPlan> {
    let numbers = numbers.take_for(disk);
    check(disk, capabilities, diagnostics);
    let mut plan = DiskPlan::default();
    let drive = match disk.image.as_ref().map(|image| &image.source) {
        Some(Source::VhostUser(socket)) => {
            plan.chardev = Some(frontend::vhost_user_chardev(disk, socket, capabilities));
            None
        }
        Some(_) => {
            let top = node::chain(disk, &numbers, &capabilities.host.tls, &mut plan);
            Some(filter::copy_on_read(disk, top, &mut plan))
        }
        None => None,
    };
    plan.throttle = filter::throttle(disk);
    plan.device = frontend::device(disk, drive, diagnostics)?;
    Some(plan)
}

/// What QEMU is told of the topmost image of a disk, whose chain is open already below it: its secret, and its two nodes,
/// which nothing is behind yet.
pub fn plan_overlay(disk: &Disk, numbers: &mut NodeNumbers, tls: &Tls) -> DiskPlan {
    let mut plan = DiskPlan::default();
    node::overlay(disk, numbers.take(), tls, &mut plan);
    plan
}

/// What QEMU is told of an image that belongs to no disk and has no device (a firmware's variables). `name` is in front of
/// the names of all its nodes and objects.
pub fn plan_image(image: &Image, name: &str, tls: &Tls) -> DiskPlan {
    let mut plan = DiskPlan::default();
    node::single(image, name, tls, &mut plan);
    plan
}

/// What this QEMU cannot do of what the disk asks for.
fn check(disk: &Disk, capabilities: &Capabilities, diagnostics: &mut Diagnostics) {
    let driver = &disk.driver;
    // qapi/qdev: VirtIOBlk's iothread-vq-mapping came with 9.0, qcow2's discard-no-unref with 8.1.
    for (asked, (major, minor), what) in [
        (!driver.iothreads.is_empty(), (9, 0), "several I/O threads for one disk"),
        (driver.discard_no_unref.is_some(), (8, 1), "discard_no_unref"),
    ] {
        if asked && !capabilities.at_least(major, minor) {
            diagnostics
                .error(driver.span, format!("this QEMU is too old for {what}: {major}.{minor} has it"));
        }
    }
    for image in disk.chain() {
        let Some(encryption) = &image.encryption else { continue };
        let layered = encryption.secrets.len() > 1;
        let any = encryption.format == EncryptionFormat::LuksAny;
        // qapi/block-core: RbdEncryptionOptions has luks-any and parent since 8.0.
        if (layered || any) && !capabilities.at_least(8, 0) {
            diagnostics
                .error(encryption.span, "this QEMU is too old for this encryption by librbd: 8.0 has it");
        }
    }
}

#[cfg(test)]
mod tests;
