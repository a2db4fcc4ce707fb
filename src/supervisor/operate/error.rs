//! What goes wrong with operations on a running guest.

use std::sync::Arc;

use crate::domain::devices::password::PasswordProtocol;
use crate::keystore::KeystoreError;
use crate::qmp::QmpError;
use crate::secret::ValueError;

/// Why a running guest is as it was.
#[derive(Debug, thiserror::Error)]
pub enum OperationError {
    /// The word for a display is none.
    #[error("'{0}' is no display that has a password")]
    NoSuchProtocol(String),
    /// The guest has no such display.
    #[error("the guest has no display of type '{}'", .0.as_str())]
    NoDisplay(PasswordProtocol),
    /// The display lets everybody in.
    #[error("the guest's {} display was started without passwords", .0.name())]
    NoPasswords(PasswordProtocol),
    /// The password does not fit.
    #[error("{} passwords have {} bytes at most", .0.name(), .0.longest_password())]
    LongPassword(PasswordProtocol),
    /// Neither a value nor a secret came with the call, or both.
    #[error("a password is either a value or a secret's")]
    NoValue,
    /// The value that came with the call is of no use.
    #[error("the value cannot be a password")]
    Value(#[source] ValueError),
    /// The secret with it is not to be had.
    #[error("the secret is not to be had")]
    Secret(#[source] Arc<KeystoreError>),
    /// QEMU did not take it.
    #[error("QEMU did not take the password; nobody gets in until one is set")]
    Password(#[source] QmpError),
    /// The certificates are of no use, or QEMU may not read them.
    #[error("the guest's certificates were not reloaded, the old ones stay in use")]
    Certificates(#[source] QmpError),
    /// Clients whose sessions QEMU would take the certificates from.
    #[error(
        "the guest's certificates were not reloaded, the old ones stay in use: {0} client(s) may be in the middle of \
         connecting to VNC"
    )]
    Connecting(usize),
    /// The port could not be had again.
    #[error("{id} does not listen any more")]
    NotListening {
        /// The character device.
        id: String,
        /// What QEMU said.
        #[source]
        source: QmpError,
    },
    /// QEMU did not take a secret.
    #[error("QEMU did not take the passphrase of the certificates' key")]
    Lend(#[from] QmpError),
    /// There is no such disk.
    #[error("the guest has no disk '{0}'")]
    NoSuchDisk(String),
    /// There is no image in the drive, or none that QEMU has.
    #[error("there is no image behind '{0}' whose size could be changed")]
    NoImage(String),
    /// A disk does not become smaller under a guest.
    #[error("'{target}' has {has} bytes: a disk of a running guest is not made smaller")]
    Shrink {
        /// The disk's target.
        target: String,
        /// What it has.
        has: u64,
    },
    /// A block device has the size that the host gives it.
    #[error("'{target}' is on the block device {path}, which has not room for that size")]
    BlockDevice {
        /// The disk's target.
        target: String,
        /// The device.
        path: String,
        /// What QEMU said.
        #[source]
        source: QmpError,
    },
    /// QEMU did not do it.
    #[error("the size of '{target}' was not changed")]
    Resize {
        /// The disk's target.
        target: String,
        /// What QEMU said.
        #[source]
        source: QmpError,
    },
    /// The keystores' thread ended early.
    #[error("looking for the secret was broken off")]
    Aborted,
}

impl OperationError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoSuchProtocol(_) => "displays with a password are vnc and spice".into(),
            Self::NoPasswords(_) => {
                "name a <secret> in the guest's <graphics>, or write passwd='' there for a password that is \
                 set while the guest runs; that counts from the guest's next start"
                    .into()
            }
            Self::Secret(error) => return error.hint(),
            Self::NoSuchDisk(_) => "`vmward status` shows the guest's disks".into(),
            Self::Certificates(_) => {
                "QEMU's user reads ca-cert.pem, server-cert.pem and server-key.pem in the directory that the \
                 guest's <tls> names; the passphrase of an encrypted key is its <secret>"
                    .into()
            }
            Self::Connecting(_) => {
                "QEMU before 10.2 may crash if they are exchanged then: try again when nobody connects, or where \
                 the guest's <tls> has verify='no', when nobody is connected"
                    .into()
            }
            Self::NotListening { .. } => {
                "once nobody else has its port, `vmward reload-tls` has it listen again".into()
            }
            Self::BlockDevice { .. } => {
                "make the device larger first (lvextend, zfs set volsize, ...); an encrypted one needs room for \
                 its header as well"
                    .into()
            }
            _ => return None,
        })
    }
}
