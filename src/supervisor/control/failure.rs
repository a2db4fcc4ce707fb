//! What the supervisor's errors are on the wire.

use std::error::Error;
use std::io::ErrorKind;

use crate::keystore::{Trouble, Unresolved};
use crate::qemu::refusal::Cause;
use crate::qmp::QmpError;
use crate::supervisor::ImageError;
use crate::supervisor::hotplug::HotplugError;
use crate::supervisor::operate::OperationError;
use crate::supervisor::snapshot::SnapshotError;
use crate::xml::Diagnostics;

use super::api::{ControlError, Failure, Problem};

impl From<HotplugError> for ControlError {
    fn from(error: HotplugError) -> Self {
        use HotplugError as E;
        let failure = Failure::of(&error).with_hint(error.hint());
        match &error {
            E::Xml(diagnostics) => Self::InvalidXml(Failure { problems: problems(diagnostics), ..failure }),
            E::Outside(_) => Self::NotAllowed(failure),
            E::Unserved(diagnostics) => {
                Self::HelperUnavailable(Failure { problems: problems(diagnostics), ..failure })
            }
            E::Helper(_) => Self::HelperUnavailable(failure),
            E::Secrets(unresolved) => {
                let problems = unresolved.iter().map(Problem::from).collect();
                let failure = Failure { problems, ..failure };
                of_secrets(Trouble::of_all(unresolved).unwrap_or(Trouble::Missing), failure)
            }
            E::Step { source, .. } | E::Medium { source, .. } | E::MediumLost { source, .. }
                if source.refusal().is_none() =>
            {
                Self::QemuUnavailable(failure)
            }
            E::Unplug { source, .. } if source.refusal().is_none() => Self::QemuUnavailable(failure),
            E::Step { .. } | E::Unplug { .. } | E::Medium { .. } | E::MediumLost { .. } => {
                match error.refusal().map(|meaning| meaning.cause) {
                    Some(Cause::WrongSecret(_)) => Self::WrongKey(failure),
                    Some(Cause::InUse) => Self::ImageInUse(failure),
                    Some(Cause::Forbidden) => Self::StorageForbidden(failure),
                    Some(Cause::Missing) => Self::StorageMissing(failure),
                    Some(Cause::Data) => Self::StorageMismatch(failure),
                    _ => Self::QemuRefused(failure),
                }
            }
            E::Ended { .. } | E::Descriptors(_) => Self::QemuUnavailable(failure),
            E::Image(source) => of_image(source, failure),
            E::Changed { source, .. } => of_image(source, failure),
            E::NoSuchDisk(_) => Self::NoSuchDevice(failure),
            E::NotRemovable(_) => Self::InvalidRequest(failure),
            E::GuestRefused(_) | E::TrayLocked(_) => Self::GuestRefused(failure),
            E::StillThere { .. } => Self::DeviceStillThere(failure),
            E::LeftOver { .. } => Self::StillInUse(failure),
            E::Save(_) | E::Aborted => Self::Failed(failure),
        }
    }
}

impl From<OperationError> for ControlError {
    fn from(error: OperationError) -> Self {
        use OperationError as E;
        let failure = Failure::of(&error).with_hint(error.hint());
        match &error {
            E::NoSuchProtocol(_) | E::NoValue | E::Shrink { .. } | E::NoImage(_) => {
                Self::InvalidRequest(failure)
            }
            E::NoDisplay(_) | E::NoSuchDisk(_) => Self::NoSuchDevice(failure),
            E::LongPassword(_) | E::Value(_) => Self::SecretUnusable(failure),
            E::Secret(source) => of_secrets(source.trouble(), failure),
            E::NoPasswords(_) | E::BlockDevice { .. } => Self::QemuRefused(failure),
            E::Connecting(_) => Self::Busy(failure),
            E::Password(source)
            | E::Certificates(source)
            | E::NotListening { source, .. }
            | E::Lend(source)
            | E::Resize { source, .. } => match source {
                QmpError::Refused { .. } => Self::QemuRefused(failure),
                _ => Self::QemuUnavailable(failure),
            },
            E::Aborted => Self::Failed(failure),
        }
    }
}

