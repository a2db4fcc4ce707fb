//! A volume's failure as a command's.

use std::io;

use crate::cli::{CliError, Exit};
use crate::volume::VolumeError;

pub(super) fn failure(error: VolumeError) -> CliError {
    use VolumeError as E;
    let exit = match &error {
        E::NoQemuImg | E::Spawn { .. } | E::QemuImg { .. } | E::Handover(_) => Exit::Unavailable,
        E::Interrupted(_) | E::InUse(_) => Exit::TryAgain,
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
        | E::OtherFormat { .. } => Exit::Data,
        E::WrongPassphrase(_) => Exit::NoPermission,
        E::CameOutPlain | E::OtherSize { .. } => Exit::Internal,
    };
    let hint = match &error {
        E::NoQemuImg => Some("install it (Debian: qemu-utils)"),
        E::Exists(_) => Some("take another path, or say --force to replace what is there"),
        E::FormatNotSaid(_) => Some("say it with --source-format: raw, qcow2, vmdk, vdi, vhdx or vpc"),
        E::WouldShrink { .. } => Some("say --shrink if that is meant, once the guest uses less"),
        E::InUse(_) => Some("shut down the guest that uses it, then try again"),
        E::NotEncrypted(_) => Some("vmward destroys encrypted volumes only; remove other files with rm"),
        E::QemuImg { message, .. } if message.contains("No space left") => {
            Some("make room, or let the volume grow with --preallocation off")
        }
        E::Passphrase(_) => Some("a passphrase is UTF-8 text; `vmward secret generate` makes one"),
        _ => None,
    };
    let message = error.to_string();
    let mut failure = CliError::new(exit, message);
    failure.hint = hint.map(str::to_owned);
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
