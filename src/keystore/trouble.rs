//! What kind of trouble an error is: for the exit codes of commands and the names of errors on the wire.

use std::io;

use super::{Failure, KeystoreError, Unresolved};

/// The kinds, by what can be done about them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// There is no such secret, or no value of it.
    Missing,
    /// It was not named well enough.
    Ambiguous,
    /// What is there cannot be used.
    Data,
    /// Who asks may not, or has not the key.
    Permission,
    /// A store is out of order.
    Unavailable,
    /// The same again may help.
    TryAgain,
    /// The stores are not well configured.
    Configuration,
}

impl Trouble {
    /// The one of many secrets that are not to be had. One that may come with a second try does not help while
    /// another is missing for good.
    pub fn of_all(unresolved: &[Unresolved]) -> Option<Self> {
        let mut kinds = unresolved.iter().map(|u| u.error.trouble());
        let first = kinds.next()?;
        if first != Self::TryAgain {
            return Some(first);
        }
        Some(kinds.find(|kind| *kind != Self::TryAgain).unwrap_or(first))
    }
}

impl KeystoreError {
    /// What kind of trouble it is.
    pub fn trouble(&self) -> Trouble {
        use KeystoreError as E;
        match self {
            E::BadUri { .. } | E::NoStore => Trouble::Configuration,
            E::NotDefined { .. } | E::NoValue { .. } => Trouble::Missing,
            E::Ambiguous { .. } => Trouble::Ambiguous,
            E::OtherUsage { .. }
            | E::Definition(_)
            | E::Damaged { .. }
            | E::Value { .. }
            | E::TooLong { .. } => Trouble::Data,
            E::NoIdentity { .. }
            | E::WrongIdentity { .. }
            | E::Unsafe { .. }
            | E::NotShared { .. }
            | E::Foreign { .. } => Trouble::Permission,
            E::Failed { failure, .. } => match failure {
                f if f.is_temporary() => Trouble::TryAgain,
                Failure::NotAuthenticated(_) | Failure::Denied => Trouble::Permission,
                Failure::Missing(_) => Trouble::Missing,
                _ => Trouble::Unavailable,
            },
            E::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => Trouble::Permission,
            E::Io { .. } | E::Unsupported { .. } | E::KeyringFull | E::Keyring { .. } => Trouble::Unavailable,
        }
    }
}
