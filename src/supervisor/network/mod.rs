//! Tap devices: made here with the right CAP_NET_ADMIN, by QEMU's helper without it.

mod helper;
mod link;
mod macvtap;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::thread::{CapabilitySet, capabilities};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

pub(super) use link::remove as remove_link;
pub(super) use macvtap::open as open_macvtap;

use crate::qemu::{Descriptor, Resource, Tap};
use crate::xml::Diagnostics;

/// The kernel's tap driver.
const TUN: &str = "/dev/net/tun";
/// What the kernel makes a free name of, as libvirt has it.
const NAMES: &str = "vnet%d";
/// Where the address of the host's end differs from the guest's. A bridge takes its own from the lowest of its
/// devices': this one is high.
const HOST_END: u8 = 0xfe;

/// Why there is no tap device.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// There is no helper.
    #[error("there is no qemu-bridge-helper to put guests on bridges (Debian: qemu-system-common)")]
    NoHelper,
    /// The helper failed; its words name the bridge, or the list that the bridge is missing from.
    #[error("no tap device on the bridge '{bridge}': {said}")]
    Refused {
        /// The bridge.
        bridge: String,
        /// What the helper says.
        said: String,
    },
    /// The helper could not be talked to.
    #[error("qemu-bridge-helper could not be used")]
    Helper(#[source] io::Error),
    /// The helper makes devices on bridges, with one queue, the bridge's MTU and a name of the kernel's choice.
    #[error(
        "tap devices outside bridges, or with a name, an MTU or several queues, take root's rights (CAP_NET_ADMIN)"
    )]
    NoRight,
    /// There is no such bridge.
    #[error("this host has no bridge '{0}'")]
    NoBridge(String),
    /// A new device cannot have the name of one that is there.
    #[error("this host has a network device '{0}' already")]
    Taken(String),
    /// `managed='no'` is for devices that are there.
    #[error("this host has no tap device '{0}', and managed='no' asks for one that is there")]
    Missing(String),
    /// The two ends of a device cannot have the same address.
    #[error("a MAC address that begins with fe is one of the host's end of a tap device")]
    HostAddress,
    /// There is no such interface.
    #[error("this host has no network device '{0}'")]
    NoDevice(String),
    /// The interface would have to change.
    #[error("mode='passthrough' gives the host's own device the guest's address, which vmward does not do")]
    Passthrough,
    /// The kernel refuses.
    #[error("the tap device{} could not be {what}", name.as_ref().map(|name| format!(" '{name}'")).unwrap_or_default())]
    Tap {
        /// Its name, if it has one.
        name: Option<String>,
        /// "made", "brought up", ...
        what: &'static str,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

impl NetworkError {
    /// Of which kind it is.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::NoRight => io::ErrorKind::PermissionDenied,
            Self::Tap { source, .. } => source.kind(),
            _ => io::ErrorKind::Other,
        }
    }
}

/// Says, each at its line, which tap devices there cannot be. Returns why for the first of them, if there is one.
pub fn check_taps(wanted: &[Descriptor], diagnostics: &mut Diagnostics) -> Option<io::ErrorKind> {
    let mut unconnected = None;
    for descriptor in wanted {
        let checked = match &descriptor.resource {
            Resource::Tap(tap) => check(tap),
            Resource::Macvtap(macvtap) => macvtap::check(macvtap),
            _ => Ok(()),
        };
        if let Err(e) = checked {
            diagnostics.error(descriptor.span, e.to_string());
            unconnected.get_or_insert(e.kind());
        }
    }
    unconnected
}

fn check(tap: &Tap) -> Result<(), NetworkError> {
    if let Some(bridge) = tap.bridge.as_ref().filter(|bridge| !link::exists(bridge)) {
        return Err(NetworkError::NoBridge(bridge.clone()));
    }
    match &tap.name {
        Some(name) if tap.existing && !link::exists(name) => Err(NetworkError::Missing(name.clone())),
        // Its owner may use it without further rights.
        _ if tap.existing => Ok(()),
        Some(name) if link::exists(name) => Err(NetworkError::Taken(name.clone())),
        _ if tap.mac.is_some_and(|mac| mac[0] == HOST_END) => Err(NetworkError::HostAddress),
        _ if !may_make() && bridge_for_helper(tap).is_none() => Err(NetworkError::NoRight),
        _ => Ok(()),
    }
}

/// Whether this process may make network devices.
fn may_make() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN))
}

