//! What a keystore's errors mean for a command: exit code and advice.

use std::error::Error;

use crate::keystore::{KeystoreError, Trouble, Unresolved};
use crate::xml::Diagnostics;

use super::{CliError, Exit};

/// A keystore's failure as a command's.
pub(crate) fn keystore_failure(error: KeystoreError) -> CliError {
    let (exit, hint) = (exit_of(error.trouble()), error.hint());
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
    let exit = Trouble::of_all(unresolved).map_or(Exit::Internal, exit_of);
    CliError::new(exit, diagnostics.render(path, source))
}

/// What a command exits with.
pub(crate) fn exit_of(trouble: Trouble) -> Exit {
    match trouble {
        Trouble::Missing => Exit::NoInput,
        Trouble::Ambiguous => Exit::Usage,
        Trouble::Data => Exit::Data,
        Trouble::Permission => Exit::NoPermission,
        Trouble::Unavailable => Exit::Unavailable,
        Trouble::TryAgain => Exit::TryAgain,
        Trouble::Configuration => Exit::Config,
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
