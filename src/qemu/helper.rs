//! Programs beside QEMU.

use std::path::PathBuf;

use crate::domain::devices::emulated_tpm::EmulatedTpm;
use crate::domain::devices::interface::Passt;
use crate::domain::devices::virtiofsd::Virtiofsd;
use crate::secret::SecretRef;
use crate::xml::Span;

/// A program that serves a device of the guest: QEMU connects to its socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Helper {
    /// The alias of the device.
    pub device: String,
    /// Where it listens.
    pub socket: PathBuf,
    /// What it does.
    pub service: Service,
    /// Where the XML asks for it: a start that cannot provide it points here.
    pub span: Span,
}

impl Helper {
    /// Whether it is there for one disk, and goes with that.
    pub fn is_of_one_disk(&self) -> bool {
        matches!(self.service, Service::Ssh(_))
    }
}

/// What a [`Helper`] does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Service {
    /// swtpm: emulates a TPM.
    Tpm(EmulatedTpm),
    /// virtiofsd: gives the guest a directory of the host.
    Directory(SharedDirectory),
    /// passt: gives the guest a network that takes no rights on the host.
    Network(Passt),
    /// qemu-pr-helper: makes SCSI persistent reservations for QEMU, which may not.
    Reservations(Reservations),
    /// nbdkit: a file over SFTP, with a password.
    Ssh(SshFile),
}

/// A directory of the host that the guest sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedDirectory {
    /// Which one.
    pub directory: PathBuf,
    /// How it is given.
    pub daemon: Virtiofsd,
}

/// A file over SFTP whose server asks for a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshFile {
    /// The server's name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The user.
    pub user: String,
    /// The file.
    pub path: String,
    /// The user's password.
    pub password: SecretRef,
    /// The file with the servers' keys; `None`: that of the user that it runs as.
    pub known_hosts: Option<String>,
    /// Whether nothing is written to it.
    pub readonly: bool,
}

/// Persistent reservations on all disks that ask for them: there is nothing to be said about how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reservations;
