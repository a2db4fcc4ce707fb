//! A volume's failure as a command's.

use std::io;

use crate::cli::keystore_failure::keystore_failure;
use crate::cli::{CliError, Exit};
use crate::luks::UnlockError;
use crate::volume::VolumeError;

pub(super) fn failure(error: VolumeError) -> CliError {
    use VolumeError as E;
    let error = match error {
        E::Keystore(e) => return keystore_failure(e),
        other => other,
    };
    let exit = match &error {
        E::NoProgram(_) | E::Spawn { .. } | E::Program { .. } | E::Handover(_) | E::LeftBehind(..) => {
            Exit::Unavailable
        }
        E::ImageExists(_) | E::Snapshots(_) => Exit::Usage,
        E::NoImage(_) => Exit::NoInput,
        E::Login(_) => Exit::NoPermission,
        E::Interrupted(_) | E::Stopped(_) | E::InUse(_) => Exit::TryAgain,
        E::Request(_) | E::Exists(_) | E::NotAFile { .. } | E::FormatNotSaid(_) | E::WouldShrink { .. } => {
            Exit::Usage
        }
        E::Missing(_) => Exit::NoInput,
        E::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => Exit::NoPermission,
        E::Io { .. } => Exit::Unavailable,
        E::NotEncrypted(_)
        | E::Luks { .. }
        | E::Qcow2 { .. }
        | E::Passphrase(_)
        | E::PassphraseTooLong(_)
        | E::NotAKey(_)
        | E::OtherFormat { .. } => Exit::Data,
        E::Luks2(_) | E::QcowAes(_) | E::Detached(_) | E::SameValue => Exit::Data,
        E::SlotsFull(_) => Exit::Unavailable,
        E::Unlock { source, .. } => match source {
            UnlockError::WrongPassphrase => Exit::NoPermission,
            UnlockError::Unusual(_) => Exit::Data,
            UnlockError::Read(_) | UnlockError::Memory(_) => Exit::Unavailable,
        },
        E::WrongPassphrase(_) => Exit::NoPermission,
        E::NoValue(_) | E::NotKept(_) | E::Keystore(_) => Exit::Unavailable,
        E::CameOutPlain | E::OtherSize { .. } | E::Unproven(_) => Exit::Internal,
    };
    let message = error.to_string();
    let mut failure = CliError::new(exit, message);
    failure.hint = error.hint().map(str::to_owned);
    // The message is the error's own: what follows are its causes.
    failure.source = std::error::Error::source(&error).map(|e| {
        let mut text = e.to_string();
        let mut cause = e.source();
        while let Some(e) = cause {
            text.push_str(&format!(": {e}"));
            cause = e.source();
        }
        text.into()
    });
    failure
}
