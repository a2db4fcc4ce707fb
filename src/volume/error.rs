//! What goes wrong with volumes.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use crate::luks::LuksError;
use crate::secret::ValueError;

use super::Qcow2Error;

/// What went wrong with a volume.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// qemu-img is not installed.
    #[error("there is no qemu-img in PATH")]
    NoQemuImg,
    /// qemu-img could not be run, or not be waited for.
    #[error("{} could not be run", program.display())]
    Spawn {
        /// Which program.
        program: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// qemu-img failed.
    #[error("qemu-img {verb} failed ({status}): {message}")]
    QemuImg {
        /// `create`, ...
        verb: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        message: String,
    },
    /// A signal asked vmward to stop.
    #[error("stopped by {0}; nothing was left behind")]
    Interrupted(nix::sys::signal::Signal),
    /// A volume is never made over what is there.
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    /// There is nothing there.
    #[error("there is no file {}", .0.display())]
    Missing(PathBuf),
    /// A directory, a device, a symbolic link.
    #[error("{} is not a regular file but {what}", path.display())]
    NotAFile {
        /// Its path.
        path: PathBuf,
        /// "a directory", ...
        what: &'static str,
    },
    /// A guest runs from it, or another program writes it.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// There is no header in it that vmward could destroy.
    #[error("{} is not an encrypted volume", .0.display())]
    NotEncrypted(PathBuf),
    /// A file could not be read, written, ...
    #[error("{} could not be {what}", path.display())]
    Io {
        /// Its path.
        path: PathBuf,
        /// "read", "written", ...
        what: &'static str,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Its LUKS header is of no use.
    #[error("{} cannot be understood", path.display())]
    Luks {
        /// Its path.
        path: PathBuf,
        /// What is wrong with the header.
        #[source]
        source: LuksError,
    },
    /// Its qcow2 header is of no use.
    #[error("{} cannot be understood", path.display())]
    Qcow2 {
        /// Its path.
        path: PathBuf,
        /// What is wrong with the header.
        #[source]
        source: Qcow2Error,
    },
    /// The passphrase is none that QEMU takes.
    #[error("the secret's value cannot be the passphrase of a volume")]
    Passphrase(#[source] ValueError),
    /// The passphrase does not go through the pipe in one piece.
    #[error("the secret's value is too long for the passphrase of a volume, which has at most {0} bytes")]
    PassphraseTooLong(usize),
    /// The pipe for it could not be made.
    #[error("the passphrase could not be handed to qemu-img")]
    Handover(#[source] io::Error),
    /// qemu-img succeeded, but what it made is not what was asked for. It was thrown away.
    #[error("what qemu-img made is not encrypted, or not as large, as was asked for")]
    CameOutPlain,
    /// It is plain, and nobody said what its bytes mean.
    #[error("{} is not encrypted, and the format of a plain image is not guessed", .0.display())]
    FormatNotSaid(PathBuf),
    /// It is not in the format that was said.
    #[error("{} is {found}, not {said}", path.display())]
    OtherFormat {
        /// Its path.
        path: PathBuf,
        /// What it is.
        found: &'static str,
        /// What was said.
        said: String,
    },
    /// The passphrase opens no key slot.
    #[error("the secret's value is not the passphrase of {0}")]
    WrongPassphrase(String),
    /// The end of the guest's disk would be cut off.
    #[error("{} has {before} bytes, and {size} would cut off its end", path.display())]
    WouldShrink {
        /// Its path.
        path: PathBuf,
        /// What it has.
        before: u64,
        /// What was asked for.
        size: u64,
    },
    /// qemu-img succeeded, but the size is another one.
    #[error("{} has {now} bytes, not {size}", path.display())]
    OtherSize {
        /// Its path.
        path: PathBuf,
        /// What it has.
        now: u64,
        /// What was asked for.
        size: u64,
    },
    /// A request that cannot be fulfilled.
    #[error("{0}")]
    Request(String),
}

impl VolumeError {
    /// For `map_err` on a file operation.
    pub(super) fn io(path: impl Into<PathBuf>, what: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::NotFound if what == "opened" => Self::Missing(path),
            _ => Self::Io { path, what, source },
        }
    }
}
