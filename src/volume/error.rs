//! What goes wrong with volumes.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use crate::keystore::KeystoreError;
use crate::luks::{LuksError, UnlockError};
use crate::secret::ValueError;

use super::{Qcow2Error, RbdName};

/// What went wrong with a volume.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A program is not installed.
    #[error("there is no {0} in PATH")]
    NoProgram(&'static str),
    /// It could not be run, or not be waited for.
    #[error("{} could not be run", program.display())]
    Spawn {
        /// Which program.
        program: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// It failed.
    #[error("{program} {verb} failed ({status}): {message}")]
    Program {
        /// `qemu-img` or `rbd`.
        program: &'static str,
        /// `create`, ...
        verb: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        message: String,
    },
    /// A signal asked vmward to stop.
    #[error("stopped by {0}; nothing was left behind")]
    Interrupted(nix::sys::signal::Signal),
    /// A signal asked vmward to stop while keys were changed.
    #[error("stopped by {0}")]
    Stopped(nix::sys::signal::Signal),
    /// A volume is never made over what is there.
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    /// The name is taken in the cluster.
    #[error("{0} exists already")]
    ImageExists(RbdName),
    /// The cluster has no such image, or no such pool.
    #[error("there is no image {0}")]
    NoImage(RbdName),
    /// The cluster does not take the user or its key.
    #[error("the cluster of {0} does not accept this user and its secret")]
    Login(RbdName),
    /// Ceph's library takes the key for none, or cannot use its configuration.
    #[error("the cluster of {0} cannot be asked with this key and configuration")]
    NotAKey(RbdName),
    /// It has snapshots.
    #[error("{0} has snapshots, and its header is in them, too")]
    Snapshots(RbdName),
    /// A creation failed, and what it had made so far could not be removed, or a signal came while it was tried.
    #[error("the unfinished {0} could not be removed")]
    LeftBehind(RbdName, #[source] Option<Box<VolumeError>>),
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
    /// Its version of LUKS is not the one whose key slots vmward changes.
    #[error("{} is LUKS2, whose keys vmward does not change", .0.display())]
    Luks2(PathBuf),
    /// It has the old encryption of qcow2.
    #[error("{} has the old AES encryption of qcow2, which has no key slots", .0.display())]
    QcowAes(PathBuf),
    /// There is a header and nothing behind it.
    #[error("{} is a detached LUKS header: there is no data behind it", .0.display())]
    Detached(PathBuf),
    /// A passphrase does not open it, or its header is not one that is changed.
    #[error("{} was not unlocked", path.display())]
    Unlock {
        /// Its path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: UnlockError,
    },
    /// All key slots are in use.
    #[error("all key slots of {} are in use", .0.display())]
    SlotsFull(PathBuf),
    /// What was written does not open it. Nothing was removed.
    #[error("the new key does not open {}; the old one was not removed", .0.display())]
    Unproven(PathBuf),
    /// A value was to be replaced by itself.
    #[error("the new value is the secret's old one")]
    SameValue,
    /// The keystore does not keep the new value as it should.
    #[error("the keystore {0} gives back another value than it was given")]
    NotKept(String),
    /// A keystore does not do what is needed.
    #[error(transparent)]
    Keystore(#[from] KeystoreError),
    /// There is no protected memory, or no value can be made.
    #[error("there is no new value")]
    NoValue(#[source] ValueError),
    /// A request that cannot be fulfilled.
    #[error("{0}")]
    Request(String),
}

impl VolumeError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoProgram("rbd") => Some("install it (Debian: ceph-common)"),
            Self::NoProgram("cryptsetup") => {
                Some("the keys of LUKS2 are changed by it: install it (Debian: cryptsetup-bin)")
            }
            Self::NoProgram(_) => Some("install it (Debian: qemu-utils)"),
            Self::ImageExists(_) => Some("take another name; an image of a cluster is never replaced"),
            Self::NoImage(_) => Some("`rbd ls` lists a pool's images, `ceph osd lspools` the pools"),
            Self::Login(_) => Some(
                "say --ceph-user and --ceph-secret, or set the secret's right value with `vmward secret set-value`",
            ),
            Self::NotAKey(_) => Some(
                "the secret's value is what the key's base64 stands for (`ceph auth print-key client.NAME | vmward secret set-value --base64`)",
            ),
            Self::Snapshots(_) => Some("remove them first, with `rbd snap purge`"),
            Self::LeftBehind(..) => Some("once the cluster is well, remove it with `rbd rm`"),
            Self::Program { message, .. } if message.contains("Unknown") && message.contains("'rbd'") => {
                Some("this qemu-img has no driver for Ceph (Debian: qemu-block-extra)")
            }
            Self::Exists(_) => Some("take another path, or say --force to replace what is there"),
            Self::InUse(_) => Some("shut down the guest that uses it, then try again"),
            Self::FormatNotSaid(_) => Some("say it with --source-format: raw, qcow2, vmdk, vdi, vhdx or vpc"),
            Self::WouldShrink { .. } => Some("say --shrink if that is meant, once the guest uses less"),
            Self::Luks2(_) => Some("cryptsetup luksChangeKey does, and QEMU's own driver does not open it"),
            Self::QcowAes(_) => Some("convert it to LUKS: qemu-img convert can still read it"),
            Self::Detached(_) => Some("change its keys with cryptsetup luksChangeKey"),
            Self::SlotsFull(_) => {
                Some("free one that nobody needs, with cryptsetup luksKillSlot or qemu-img amend")
            }
            Self::Unlock { source: UnlockError::WrongPassphrase, .. } | Self::WrongPassphrase(_) => Some(
                "the secret's value is not this image's passphrase: set the right one with `vmward secret set-value`",
            ),
            Self::Unlock { source: UnlockError::Unusual(_), .. } => Some(
                "vmward changes the headers that QEMU and cryptsetup make; qemu-img amend may change this one",
            ),
            Self::SameValue => Some("leave the value out to have one generated"),
            Self::Program { message, .. } if message.contains("No space left") => {
                Some("make room, or let the volume grow with --preallocation off")
            }
            Self::Passphrase(_) => Some("a passphrase is UTF-8 text; `vmward secret generate` makes one"),
            _ => None,
        }
    }

    /// For `map_err` on a file operation.
    pub(super) fn io(path: impl Into<PathBuf>, what: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::NotFound if what == "opened" => Self::Missing(path),
            _ => Self::Io { path, what, source },
        }
    }
}
