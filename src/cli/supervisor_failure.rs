//! What a supervisor's errors mean for a command: exit code and advice.

use std::borrow::Cow;
use std::error::Error;
use std::io;

use crate::qemu::refusal::{self, Cause};
use crate::supervisor::{ImageError, NetworkError, SupervisorError};

use super::{CliError, Exit};

/// A supervisor's failure as a command's. `user` is whom QEMU was to run as.
pub(crate) fn supervisor_failure(error: SupervisorError, user: Option<&str>) -> CliError {
    use SupervisorError as E;
    let (exit, hint) = match &error {
        E::Pin { .. } => (
            Exit::Data,
            Some("see <vcpu cpuset=...> and <cputune>: the host has to have these processors (lscpu)".into()),
        ),
        E::AlreadyRunning { name } => (
            Exit::TryAgain,
            Some(format!("`vmward status {name}` shows it, `vmward shutdown {name}` ends it").into()),
        ),
        E::UnsafeDirectory { .. } => (
            Exit::NoPermission,
            Some(
                "make it yours alone (chmod go-w, or chmod 700 for a guest's own directory), or remove it"
                    .into(),
            ),
        ),
        E::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            (Exit::NoPermission, None)
        }
        E::Unavailable(_) => (Exit::Data, Some("leave it out of the guest's XML".into())),
        E::Network(NetworkError::Refused { bridge, .. }) => (
            Exit::Unavailable,
            Some(format!("guests may use bridges that /etc/qemu/bridge.conf allows: allow {bridge}").into()),
        ),
        E::Network(e) if e.kind() == io::ErrorKind::PermissionDenied => (Exit::NoPermission, None),
        E::Network(_) => (Exit::Unavailable, None),
        E::Image(ImageError::WrongPassphrase { .. }) => {
            (Exit::NoPermission, Some(refusal::PASSPHRASE.into()))
        }
        E::Image(ImageError::NotUnlocked { .. } | ImageError::Underived) => {
            (Exit::Unavailable, Some(refusal::UNDERIVED.into()))
        }
        E::Image(ImageError::NotOpened { source, .. }) => (
            match source.kind() {
                io::ErrorKind::NotFound => Exit::NoInput,
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Exit::NoPermission,
                _ => Exit::Unavailable,
            },
            Some("check the path in the guest's XML".into())
                .filter(|_| source.kind() == io::ErrorKind::NotFound),
        ),
        E::Image(ImageError::Replaced { .. }) => (Exit::Data, None),
        E::Image(ImageError::Changed { .. }) => (
            Exit::TryAgain,
            Some(
                "another program has written a LUKS header there just now: try again when it is done".into(),
            ),
        ),
        E::Image(ImageError::Unread { .. }) => (Exit::TryAgain, Some(refusal::SERVER.into())),
        E::Confinement(_) => (
            Exit::Unavailable,
            Some("`--confinement off` starts the guest all the same, with all rights of this user".into()),
        ),
        E::NoSuchUser(_) => (Exit::Config, Some("`adduser --system --group NAME` makes one".into())),
        E::NotRoot(_) => (Exit::NoPermission, None),
        E::NoHelper(_) => (Exit::Unavailable, None),
        E::LongKey { .. } | E::LongPassword(_) => (Exit::Data, None),
        E::Helper { last_words, .. } | E::Died { last_words, .. } | E::Start { last_words, .. } => {
            match refusal::meaning_of_any(last_words) {
                None => (Exit::Unavailable, None),
                Some(meaning) => {
                    let named = format!("QEMU's user ('{}')", user.unwrap_or("your own"));
                    (exit_of(meaning.cause), Some(meaning.hint.replace("QEMU's user", &named).into()))
                }
            }
        }
        E::WrongSecret { wrong, .. } => (Exit::NoPermission, Some(wrong.hint().into())),
        E::Stranded { pid, .. } => {
            (Exit::Unavailable, Some(format!("`kill {pid}` ends it; then start the guest anew").into()))
        }
        E::NoSecret(_) | E::MasterKey(_) | E::NoMasterKey(_) | E::Harden(_) | E::Signals(_) => {
            (Exit::Internal, None)
        }
        E::Io { .. } | E::DamagedState { .. } | E::NewKey(_) | E::Spawn { .. } | E::Watch { .. } => {
            (Exit::Unavailable, None)
        }
    };
    let mut failure = CliError::new(exit, error.to_string());
    let mut causes = Vec::new();
    let mut cause = error.source();
    while let Some(e) = cause {
        causes.push(e.to_string());
        cause = e.source();
    }
    failure.source = (!causes.is_empty()).then(|| causes.join(": ").into());
    failure.hint = hint.map(Cow::into_owned);
    failure
}

/// The exit code of what QEMU refuses.
fn exit_of(cause: Cause) -> Exit {
    match cause {
        Cause::WrongSecret(_) | Cause::Forbidden => Exit::NoPermission,
        Cause::InUse | Cause::TryAgain => Exit::TryAgain,
        Cause::Data => Exit::Data,
        Cause::Missing => Exit::NoInput,
        Cause::Unavailable => Exit::Unavailable,
    }
}
