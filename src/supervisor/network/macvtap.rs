//! macvtap devices: a guest on an interface of the host, without a bridge. They do not go with their descriptors, as
//! tap devices do.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;

use crate::domain::devices::interface::DirectMode;
use crate::qemu::Macvtap;

use super::link::{self, NewMacvtap};
use super::{NetworkError, may_make};

/// What a number is put behind for a free name, as libvirt has it.
const NAMES: &str = "macvtap";

/// Says what is missing for one.
pub(super) fn check(macvtap: &Macvtap) -> Result<(), NetworkError> {
    match &macvtap.name {
        _ if macvtap.mode == DirectMode::Passthrough => Err(NetworkError::Passthrough),
        _ if !link::exists(&macvtap.device) => Err(NetworkError::NoDevice(macvtap.device.clone())),
        Some(name) if link::exists(name) => Err(NetworkError::Taken(name.clone())),
        _ if !may_make() => Err(NetworkError::NoRight),
        _ => Ok(()),
    }
}

/// A new device, a descriptor for each of its queues, and its number.
pub(in crate::supervisor) fn open(
    macvtap: &Macvtap,
    queues: usize,
) -> Result<(Vec<OwnedFd>, u32), NetworkError> {
    // Again: the device before this one may have taken its name.
    check(macvtap)?;
    let failed = |what| {
        let name = macvtap.name.clone();
        move |source| NetworkError::Tap { name, what, source }
    };
    let number = make(macvtap).map_err(failed("made"))?;
    let opened = link::bring_up(number).map_err(failed("brought up")).and_then(|()| {
        // Its packets have virtio headers, which QEMU sees, and takes off for other cards.
        let node = format!("/dev/tap{number}");
        let open = || Ok(OpenOptions::new().read(true).write(true).open(&node)?.into());
        (0..queues).map(|_| open()).collect::<io::Result<_>>().map_err(failed("opened for each queue"))
    });
    match opened {
        Ok(fds) => Ok((fds, number)),
        Err(e) => {
            if let Err(e) = link::remove(number) {
                tracing::error!("a macvtap device of the guest could not be removed: {e}");
            }
            Err(e)
        }
    }
}

fn make(macvtap: &Macvtap) -> io::Result<u32> {
    let new = |name: &str| {
        link::make_macvtap(&NewMacvtap {
            name,
            on: &macvtap.device,
            mode: match macvtap.mode {
                DirectMode::Private => 1,
                DirectMode::Vepa => 2,
                DirectMode::Bridge => 4,
                DirectMode::Passthrough => 8,
            },
            mac: macvtap.mac,
            mtu: macvtap.mtu,
        })
    };
    if let Some(name) = &macvtap.name {
        return new(name);
    }
    let mut number = 0;
    loop {
        match new(&format!("{NAMES}{number}")) {
            // Somebody's, perhaps only just.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => number += 1,
            other => return other,
        }
    }
}
