//! What the kernel is asked about network devices: rtnetlink(7), of which four messages are enough.

use std::io;

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

const ERROR: u16 = 2;
const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const SET_LINK: u16 = 19;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
/// It must not be there yet.
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;
/// netdevice(7).
const UP: u32 = 1;
const ATTRIBUTE_ADDRESS: u16 = 1;
const ATTRIBUTE_NAME: u16 = 3;
const ATTRIBUTE_MTU: u16 = 4;
/// The device that another one is on.
const ATTRIBUTE_LINK: u16 = 5;
const ATTRIBUTE_MASTER: u16 = 10;
/// What kind of device it is, with the kind's own attributes in it.
const ATTRIBUTE_INFO: u16 = 18;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const MACVLAN_MODE: u16 = 1;
/// A message's header (`struct nlmsghdr`): in an answer an error's number follows.
const HEADER: usize = 16;
/// The header and the device (`struct ifinfomsg`): attributes follow.
const ATTRIBUTES: usize = 32;
/// The device's own description is far shorter.
const ANSWER: usize = 32 * 1024;

/// Whether there is a device of this name.
pub(super) fn exists(name: &str) -> bool {
    if_nametoindex(name).is_ok()
}

/// The largest packet of a device.
pub(super) fn mtu(name: &str) -> io::Result<u32> {
    let answer = ask(&message(GET_LINK, REQUEST, if_nametoindex(name)?, 0, &[]))?;
    let mut attributes = answer.get(ATTRIBUTES..).unwrap_or_default();
    while let Some((length, kind)) = number16(attributes, 0).zip(number16(attributes, 2)) {
        if kind == ATTRIBUTE_MTU {
            return number32(attributes, 4).ok_or_else(|| io::ErrorKind::InvalidData.into());
        }
        // Each begins at a multiple of 4.
        let next = usize::from(length).next_multiple_of(4).max(4);
        attributes = attributes.get(next..).unwrap_or_default();
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// Puts a device on a bridge.
pub(super) fn put_on(device: &str, bridge: &str) -> io::Result<()> {
    let (device, bridge) = (if_nametoindex(device)?, if_nametoindex(bridge)?);
    let master = attribute(ATTRIBUTE_MASTER, &bridge.to_ne_bytes());
    ask(&message(SET_LINK, REQUEST | ACKNOWLEDGE, device, 0, &master)).map(drop)
}

/// A macvtap device as it is to be made.
pub(super) struct NewMacvtap<'a> {
    pub(super) name: &'a str,
    /// The device that it is on.
    pub(super) on: &'a str,
    /// `MACVLAN_MODE_...` of linux/if_link.h.
    pub(super) mode: u32,
    pub(super) mac: Option<[u8; 6]>,
    pub(super) mtu: Option<u32>,
}

/// Makes a macvtap device; its number.
pub(super) fn make_macvtap(new: &NewMacvtap<'_>) -> io::Result<u32> {
    let data = attribute(INFO_DATA, &attribute(MACVLAN_MODE, &new.mode.to_ne_bytes()));
    let info = [attribute(INFO_KIND, b"macvtap"), data].concat();
    let mut attributes = [
        attribute(ATTRIBUTE_NAME, &[new.name.as_bytes(), b"\0"].concat()),
        attribute(ATTRIBUTE_LINK, &if_nametoindex(new.on)?.to_ne_bytes()),
        attribute(ATTRIBUTE_INFO, &info),
    ]
    .concat();
    if let Some(mac) = new.mac {
        attributes.extend(attribute(ATTRIBUTE_ADDRESS, &mac));
    }
    if let Some(mtu) = new.mtu {
        attributes.extend(attribute(ATTRIBUTE_MTU, &mtu.to_ne_bytes()));
    }
    ask(&message(NEW_LINK, REQUEST | ACKNOWLEDGE | CREATE | EXCLUSIVE, 0, 0, &attributes))?;
    Ok(if_nametoindex(new.name)?)
}

/// Brings a device up.
pub(super) fn bring_up(device: u32) -> io::Result<()> {
    ask(&message(SET_LINK, REQUEST | ACKNOWLEDGE, device, UP, &[])).map(drop)
}

/// Removes a device; one that is gone is no error.
pub(in crate::supervisor) fn remove(device: u32) -> io::Result<()> {
    match ask(&message(DELETE_LINK, REQUEST | ACKNOWLEDGE, device, 0, &[])) {
        Err(e) if e.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(()),
        other => other.map(drop),
    }
}

/// A message about a device, with flags that are to be set on it.
fn message(kind: u16, flags: u16, device: u32, set: u32, attributes: &[u8]) -> Vec<u8> {
    let length = ATTRIBUTES + attributes.len();
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // The sequence and the sender, for conversations longer than this one; any family, any type.
    message.extend([0; 8 + 4]);
    message.extend(device.to_ne_bytes());
    // The flags, and which of them are meant.
    message.extend(set.to_ne_bytes());
    message.extend(set.to_ne_bytes());
    message.extend(attributes);
    message
}

/// `struct rtattr` with its value; the next one begins at a multiple of 4.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    const HEAD: usize = 4;
    let length = HEAD + value.len();
    let mut attribute = Vec::with_capacity(length.next_multiple_of(4));
    attribute.extend((length as u16).to_ne_bytes());
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(length.next_multiple_of(4), 0);
    attribute
}

/// The kernel's answer.
fn ask(message: &[u8]) -> io::Result<Vec<u8>> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    send(&socket, message, SendFlags::empty())?;
    let mut answer = vec![0; ANSWER];
    let (length, _) = recv(&socket, &mut *answer, RecvFlags::empty())?;
    answer.truncate(length);
    if number16(&answer, 4) != Some(ERROR) {
        return Ok(answer);
    }
    match number32(&answer, HEADER).map(|negated| (negated as i32).wrapping_neg()) {
        Some(0) => Ok(answer),
        Some(error) => Err(io::Error::from_raw_os_error(error)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn number16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn number32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_of_its_loopback_device() {
        assert!(exists("lo"));
        assert_eq!(mtu("lo").unwrap(), 65536);
    }

    #[test]
    fn a_device_that_is_not_there_has_no_mtu() {
        assert!(!exists("vmward-none"));
        assert_eq!(mtu("vmward-none").unwrap_err().raw_os_error(), Some(nix::libc::ENODEV));
    }

    #[test]
    fn a_device_that_is_gone_need_not_be_removed() {
        remove(0x7fff_fff0).unwrap();
    }

    #[test]
    fn the_kernels_refusal_is_an_error() {
        put_on("lo", "lo").unwrap_err();
    }
}
