//! What goes wrong with snapshots.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::keystore::KeystoreError;
use crate::qmp::QmpError;
use crate::supervisor::{ImageError, Outside, SupervisorError};

/// Why a snapshot was not made or deleted. What had been done was undone.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It would be part of a file's name.
    #[error("'{0}' is no name of a snapshot")]
    Name(String),
    /// There is one of that name.
    #[error("the guest has a snapshot '{0}' already")]
    Exists(String),
    /// There is none of that name.
    #[error("the guest has no snapshot '{0}'")]
    NoSuchSnapshot(String),
    /// There is no such disk.
    #[error("the guest has no disk '{0}'")]
    NoSuchDisk(String),
    /// There is nothing that a snapshot could be of.
    #[error("the guest has no disk that it writes to")]
    NoDisks,
    /// It is named twice.
    #[error("the disk '{0}' is named twice")]
    Twice(String),
    /// No overlay goes on that disk.
    #[error("there can be no overlay on '{target}': {why}")]
    Disk {
        /// The disk's target.
        target: String,
        /// Why.
        why: &'static str,
    },
    /// The secret of an overlay is not to be had.
    #[error("a secret for the overlays is not to be had")]
    Secret(#[source] Arc<KeystoreError>),
    /// The keystores' thread ended early.
    #[error("looking for the secrets was broken off")]
    Aborted,
    /// The file of an overlay could not be made, looked at or removed.
    #[error("{} could not be {what}", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// "made", ...
        what: &'static str,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// QEMU did not get an image.
    #[error("QEMU did not get an image")]
    Image(#[from] ImageError),
    /// An overlay is to be where nothing may be made.
    #[error("the overlay of '{target}' cannot be made")]
    Outside {
        /// The disk's target.
        target: String,
        /// Where.
        #[source]
        source: Outside,
    },
    /// QEMU did not take a secret or a descriptor.
    #[error("QEMU did not take what it needs for an overlay")]
    Lend(#[from] QmpError),
    /// QEMU did not make an overlay.
    #[error("the overlay of '{target}' could not be {what}")]
    Overlay {
        /// The disk's target.
        target: String,
        /// "made", "opened", ...
        what: &'static str,
        /// What QEMU said.
        #[source]
        source: QmpError,
    },
    /// QEMU said that it had encrypted it.
    #[error("the overlay {} came out without encryption", .0.display())]
    CameOutPlain(PathBuf),
    /// QEMU did not switch to the overlays.
    #[error("the guest's disks were not switched to the overlays")]
    Switch(#[source] QmpError),
    /// The overlay was not merged.
    #[error("the overlay of '{target}' was not merged into what is below it")]
    Merge {
        /// The disk's target.
        target: String,
        /// What QEMU said.
        #[source]
        source: QmpError,
    },
    /// The XML and QEMU do not go together.
    #[error("the images of '{0}' in QEMU are not those of the guest's XML")]
    Unknown(String),
    /// The guest is as asked, but the supervisor that comes after this one would not know.
    #[error("what has changed could not be written down")]
    Save(#[source] Box<SupervisorError>),
}

impl SnapshotError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Name(_) => "letters, digits, dots, dashes and underscores make one".into(),
            Self::NoSuchSnapshot(_) => "`vmward snapshot list` shows them".into(),
            Self::NoSuchDisk(_) | Self::NoDisks => "`vmward status` shows the guest's disks".into(),
            Self::Disk { .. } => "--disk names those that the snapshot is to be of".into(),
            Self::Secret(error) => return error.hint(),
            Self::File { source, .. } if source.kind() == io::ErrorKind::AlreadyExists => {
                "--disk TARGET=FILE says where the overlay is to be".into()
            }
            Self::Outside { source, .. } => source.hint(),
            _ => return None,
        })
    }
}
