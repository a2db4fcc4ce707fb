//! What goes wrong with keystores. No message has a word of a value in it.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

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
        why: String,
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
    #[error("the secret {uuid} has no value{}", place.as_ref().map_or(String::new(), |place| format!(" at {place}")))]
    NoValue {
        /// Which secret.
        uuid: Uuid,
        /// Where it should be, if not beside its definition.
        place: Option<String>,
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
    /// The directory of a store that several users share would let them do more to each other than it should.
    #[error("{} cannot be shared: {why}", path.display())]
    NotShared {
        /// The directory.
        path: PathBuf,
        /// In what way.
        why: String,
    },
    /// A file of a store that several users share is not of the one whose it should be.
    #[error("{} is not to be trusted: {why}", path.display())]
    Foreign {
        /// Which file.
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
    /// A store outside this process (a server, an agent, a token, a program) does not do what it is asked for.
    #[error("the keystore {store} {failure}{}", object.as_ref().map_or(String::new(), |o| format!(" (it was asked for {o})")))]
    Failed {
        /// Its URI.
        store: String,
        /// What it was asked for, as the store names it.
        object: Option<String>,
        /// In what way.
        failure: Failure,
        /// What the connection, the library or the system says.
        #[source]
        source: Option<Box<dyn Error + Send + Sync>>,
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

/// In what way a store outside this process fails. Each completes "the keystore URI ...".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No connection, no agent, no such library.
    #[error("cannot be reached")]
    Unreachable,
    /// The deadline passed.
    #[error("did not answer within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    /// It is there and does not work at the moment, in its own words.
    #[error("is not ready: {0}")]
    NotReady(String),
    /// It is sealed (Vault) or locked (a keyring, a token).
    #[error("is {0}")]
    Locked(&'static str),
    /// It does not accept who asks: the token, the PIN, the client certificate.
    #[error("does not accept {0}")]
    NotAuthenticated(String),
    /// It knows who asks, and says no.
    #[error("does not permit it")]
    Denied,
    /// Its certificate, or the one it is shown, is not valid: expired, of another name, of an unknown authority.
    #[error("cannot be trusted: {0}")]
    Certificate(String),
    /// What it answers makes no sense.
    #[error("gave a wrong answer: {0}")]
    BadAnswer(String),
    /// It has no such mount, token, collection.
    #[error("has no {0}")]
    Missing(String),
    /// It says that it failed, in its own words or by its exit code.
    #[error("failed: {0}")]
    Other(String),
}

impl Failure {
    /// Whether trying again, without any change here, may help.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Unreachable | Self::TimedOut(_) | Self::NotReady(_) | Self::Locked(_))
    }

    /// The failure as an error of a store.
    pub(super) fn of(self, store: &str, object: Option<&str>) -> KeystoreError {
        KeystoreError::Failed {
            store: store.to_owned(),
            object: object.map(str::to_owned),
            failure: self,
            source: None,
        }
    }
}

impl KeystoreError {
    /// The same with what the connection, the library or the system says. It must have no value in it.
    pub(super) fn because(mut self, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        if let Self::Failed { source, .. } = &mut self {
            *source = Some(cause.into());
        }
        self
    }

    /// For `map_err` on a file operation.
    pub(super) fn io(path: impl Into<PathBuf>, what: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, what, source }
    }
}
