//! What goes wrong with a running domain.

use std::io;
use std::path::PathBuf;

use crate::domain::devices::password::PasswordProtocol;
use crate::qemu::SecretObject;
use crate::qemu::refusal::WrongSecret;
use crate::qmp::QmpError;
use crate::secret::ValueError;

use super::NetworkError;
use super::helpers::HelperFailure;
use super::process::Ending;
use super::{ConfinementError, ImageError};

/// What went wrong with a domain that runs, or was to run.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// Another supervisor has the domain.
    #[error("the guest '{name}' is running already, under another vmward")]
    AlreadyRunning {
        /// The guest.
        name: String,
    },
    /// The lib dir, or the directory above it, is open to others.
    #[error("{} is not safe to keep a guest's key in: {why}", path.display())]
    UnsafeDirectory {
        /// Which directory.
        path: PathBuf,
        /// In what way.
        why: &'static str,
    },
    /// A file, directory or socket of the lib dir could not be made, read or removed.
    #[error("{} could not be {what}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// "made", "read", ...
        what: &'static str,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The state file is not one.
    #[error("{} is damaged", path.display())]
    DamagedState {
        /// Which file.
        path: PathBuf,
        /// In what way.
        #[source]
        source: serde_json::Error,
    },
    /// A thread of QEMU could not be put on the processors that the XML names.
    #[error("{what} cannot run on the processors that the guest's XML names for it")]
    Pin {
        /// Which one.
        what: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// There is no such user.
    #[error("there is no user '{0}'")]
    NoSuchUser(String),
    /// Only root can start QEMU as somebody else.
    #[error("only root can run QEMU as another user ('{0}')")]
    NotRoot(String),
    /// A disk's image could not be opened.
    #[error("the guest is not started")]
    Image(#[from] ImageError),
    /// There is no memory for the master key.
    #[error("there is no master key")]
    MasterKey(#[source] ValueError),
    /// The file with the master key does not hold one.
    #[error("{} does not hold a master key", .0.display())]
    NoMasterKey(PathBuf),
    /// QEMU did not take a new master key.
    #[error("QEMU did not take a new master key")]
    NewKey(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A secret that the command line needs was not resolved.
    #[error("there is no value for QEMU's secret object {0}")]
    NoSecret(String),
    /// The guest is described with something that vmward cannot give it.
    #[error("vmward does not provide {0} yet")]
    Unavailable(String),
    /// There is no tap device for an interface.
    #[error("the guest cannot be connected to its network")]
    Network(#[source] NetworkError),
    /// The program could not be started at all.
    #[error("{} could not be started", program.display())]
    Spawn {
        /// QEMU.
        program: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A process could not be watched.
    #[error("the process of {program} cannot be watched")]
    Watch {
        /// Its program.
        program: &'static str,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A program that serves a device of the guest is not there.
    #[error("there is no {0} on this host")]
    NoHelper(&'static str),
    /// A program that serves a device of the guest did not start.
    #[error("{program}, which is to give the guest {gives}, {why}{}", said(last_words))]
    Helper {
        /// The program.
        program: &'static str,
        /// What it is needed for.
        gives: String,
        /// What became of it.
        why: HelperFailure,
        /// The last lines of what it said.
        last_words: Vec<String>,
    },
    /// A secret is too long for the program that is to get it.
    #[error("{what} is longer than {max} bytes")]
    LongKey {
        /// What it is, as in "the TPM's key".
        what: &'static str,
        /// What the program gets.
        max: usize,
    },
    /// A secret is too long for a display's password.
    #[error("the secret of the guest's {} display is too long: its passwords have {} bytes at most", .0.name(), .0.longest_password())]
    LongPassword(PasswordProtocol),
    /// QEMU ended before the guest ran.
    #[error("QEMU did not start the guest: it {ending}{}", said(last_words))]
    Died {
        /// How it ended.
        ending: Ending,
        /// The last lines of what it said.
        last_words: Vec<String>,
    },
    /// QEMU did not do what is needed to start the guest.
    #[error("QEMU did not start the guest{}", said(last_words))]
    Start {
        /// On the monitor.
        #[source]
        source: QmpError,
        /// The last lines of what it said besides.
        last_words: Vec<String>,
    },
    /// A disk did not open with its secret.
    #[error("QEMU did not start the guest: {wrong}{}", said(last_words))]
    WrongSecret {
        /// Which one.
        wrong: WrongSecret,
        /// The last lines of what QEMU said.
        last_words: Vec<String>,
    },
    /// There is a QEMU from before, and it cannot be taken back.
    #[error(
        "QEMU (process {pid}) of an earlier vmward still runs this guest, and cannot be taken back: {why}"
    )]
    Stranded {
        /// Its process id.
        pid: u32,
        /// Why not.
        why: String,
    },
    /// The process could not be closed to others.
    #[error("this process cannot be kept from being looked into")]
    Harden(#[source] nix::Error),
    /// The process keeps rights that it has no use for.
    #[error("this process cannot be confined")]
    Confinement(#[source] ConfinementError),
    /// The signals of the process cannot be received.
    #[error("signals cannot be received")]
    Signals(#[source] io::Error),
}

/// What a process said at last, behind what is said of it.
pub(super) fn said(last_words: &[String]) -> String {
    if last_words.is_empty() {
        return String::new();
    }
    format!("; it said:\n  {}", last_words.join("\n  "))
}

impl SupervisorError {
    /// For `map_err` on a file operation.
    pub(super) fn io(path: impl Into<PathBuf>, what: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, what, source }
    }
    /// With more that was said, by others, if it is about a process that ended.
    pub(super) fn with_words(mut self, words: Vec<String>) -> Self {
        if let Self::Died { last_words, .. } | Self::Start { last_words, .. } = &mut self {
            last_words.extend(words);
        }
        self
    }

    /// With the secret that is to blame, if that is what was said. `secrets` are all that QEMU got, with whose they are.
    pub(super) fn blaming<'a>(self, secrets: impl IntoIterator<Item = (&'a SecretObject, String)>) -> Self {
        let said = match &self {
            Self::Died { last_words, .. } | Self::Start { last_words, .. } => last_words.concat(),
            _ => return self,
        };
        match (WrongSecret::find(&said, secrets), self) {
            (Some(wrong), Self::Died { last_words, .. } | Self::Start { last_words, .. }) => {
                Self::WrongSecret { wrong, last_words }
            }
            (_, this) => this,
        }
    }
}
