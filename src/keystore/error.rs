//! What goes wrong with keystores. No message has a word of a value in it.

use std::io;
use std::path::PathBuf;

use uuid::Uuid;

use crate::secret::{DefinitionError, SecretLookup, Usage, UsageKind, ValueError};

/// What went wrong with a keystore or one of its secrets.
#[derive(Debug, thiserror::Error)]
pub enum KeystoreError {
    /// The store cannot do that at all.
    #[error("the keystore {store} cannot {what}")]
    Unsupported {
        /// Its URI.
        store: String,
        /// "set a value", "list", ...
        what: &'static str,
    },
    /// There is no such kind of keystore, or its URI lacks something.
    #[error("'{uri}' is not a keystore: {why}")]
    BadUri {
        /// As it was given.
        uri: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Only the kernel keyring is configured, and the secret is to last.
    #[error("no configured keystore keeps secrets beyond the next boot")]
    NoStore,
    /// No store has it.
    #[error("no {}secret with {lookup} is defined", kind.map_or(String::new(), |k| format!("{} ", k.as_str())))]
    NotDefined {
        /// What was looked for.
        lookup: SecretLookup,
        /// Of which kind.
        kind: Option<UsageKind>,
    },
    /// The usage was given without its kind, and secrets of several kinds have it.
    #[error("more than one secret has the {lookup}: {}", uuids.iter().map(Uuid::to_string).collect::<Vec<_>>().join(", "))]
    Ambiguous {
        /// What was looked for.
        lookup: SecretLookup,
        /// What was found.
        uuids: Vec<Uuid>,
    },
    /// It is defined, but its value was never set.
    #[error("the secret {uuid} has no value")]
    NoValue {
        /// Which secret.
        uuid: Uuid,
    },
    /// It is for something else.
    #[error("the secret {uuid} is for {has}; a secret for {} is needed here", needs.as_str())]
    OtherUsage {
        /// Which secret.
        uuid: Uuid,
        /// What it is for.
        has: Usage,
        /// What it would have to be for.
        needs: UsageKind,
    },
    /// libvirt's rules for definitions forbid it.
    #[error("the secret cannot be defined")]
    Definition(#[source] DefinitionError),
    /// Its value is in the store, the key to it is not to be had.
    #[error("there is no key to decrypt the value of the secret {uuid}")]
    NoIdentity {
        /// Which secret.
        uuid: Uuid,
        /// The places where a key was looked for.
        tried: Vec<String>,
    },
    /// Its value is in the store, encrypted to another key.
    #[error("the value of the secret {uuid} is encrypted to another key than the one in {}", tried.join(" and in "))]
    WrongIdentity {
        /// Which secret.
        uuid: Uuid,
        /// Where the keys came from.
        tried: Vec<String>,
    },
    /// A file of the store is not what it should be.
    #[error("{} is damaged: {why}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// In what way.
        why: String,
    },
    /// A file of the store is open to people it should not be open to.
    #[error("{} is not safe to use: {why}", path.display())]
    Unsafe {
        /// Which file or directory.
        path: PathBuf,
        /// In what way.
        why: String,
    },
    /// A file of the store could not be read or written.
    #[error("{} could not be {what}", path.display())]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// "read", "written", ...
        what: &'static str,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The kernel's limit on this user's keys is reached.
    #[error("the kernel keyring of this user is full")]
    KeyringFull,
    /// The kernel keyring does not do what it should.
    #[error("the kernel keyring could not {what} ({why})")]
    Keyring {
        /// "be read", ...
        what: &'static str,
        /// What the kernel says.
        why: String,
    },
    /// The value does not fit the store.
    #[error("the value of the secret {uuid} is too long for {store}, which takes {longest} bytes")]
    TooLong {
        /// Which secret.
        uuid: Uuid,
        /// The store's URI.
        store: String,
        /// What it takes.
        longest: usize,
    },
    /// The value is not to be had, or not to be kept.
    #[error("the value of the secret {uuid} cannot be used")]
    Value {
        /// Which secret.
        uuid: Uuid,
        /// What is wrong with it.
        #[source]
        source: ValueError,
    },
}

impl KeystoreError {
    /// For `map_err` on a file operation.
    pub(super) fn io(path: impl Into<PathBuf>, what: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, what, source }
    }
}
