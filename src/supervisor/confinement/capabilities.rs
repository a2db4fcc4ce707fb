//! Capabilities (capabilities(7)): which a supervisor of root uses after its guest's start. Everybody else's has none.

use std::io;

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    remove_capability_from_bounding_set, set_capabilities,
};

use crate::domain::disk::Kind;
use crate::qemu::{Resource, Service};

use super::Guest;

/// Images, keys and the lib dir, which belongs to QEMU's user; QEMU and its helpers, started as that user and killed;
/// memory locked for the secrets of disks that are plugged in.
const ALWAYS: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::IPC_LOCK)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID);

/// What is kept for a guest.
pub(super) fn needed(guest: &Guest<'_>) -> CapabilitySet {
    let Guest { domain, line, user, .. } = guest;
    let mut needed = ALWAYS;
    // It is removed with the guest. A tap device goes by itself.
    if line.descriptors.iter().any(|d| matches!(d.resource, Resource::Macvtap(_))) {
        needed |= CapabilitySet::NET_ADMIN;
    }
    let pinning = &domain.pinning;
    let pinned = pinning.emulator.is_some() || !pinning.vcpus.is_empty() || !pinning.iothreads.is_empty();
    if pinned || domain.vcpus.host_cpus.is_some() {
        needed |= CapabilitySet::SYS_NICE;
    }
    // qemu-pr-helper, which may have to be started again: SCSI commands, the maps of multipath, and its own bounding set.
    if line.helpers.iter().any(|helper| matches!(helper.service, Service::Reservations(_))) {
        needed |= CapabilitySet::SYS_RAWIO | CapabilitySet::SYS_ADMIN | CapabilitySet::SETPCAP;
    }
    // QEMU has what the supervisor has.
    if user.is_none() {
        needed |= CapabilitySet::NET_BIND_SERVICE;
        if domain.devices.disks.iter().any(|disk| disk.kind == Kind::Lun) {
            needed |= CapabilitySet::SYS_RAWIO;
        }
    }
    needed
}

/// No program that this thread starts gets more. Those who may not say so cannot get more anyway.
pub(super) fn limit(keep: CapabilitySet) -> io::Result<()> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if keep.contains(capability) {
            continue;
        }
        match capability_is_in_bounding_set(capability) {
            // The kernel knows no more.
            Err(Errno::INVAL) => break,
            Err(e) => return Err(e.into()),
            Ok(false) => continue,
            Ok(true) => {}
        }
        match remove_capability_from_bounding_set(capability) {
            Err(Errno::PERM) => break,
            Err(e) => return Err(e.into()),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// This thread has no more itself, and hands none on but as root's programs get them. The ambient set goes with the
/// inheritable one.
pub(super) fn lower(keep: CapabilitySet) -> io::Result<()> {
    let permitted = capabilities(None)?.permitted & keep;
    let inheritable = CapabilitySet::empty();
    Ok(set_capabilities(None, CapabilitySets { effective: permitted, permitted, inheritable })?)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::supervisor::User;
    use crate::xml::Diagnostics;
    use crate::{domain::Domain, qemu, xml};

    fn needed_by(inside: &str, user: bool) -> CapabilitySet {
        let source = format!(
            "<domain type='qemu'><name>a</name><memory>1024</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='q35'>hvm</type></os>{inside}</domain>"
        );
        let mut said = Diagnostics::new();
        let xml = xml::parse(&source, &mut said).unwrap();
        let mut domain = Domain::from_xml(&xml, &mut said).unwrap();
        let line = qemu::build(&mut domain, &qemu::Capabilities::latest(), &mut said).unwrap();
        let user = user.then(|| User { name: "q".to_owned(), uid: 64055.into(), gid: 64055.into() });
        let (user, runtime_dir) = (user.as_ref(), Path::new("/run/vmward"));
        needed(&Guest { domain: &domain, line: &line, program: None, user, runtime_dir })
    }

    #[test]
    fn a_guest_keeps_what_its_xml_asks_for() {
        assert_eq!(needed_by("", true), ALWAYS);
        assert_eq!(needed_by("", false), ALWAYS | CapabilitySet::NET_BIND_SERVICE);
        let pinned = "<cputune><vcpupin vcpu='0' cpuset='0'/></cputune>";
        assert_eq!(needed_by(pinned, true), ALWAYS | CapabilitySet::SYS_NICE);
        let macvtap =
            "<devices><interface type='direct'><source dev='eth0' mode='bridge'/></interface></devices>";
        assert_eq!(needed_by(macvtap, true), ALWAYS | CapabilitySet::NET_ADMIN);
        let lun = "<devices><disk type='block' device='lun'><source dev='/dev/sdx'/><target dev='sda' bus='scsi'/></disk></devices>";
        assert_eq!(needed_by(lun, true), ALWAYS);
        assert!(needed_by(lun, false).contains(CapabilitySet::SYS_RAWIO));
    }
}
