//! Tap devices from QEMU's own helper: a supervisor without root's rights can use it where it is setuid, and the
//! bridges that its guests may use are the administrator's choice.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use command_fds::{CommandFdExt, FdMapping};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg,
    socketpair,
};

use super::NetworkError;

/// Where distributions put the helper.
const HELPERS: &[&str] = &["/usr/lib/qemu/qemu-bridge-helper", "/usr/libexec/qemu-bridge-helper"];
/// The helper's end of the socket that it sends the tap device through.
const HELPER_FD: i32 = 3;

/// A new tap device on its bridge, with one queue and a name of the kernel's choice.
pub(super) fn open(bridge: &str, vnet_header: bool) -> Result<OwnedFd, NetworkError> {
    let helper = HELPERS.iter().map(Path::new).find(|h| h.exists()).ok_or(NetworkError::NoHelper)?;
    open_with(helper, bridge, vnet_header)
}

fn open_with(helper: &Path, bridge: &str, vnet_header: bool) -> Result<OwnedFd, NetworkError> {
    let failed = |e: io::Error| NetworkError::Helper(e);
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|e| failed(e.into()))?;
    let mut command = Command::new(helper);
    if vnet_header {
        command.arg("--use-vnet");
    }
    command.arg(format!("--fd={HELPER_FD}")).arg(format!("--br={bridge}"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).env_clear();
    command
        .fd_mappings(vec![FdMapping { parent_fd: theirs, child_fd: HELPER_FD }])
        .map_err(|e| failed(io::Error::other(e)))?;
    let child = command.spawn().map_err(failed)?;
    // Their end lives in the helper alone now: one that says nothing ends the conversation.
    drop(command);
    let received = receive(&ours);
    let output = child.wait_with_output().map_err(failed)?;
    match received.map_err(failed)? {
        Some(tap) if output.status.success() => Ok(tap),
        _ => Err(NetworkError::Refused {
            bridge: bridge.to_owned(),
            said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        }),
    }
}

/// The descriptor that comes through a socket.
fn receive(socket: impl AsFd) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let received = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(received)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script;

    fn helper(text: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        script::write(&dir.path().join("helper"), text);
        dir
    }

    #[test]
    fn a_helper_that_refuses_is_quoted() {
        let dir = helper("echo \"access denied by acl file\" >&2; exit 1");
        let error = open_with(&dir.path().join("helper"), "br0", true).unwrap_err();
        assert_eq!(error.to_string(), "no tap device on the bridge 'br0': access denied by acl file");
    }

    #[test]
    fn a_helper_that_sends_nothing_is_no_success() {
        let dir = helper("exit 0");
        assert!(matches!(
            open_with(&dir.path().join("helper"), "br0", false),
            Err(NetworkError::Refused { .. })
        ));
    }
}
