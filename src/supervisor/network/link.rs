//! What the kernel is asked about network devices: rtnetlink(7), of which two messages are enough.

use std::io;

use nix::net::if_::if_nametoindex;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

const ERROR: u16 = 2;
const GET_LINK: u16 = 18;
const SET_LINK: u16 = 19;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const ATTRIBUTE_MTU: u16 = 4;
const ATTRIBUTE_MASTER: u16 = 10;
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
    let answer = ask(&message(GET_LINK, REQUEST, if_nametoindex(name)?, None))?;
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
    ask(&message(SET_LINK, REQUEST | ACKNOWLEDGE, device, Some((ATTRIBUTE_MASTER, bridge)))).map(drop)
}

fn message(kind: u16, flags: u16, device: u32, attribute: Option<(u16, u32)>) -> Vec<u8> {
    const ATTRIBUTE: usize = 8;
    let length = ATTRIBUTES + attribute.map_or(0, |_| ATTRIBUTE);
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // The sequence and the sender, for conversations longer than this one; any family, any type.
    message.extend([0; 8 + 4]);
    message.extend(device.to_ne_bytes());
    // No flags to be changed.
    message.extend([0; 8]);
    if let Some((kind, value)) = attribute {
        message.extend((ATTRIBUTE as u16).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(value.to_ne_bytes());
    }
    message
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
    fn the_kernels_refusal_is_an_error() {
        put_on("lo", "lo").unwrap_err();
    }
}
