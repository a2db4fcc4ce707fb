//! What QEMU inherits: opened or made here, with this process's rights, and named by number in QEMU's arguments.

use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use command_fds::FdMapping;

use crate::qemu::{Descriptor, Resource, SocketPath};
use crate::xml::Diagnostics;

use super::SupervisorError;
use super::lib_dir::LibDir;
use super::network::{open_macvtap, open_tap};
use super::prepare::Prepared;

/// The device that a resource is, and what makes the kernel have it.
fn node_of(resource: &Resource) -> Option<(&Path, &'static str)> {
    Some(match resource {
        Resource::VhostNet => (Path::new("/dev/vhost-net"), "`modprobe vhost_net` loads the kernel's module"),
        Resource::VhostVsock => {
            (Path::new("/dev/vhost-vsock"), "`modprobe vhost_vsock` loads the kernel's module")
        }
        Resource::VhostScsi => {
            (Path::new("/dev/vhost-scsi"), "`modprobe vhost_scsi` loads the kernel's module")
        }
        Resource::Device(path) => (path, "check the path in the guest's XML"),
        _ => return None,
    })
}

/// Says, each at its line, which devices the host does not have. Returns why for the first of them, if there is one.
pub fn check_devices(wanted: &[Descriptor], diagnostics: &mut Diagnostics) -> Option<io::ErrorKind> {
    let mut missing = None;
    for descriptor in wanted {
        if let Some((path, hint)) = node_of(&descriptor.resource)
            && fs::metadata(path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
        {
            diagnostics.error(descriptor.span, format!("this host has no {}", path.display())).hint(hint);
            missing.get_or_insert(io::ErrorKind::Unsupported);
        }
    }
    missing
}

/// Opens everything. Sockets go when `prepared` is dropped.
pub(super) fn open_all(
    wanted: &[Descriptor],
    lib_dir: &LibDir,
    prepared: &mut Prepared,
) -> Result<Vec<FdMapping>, SupervisorError> {
    let mut mappings = Vec::new();
    for descriptor in wanted {
        let fds = open(&descriptor.resource, descriptor.numbers.len(), lib_dir, prepared)?;
        let numbers = descriptor.numbers.iter();
        mappings
            .extend(numbers.zip(fds).map(|(number, parent_fd)| FdMapping { parent_fd, child_fd: *number }));
    }
    Ok(mappings)
}

/// So many descriptors of one thing: a network device has one for each of its queues.
fn open(
    resource: &Resource,
    count: usize,
    lib_dir: &LibDir,
    prepared: &mut Prepared,
) -> Result<Vec<OwnedFd>, SupervisorError> {
    let fd: OwnedFd = match resource {
        Resource::UnixListener(SocketPath::InLibDir(name)) => lib_dir.listen(name)?.into(),
        Resource::UnixListener(SocketPath::Given(path)) => {
            let listener = listen(path).map_err(SupervisorError::io(path, "made for the guest"))?;
            prepared.remove_later(path);
            listener.into()
        }
        Resource::File { path, append } => OpenOptions::new()
            .write(true)
            .create(true)
            .append(*append)
            .truncate(!*append)
            .mode(0o600)
            .open(path)
            .map_err(SupervisorError::io(path, "opened for the guest"))?
            .into(),
        Resource::Device(path) => OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(SupervisorError::io(path, "opened for the guest"))?
            .into(),
        Resource::Tap(tap) => return open_tap(tap, count).map_err(SupervisorError::Network),
        Resource::Macvtap(macvtap) => {
            let (fds, link) = open_macvtap(macvtap, count).map_err(SupervisorError::Network)?;
            prepared.remove_link_later(link);
            return Ok(fds);
        }
        Resource::VhostNet | Resource::VhostScsi | Resource::VhostVsock => {
            let path = node_of(resource).map_or(Path::new(""), |(path, _)| path);
            let opened = (0..count).map(|_| Ok(OpenOptions::new().read(true).write(true).open(path)?.into()));
            return opened
                .collect::<io::Result<_>>()
                .map_err(SupervisorError::io(path, "opened for the guest"));
        }
        Resource::Open => return Ok(Vec::new()),
        Resource::ForeignTap(_) | Resource::Unavailable(_) => {
            let what = resource.unprovided().unwrap_or("this device");
            return Err(SupervisorError::Unavailable(what.to_owned()));
        }
    };
    Ok(vec![fd])
}

/// A socket that only this user and root reach. What a killed supervisor left there is replaced, as nobody answers.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let left = fs::symlink_metadata(path).is_ok_and(|there| there.file_type().is_socket());
    if left && UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_replaces_a_dead_one_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("serial.sock");
        let first = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(listen(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        // A child that another test is starting has it for a moment.
        let again = (0..3000).any(|_| {
            let listens = listen(&path).is_ok();
            if !listens {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            listens
        });
        assert!(again);

        let file = dir.path().join("file");
        fs::write(&file, "precious").unwrap();
        listen(&file).unwrap_err();
        assert_eq!(fs::read(&file).unwrap(), b"precious");
    }
}
