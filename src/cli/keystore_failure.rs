//! What a keystore's errors mean for a command: exit code and advice.

use std::error::Error;
use std::io;

use crate::keystore::{Failure, KeystoreError, Unresolved};
use crate::xml::Diagnostics;

use super::{CliError, Exit};

/// A keystore's failure as a command's.
pub(crate) fn keystore_failure(error: KeystoreError) -> CliError {
    let (exit, hint) = (exit_of(&error), error.hint());
    let mut failure = CliError::new(exit, error.to_string());
    // The message is the error's own: what follows are its causes.
    failure.source = source_text(&error);
    failure.hint = hint;
    failure
}

/// All the secrets that a document needs and that are not to be had, each at its line. `path` is shown,
/// `source` is the document's text.
pub(crate) fn unresolved_failure(unresolved: &[Unresolved], path: &str, source: &str) -> CliError {
    let mut diagnostics = Diagnostics::new();
    unresolved.iter().for_each(|u| u.say(&mut diagnostics));
    // One secret that may come with a second try does not help while another is missing for good.
    let exits: Vec<_> = unresolved.iter().map(|u| exit_of(&u.error)).collect();
    let exit = exits.iter().find(|e| **e != Exit::TryAgain).or(exits.first()).copied();
    CliError::new(exit.unwrap_or(Exit::Internal), diagnostics.render(path, source))
}

fn exit_of(error: &KeystoreError) -> Exit {
    use KeystoreError as E;
    match error {
        E::BadUri { .. } | E::NoStore => Exit::Config,
        E::NotDefined { .. } | E::NoValue { .. } => Exit::NoInput,
        E::Ambiguous { .. } => Exit::Usage,
        E::OtherUsage { .. } | E::Definition(_) | E::Damaged { .. } | E::Value { .. } | E::TooLong { .. } => {
            Exit::Data
        }
        E::NoIdentity { .. }
        | E::WrongIdentity { .. }
        | E::Unsafe { .. }
        | E::NotShared { .. }
        | E::Foreign { .. } => Exit::NoPermission,
        E::Failed { failure, .. } => match failure {
            f if f.is_temporary() => Exit::TryAgain,
            Failure::NotAuthenticated(_) | Failure::Denied => Exit::NoPermission,
            Failure::Missing(_) => Exit::NoInput,
            _ => Exit::Unavailable,
        },
        E::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => Exit::NoPermission,
        E::Io { .. } | E::Unsupported { .. } | E::KeyringFull | E::Keyring { .. } => Exit::Unavailable,
    }
}

fn source_text(error: &KeystoreError) -> Option<Box<dyn Error + Send + Sync>> {
    let mut text = Vec::new();
    let mut cause = Error::source(error);
    while let Some(e) = cause {
        text.push(e.to_string());
        cause = e.source();
    }
    (!text.is_empty()).then(|| text.join(": ").into())
}