impl From<SnapshotError> for ControlError {
    fn from(error: SnapshotError) -> Self {
        use SnapshotError as E;
        let failure = Failure::of(&error).with_hint(error.hint());
        match &error {
            E::Name(_) | E::Exists(_) | E::NoDisks | E::Twice(_) | E::Disk { .. } => {
                Self::InvalidRequest(failure)
            }
            E::NoSuchSnapshot(_) | E::NoSuchDisk(_) => Self::NoSuchDevice(failure),
            E::Secret(source) => of_secrets(source.trouble(), failure),
            E::Image(source) => of_image(source, failure),
            E::Outside { .. } => Self::NotAllowed(failure),
            E::File { source, .. } => match source.kind() {
                ErrorKind::AlreadyExists | ErrorKind::NotFound => Self::InvalidRequest(failure),
                ErrorKind::PermissionDenied => Self::NotAllowed(failure),
                _ => Self::Failed(failure),
            },
            E::Lend(source) | E::Switch(source) | E::Overlay { source, .. } | E::Merge { source, .. } => {
                match source {
                    QmpError::Refused { .. } => Self::QemuRefused(failure),
                    _ => Self::QemuUnavailable(failure),
                }
            }
            E::Aborted | E::CameOutPlain(_) | E::Unknown(_) | E::Save(_) => Self::Failed(failure),
        }
    }
}

impl From<QmpError> for ControlError {
    fn from(error: QmpError) -> Self {
        let failure = Failure::of(&error);
        match error {
            QmpError::Refused { .. } => Self::QemuRefused(failure),
            QmpError::Arguments { .. } | QmpError::Reply { .. } => Self::Failed(failure),
            _ => Self::QemuUnavailable(failure),
        }
    }
}

/// An image that QEMU does not get.
fn of_image(error: &ImageError, failure: Failure) -> ControlError {
    match error {
        ImageError::WrongPassphrase { .. } => ControlError::WrongKey(failure),
        ImageError::Changed { .. } => ControlError::ImageInUse(failure),
        ImageError::Unread { .. } => ControlError::StorageNotReady(failure),
        ImageError::NotOpened { source, .. } => match source.kind() {
            ErrorKind::NotFound => ControlError::StorageMissing(failure),
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                ControlError::StorageForbidden(failure)
            }
            _ => ControlError::StorageMismatch(failure),
        },
        ImageError::Replaced { .. } | ImageError::NotUnlocked { .. } => {
            ControlError::StorageMismatch(failure)
        }
        ImageError::Underived => ControlError::Failed(failure),
    }
}

/// Secrets that are not to be had.
pub(in crate::supervisor) fn of_secrets(trouble: Trouble, failure: Failure) -> ControlError {
    match trouble {
        Trouble::Missing | Trouble::Ambiguous => ControlError::SecretUnavailable(failure),
        Trouble::Data => ControlError::SecretUnusable(failure),
        Trouble::Permission => ControlError::SecretForbidden(failure),
        Trouble::TryAgain => ControlError::KeystoreNotReady(failure),
        Trouble::Unavailable | Trouble::Configuration => ControlError::KeystoreUnavailable(failure),
    }
}

/// Everything that was said about XML.
pub(super) fn problems(diagnostics: &Diagnostics) -> Vec<Problem> {
    diagnostics.sorted().into_iter().map(Problem::from).collect()
}

impl From<&Unresolved> for Problem {
    fn from(unresolved: &Unresolved) -> Self {
        let mut message = unresolved.error.to_string();
        let mut cause = unresolved.error.source();
        while let Some(e) = cause {
            message.push_str(&format!(": {e}"));
            cause = e.source();
        }
        Self {
            severity: "error".to_owned(),
            message,
            start: unresolved.secret.span.start as u64,
            end: unresolved.secret.span.end as u64,
            hint: unresolved.error.hint(),
        }
    }
}
