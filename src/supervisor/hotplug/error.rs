//! What goes wrong while a disk is plugged in or out.

use std::time::Duration;

use crate::keystore::Unresolved;
use crate::qemu::refusal::{self, Meaning, WrongSecret};
use crate::qmp::QmpError;
use crate::supervisor::{ImageError, Outside, SupervisorError, error};
use crate::xml::Diagnostics;

use super::{Step, Undone};

/// Why a disk was not plugged in or out.
#[derive(Debug, thiserror::Error)]
pub enum HotplugError {
    /// The XML is wrong, or does not fit this guest.
    #[error("the disk's XML cannot be used")]
    Xml(Diagnostics),
    /// It is where this supervisor may not reach.
    #[error(transparent)]
    Outside(#[from] Outside),
    /// Secrets are missing.
    #[error("not all of the disk's secrets are to be had")]
    Secrets(Vec<Unresolved>),
    /// A program that is to serve the disk is not installed.
    #[error("there is not everything that the disk needs")]
    Unserved(Diagnostics),
    /// A program that is to serve the disk did not start.
    #[error("the disk is not plugged in")]
    Helper(#[source] Box<SupervisorError>),
    /// An image could not be opened.
    #[error("the disk is not plugged in")]
    Image(#[from] ImageError),
    /// The image was changed while it was being opened.
    #[error("the disk is not plugged in; {undone}")]
    Changed {
        /// What became of the steps that had been done.
        undone: Undone,
        /// Which image.
        #[source]
        source: ImageError,
    },
    /// QEMU did not say which descriptors it has.
    #[error("QEMU cannot be given the disk's descriptors")]
    Descriptors(#[source] QmpError),
    /// A step failed, and what had been done was undone.
    #[error("{step} could not be made in QEMU; {undone}{}", error::said(said))]
    Step {
        /// The step.
        step: Step,
        /// What became of those before it.
        undone: Undone,
        /// What the programs that served the disk said.
        said: Vec<String>,
        /// The secret that is to blame, if one is.
        wrong: Option<Box<WrongSecret>>,
        /// What QEMU said.
        #[source]
        source: Box<QmpError>,
    },
    /// QEMU ended, and all that had been made with it.
    #[error("QEMU ended while {step} was being made")]
    Ended {
        /// The step.
        step: Step,
        /// How that showed.
        #[source]
        source: QmpError,
    },
    /// There is no such disk.
    #[error("the guest has no disk '{0}'")]
    NoSuchDisk(String),
    /// QEMU refused to begin with it.
    #[error("QEMU did not take '{target}' out")]
    Unplug {
        /// The disk's target.
        target: String,
        /// What QEMU said.
        #[source]
        source: QmpError,
    },
    /// The guest said no.
    #[error("the guest refused to let go of '{0}', which is still there")]
    GuestRefused(String),
    /// The guest said nothing in time.
    #[error(
        "the guest has not let go of '{target}' within {} s: the disk is still there; \
         if the guest lets go of it later, it is taken out then",
        waited.as_secs()
    )]
    StillThere {
        /// The disk's target.
        target: String,
        /// How long was waited.
        waited: Duration,
    },
    /// The guest's view of it is gone, something behind it is not.
    #[error("the guest has let go of '{target}', but not everything behind it is gone; {undone}")]
    LeftOver {
        /// The disk's target.
        target: String,
        /// What went and what did not.
        undone: Undone,
    },
    /// The disk is no drive with media.
    #[error("'{0}' is no drive whose medium could be changed")]
    NotRemovable(String),
    /// The guest keeps the tray closed.
    #[error("the guest has locked the tray of '{0}' and has not opened it: the medium is still in it")]
    TrayLocked(String),
    /// The medium was not changed.
    #[error("the medium of '{target}' was not changed, the old one is in the drive: {what}")]
    Medium {
        /// The drive's target.
        target: String,
        /// What could not be done.
        what: &'static str,
        /// What QEMU said.
        #[source]
        source: Box<QmpError>,
    },
    /// The medium was not changed, and the old one is out.
    #[error("the medium of '{target}' was not changed, and the old one could not be put back")]
    MediumLost {
        /// The drive's target.
        target: String,
        /// What QEMU said about the new one.
        #[source]
        source: Box<QmpError>,
    },
    /// The disk is in, but the supervisor that comes after this one would not know.
    #[error("what has changed could not be written down")]
    Save(#[source] Box<SupervisorError>),
    /// The keystores' thread ended early.
    #[error("looking for the disk's secrets was broken off")]
    Aborted,
}

const CHANGED: &str = "another program has written a LUKS header there just now: try again when it is done";

impl HotplugError {
    /// What QEMU's refusal means, if there is one and it is known.
    pub fn refusal(&self) -> Option<Meaning> {
        let (source, said) = match self {
            Self::Step { source, said, .. } => (source.as_ref(), said.as_slice()),
            Self::Medium { source, .. } | Self::MediumLost { source, .. } => (source.as_ref(), [].as_slice()),
            Self::Unplug { source, .. } => (source, [].as_slice()),
            _ => return None,
        };
        let words: Vec<&str> =
            [source.refusal()?.1].into_iter().chain(said.iter().map(String::as_str)).collect();
        refusal::meaning_of_any(&words)
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Outside(outside) => outside.hint(),
            Self::Image(ImageError::WrongPassphrase { .. }) => refusal::PASSPHRASE.into(),
            Self::Image(ImageError::NotUnlocked { .. } | ImageError::Underived) => refusal::UNDERIVED.into(),
            Self::Image(ImageError::Unread { .. }) | Self::Changed { source: ImageError::Unread { .. }, .. } => {
                refusal::SERVER.into()
            }
            Self::Changed { .. } => CHANGED.into(),
            Self::Step { wrong: Some(wrong), .. } => format!("{wrong}: {}", wrong.hint()),
            Self::Step { .. } => self.refusal()?.hint.into(),
            Self::GuestRefused(_) => "unmount it in the guest first".into(),
            Self::StillThere { .. } => {
                "a guest lets go of a PCI disk only while its system runs: is it up, not suspended, and is \
                 the disk unmounted?"
                    .into()
            }
            Self::TrayLocked(_) => "unmount it in the guest first, or say --force".into(),
            Self::NotRemovable(_) => "media are those of cdrom and floppy drives; others are unplugged".into(),
            Self::NoSuchDisk(_) => "`vmward status` shows the guest's disks".into(),
            Self::LeftOver { .. } => {
                "when what holds it is gone (a block job, an export), `vmward detach-device` takes out the rest"
                    .into()
            }
            _ => return None,
        })
    }
}