/// The bridge of a device that the helper can make.
fn bridge_for_helper(tap: &Tap) -> Option<&str> {
    let plain = tap.name.is_none() && tap.mtu.is_none() && !tap.multi_queue;
    tap.bridge.as_deref().filter(|_| plain)
}

/// A tap device, one descriptor for each queue. A new one is gone when they are closed.
pub(super) fn open_tap(tap: &Tap, queues: usize) -> Result<Vec<OwnedFd>, NetworkError> {
    // Again: the device before this one may have taken its name.
    check(tap)?;
    if !tap.existing
        && !may_make()
        && let Some(bridge) = bridge_for_helper(tap)
    {
        return Ok(vec![helper::open(bridge, tap.vnet_header)?]);
    }
    let failed = |what| {
        let name = tap.name.clone();
        move |source| NetworkError::Tap { name, what, source }
    };
    let device = open(tap).map_err(failed(if tap.existing { "opened" } else { "made" }))?;
    if !tap.existing {
        set_up(&device, tap, failed)?;
    }
    (0..queues)
        .map(|queue| if queue == 0 { device.as_fd().try_clone_to_owned() } else { more(&device) })
        .collect::<io::Result<_>>()
        .map_err(failed("opened for each queue"))
}

fn open(tap: &Tap) -> io::Result<SyncDevice> {
    // tun-rs would make the node; whether there is one is the administrator's choice.
    Path::new(TUN).metadata()?;
    DeviceBuilder::default()
        .name(tap.name.as_deref().unwrap_or(NAMES))
        .layer(Layer::L2)
        .inherit_enable_state()
        .with(|linux| {
            linux.offload(tap.vnet_header).multi_queue(tap.multi_queue);
        })
        .build_sync()
}

/// A further queue.
fn more(device: &SyncDevice) -> io::Result<OwnedFd> {
    device.try_clone()?.as_fd().try_clone_to_owned()
}

fn set_up<F>(device: &SyncDevice, tap: &Tap, failed: impl Fn(&'static str) -> F) -> Result<(), NetworkError>
where
    F: FnOnce(io::Error) -> NetworkError,
{
    if let Some([_, rest @ ..]) = tap.mac {
        let [a, b, c, d, e] = rest;
        device.set_mac_address([HOST_END, a, b, c, d, e]).map_err(failed("given its MAC address"))?;
    }
    // A bridge would take the smallest MTU of its devices' for all of them.
    let mtu = match (tap.mtu, &tap.bridge) {
        (Some(mtu), _) => Some(Ok(mtu)),
        (None, Some(bridge)) => Some(link::mtu(bridge)),
        (None, None) => None,
    };
    if let Some(mtu) = mtu {
        let set = |mtu| device.set_mtu(u16::try_from(mtu).map_err(|_| io::ErrorKind::InvalidInput)?);
        mtu.and_then(set).map_err(failed("given its MTU"))?;
    }
    if let Some(bridge) = &tap.bridge {
        let put = device.name().and_then(|name| link::put_on(&name, bridge));
        put.map_err(failed("put on its bridge"))?;
    }
    device.enabled(true).map_err(failed("brought up"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_helper_makes_plain_devices_on_bridges_alone() {
        let on_bridge = Tap { bridge: Some("br0".to_owned()), ..Tap::default() };
        assert_eq!(bridge_for_helper(&on_bridge), Some("br0"));
        for tap in [
            Tap::default(),
            Tap { multi_queue: true, ..on_bridge.clone() },
            Tap { name: Some("tap7".to_owned()), ..on_bridge.clone() },
            Tap { mtu: Some(9000), ..on_bridge },
        ] {
            assert_eq!(bridge_for_helper(&tap), None, "{tap:?}");
        }
    }

    #[test]
    fn what_cannot_be_is_found_before_anything_is_made() {
        let named = |name: &str| Tap { name: Some(name.to_owned()), ..Tap::default() };
        assert!(matches!(check(&named("lo")), Err(NetworkError::Taken(_))));
        let missing = Tap { existing: true, ..named("vmward-none") };
        assert!(matches!(check(&missing), Err(NetworkError::Missing(_))));
        let nowhere = Tap { bridge: Some("vmward-none".to_owned()), ..Tap::default() };
        assert!(matches!(check(&nowhere), Err(NetworkError::NoBridge(_))));
        let mirrored = Tap { mac: Some([0xfe, 0, 0, 0, 0, 1]), ..Tap::default() };
        assert!(matches!(check(&mirrored), Err(NetworkError::HostAddress)));
    }
}
