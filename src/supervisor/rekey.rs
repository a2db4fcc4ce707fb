//! New keys for the disks of a running guest. Who asks for them names secrets: their values the supervisor reads from its
//! own keystores, which is also how it knows that it will be able to open the disk the next time. The order of the steps
//! is that of [`crate::volume::rekey`].
//!
//! The key slots of a raw image are changed in the image itself, which QEMU does not read again: its own way would abort
//! some versions (block/crypto.c, up to 10.0.2), and the header that it has open need not be the image's. Those of a qcow2
//! image QEMU changes, because they are within a file whose layout is QEMU's.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use nix::libc::O_NONBLOCK;
use serde_json::{Map, Value, json};
use tokio::sync::OwnedMutexGuard;
use uuid::Uuid;

use crate::domain::disk::{Engine, Format};
use crate::keystore::{KeystoreError, Keystores};
use crate::luks::UnlockError;
use crate::qemu::refusal::{self, Cause, Credential};
use crate::qmp::{QmpError, SLOW_COMMAND_DEADLINE};
use crate::secret::{SecretLookup, SecretValue};
use crate::volume::{Kdf, KeyArea, SlotId, VolumeError, is_locked};
use crate::xml::Keyword;

use super::Running;
use super::checkpoint::Checkpoint;
use super::control::api::{ControlError, Failure};
use super::control::failure::of_secrets;
use super::opened::OpenImage;

/// The right to change the keys of a guest's disks, for one client at a time.
pub type RekeyTurn = OwnedMutexGuard<()>;

/// The job in QEMU.
pub(super) const JOB: &str = "vmward-rekey";
/// The secret objects that it needs for a moment.
pub(super) const OPENER: &str = "vmward-rekey-secret0";
pub(super) const NEW: &str = "vmward-rekey-secret1";

/// Why the keys of a disk were not read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RekeyError {
    /// There is no such disk.
    #[error("the guest has no disk '{0}'")]
    NoSuchDisk(String),
    /// The disk's image is not one whose keys can be changed from here.
    #[error("the keys of the disk '{target}' cannot be changed while the guest runs: {why}")]
    NotPossible {
        /// Its target.
        target: String,
        /// Why not.
        why: &'static str,
    },
    /// There is another file at the image's path.
    #[error("{} is not the image that the guest runs from", .0.display())]
    Replaced(PathBuf),
    /// What QEMU has open cannot be seen.
    #[error("what QEMU has open cannot be seen")]
    Process(#[source] io::Error),
    /// A secret's value is not to be had.
    #[error(transparent)]
    Keystore(#[from] KeystoreError),
    /// The image.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// QEMU.
    #[error("QEMU did not change the keys of the disk")]
    Qmp(#[from] QmpError),
    /// Somebody else is at it.
    #[error("somebody else is changing the keys of this guest's disks")]
    Busy,
    /// What a client sent is no UUID, key slot or cost.
    #[error("'{0}' is not what this call takes")]
    Argument(String),
    /// The thread ended early.
    #[error("the work on the keys was broken off")]
    Aborted,
}

/// What a secret's value opens.
#[derive(Debug)]
pub struct Opened {
    /// The slots.
    pub opened: Vec<SlotId>,
    /// How many are not in use.
    pub free: usize,
}

/// A disk's image, and where it is in QEMU.
#[derive(Clone)]
struct Place {
    path: PathBuf,
    /// What QEMU got opened; `None`: it has opened the path itself.
    open: Option<OpenImage>,
    qemu_pid: u32,
    /// The node of a qcow2 image, whose keys QEMU changes.
    node: Option<String>,
}

/// The key slots of a disk that a secret's value opens.
pub async fn key_slots(running: &Running, target: &str, secret: Uuid) -> Result<Opened, RekeyError> {
    let _change = running.change().await;
    let place = Place::of(running, target)?;
    let keystores = Arc::clone(&running.keystores);
    in_thread(move || {
        let mut area = place.open()?;
        let opened = match value(&keystores, secret)? {
            Some(value) => area.opened_by(&value)?,
            None => Vec::new(),
        };
        Ok(Opened { opened, free: area.free() })
    })
    .await
}

/// Makes a key slot for a secret's value, and proves from the image that it opens it.
///
/// The future is to be run to its end, as that of [`remove_keys`].
pub async fn add_key(
    running: &Running,
    target: &str,
    secret: Uuid,
    opener: Uuid,
    kdf: Kdf,
) -> Result<(), RekeyError> {
    let _change = running.change().await;
    let place = Place::of(running, target)?;
    let keystores = Arc::clone(&running.keystores);
    let Some(node) = place.node.clone() else {
        return in_thread(move || {
            let (opener, new) = (needed(&keystores, opener)?, needed(&keystores, secret)?);
            let mut area = place.open()?;
            if area.opened_by(&opener)?.is_empty() {
                return Err(place.unlocking(UnlockError::WrongPassphrase));
            }
            let iterations = kdf.iterations(&new, area.header()).map_err(|e| place.unlocking(e))?;
            area.add(&new, iterations, &mut |_| Checkpoint::KeyArea.passed())?;
            Ok(())
        })
        .await;
    };
    let (opener, new) =
        in_thread(move || Ok((needed(&keystores, opener)?, needed(&keystores, secret)?))).await?;
    let mut change = json!({ "state": "active", "new-secret": NEW, "secret": OPENER });
    if let Some(milliseconds) = kdf.iter_time(&new) {
        change["iter-time"] = milliseconds.into();
    }
    running
        .lend(&[(OPENER, &opener), (NEW, &new)], async || amend(running, &node, &change).await)
        .await
        .map_err(|e| wrong_key(e, &place))?;
    in_thread(move || match place.open()?.opened_by(&new)?.is_empty() {
        false => Ok(()),
        true => Err(VolumeError::Unproven(place.path).into()),
    })
    .await
}

/// Removes key slots; the value of `keeper` opens another one. Those that are other slots by now stay.
pub async fn remove_keys(
    running: &Running,
    target: &str,
    slots: Vec<SlotId>,
    keeper: Uuid,
) -> Result<(), RekeyError> {
    let _change = running.change().await;
    let place = Place::of(running, target)?;
    let keystores = Arc::clone(&running.keystores);
    let node = place.node.clone();
    let by_qemu = node.is_some();
    let still = in_thread(move || {
        let mut area = place.open()?;
        let kept = area.opened_by(&needed(&keystores, keeper)?)?;
        if !kept.iter().any(|slot| !slots.contains(slot)) {
            return Err(VolumeError::Unproven(place.path).into());
        }
        if by_qemu {
            return Ok(slots.into_iter().filter(|slot| slot.is_in(area.header())).collect());
        }
        area.remove(&slots, &mut |_| Checkpoint::KeyArea.passed())?;
        area.overwrite_unused()?;
        Ok(Vec::new())
    })
    .await?;
    for slot in still {
        let change = json!({ "state": "inactive", "keyslot": slot.number });
        amend(running, node.as_deref().unwrap_or_default(), &change).await?;
    }
    Ok(())
}

/// Has QEMU change the key slots of a qcow2 image.
async fn amend(running: &Running, node: &str, change: &Value) -> Result<(), QmpError> {
    let mut encrypt = change.clone();
    encrypt["format"] = "luks".into();
    let arguments = Map::from_iter([
        ("node-name".to_owned(), node.into()),
        ("options".to_owned(), json!({ "driver": "qcow2", "encrypt": encrypt })),
    ]);
    running.qmp.run_job("x-blockdev-amend", JOB, &arguments, SLOW_COMMAND_DEADLINE).await?;
    Checkpoint::KeyArea.passed();
    Ok(())
}

fn wrong_key(error: QmpError, place: &Place) -> RekeyError {
    // The old secret opens no slot.
    match error.refusal().and_then(|(_, desc)| refusal::meaning(desc)).map(|meaning| meaning.cause) {
        Some(Cause::WrongSecret(Credential::Passphrase)) => place.unlocking(UnlockError::WrongPassphrase),
        _ => error.into(),
    }
}

impl Place {
    fn of(running: &Running, target: &str) -> Result<Self, RekeyError> {
        let configuration = running.configuration();
        let disk = configuration.domain.devices.disks.iter().find(|disk| disk.target == target);
        let disk = disk.ok_or_else(|| RekeyError::NoSuchDisk(target.to_owned()))?;
        let not = |why| RekeyError::NotPossible { target: target.to_owned(), why };
        let image = disk.image.as_ref().ok_or_else(|| not("there is no medium in it"))?;
        let encryption = image.encryption.as_ref().ok_or_else(|| not("its image is not encrypted"))?;
        if encryption.engine != Engine::Qemu {
            return Err(not("librbd encrypts it"));
        }
        let path = image.source.local_path().ok_or_else(|| not("its image is not on this host"))?;
        if image.slice.is_some() {
            return Err(not("its image is a slice of a file"));
        }
        let node = match image.format {
            Format::Raw => None,
            // Above it there may be filters, below it its file and what it stands on.
            _ => {
                let parts = configuration.disks.iter().find(|parts| parts.target == target);
                let mut nodes = parts.into_iter().flat_map(|parts| parts.nodes.iter().rev());
                let node = nodes.find(|node| node.ends_with("-format")).cloned();
                Some(node.ok_or_else(|| not("QEMU has no node of its image's format"))?)
            }
        };
        let sets =
            configuration.disks.iter().filter(|parts| parts.target == target).flat_map(|p| &p.descriptors);
        let open = sets.filter_map(|set| set.image.as_ref()).find(|open| open.path == path).cloned();
        Ok(Self { path: path.into(), open, qemu_pid: running.qemu_pid, node })
    }

    /// Opens the keys of the image, if it is the one that QEMU has open.
    fn open(&self) -> Result<KeyArea, RekeyError> {
        let file = OpenOptions::new()
            .read(true)
            // What QEMU changes is only read here.
            .write(self.node.is_none())
            .custom_flags(O_NONBLOCK)
            .open(&self.path)
            .map_err(|source| VolumeError::Io { path: self.path.clone(), what: "opened", source })?;
        if !self.is_open_in_qemu(&file).map_err(RekeyError::Process)? {
            return Err(RekeyError::Replaced(self.path.clone()));
        }
        Ok(KeyArea::of(file, &self.path)?)
    }

    /// Where QEMU's descriptors are not shown - it is another user's, or within the bounds of an earlier supervisor - the
    /// lock that it has on the image has to do.
    fn is_open_in_qemu(&self, file: &File) -> io::Result<bool> {
        if let Some(open) = &self.open {
            return open.is(file);
        }
        let image = file.metadata()?;
        let is_hidden = |e: &io::Error| e.kind() == io::ErrorKind::PermissionDenied;
        let entries = match fs::read_dir(format!("/proc/{}/fd", self.qemu_pid)) {
            Err(e) if is_hidden(&e) => return is_locked(file),
            entries => entries?,
        };
        let mut hidden = false;
        for entry in entries {
            match entry.and_then(|entry| fs::metadata(entry.path())) {
                Ok(open) if (open.dev(), open.ino()) == (image.dev(), image.ino()) => return Ok(true),
                // Descriptors come and go meanwhile.
                Ok(_) => {}
                Err(e) => hidden |= is_hidden(&e),
            }
        }
        Ok(hidden && is_locked(file)?)
    }

    fn unlocking(&self, source: UnlockError) -> RekeyError {
        VolumeError::Unlock { path: self.path.clone(), source }.into()
    }
}

/// Derivations take seconds, and keystores may: the guest's supervision goes on meanwhile.
async fn in_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RekeyError> + Send + 'static,
) -> Result<T, RekeyError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| RekeyError::Aborted)?
}

fn value(keystores: &Keystores, secret: Uuid) -> Result<Option<SecretValue>, RekeyError> {
    match needed(keystores, secret) {
        Ok(value) => Ok(Some(value)),
        Err(RekeyError::Keystore(KeystoreError::NoValue { .. })) => Ok(None),
        Err(e) => Err(e),
    }
}

fn needed(keystores: &Keystores, secret: Uuid) -> Result<SecretValue, RekeyError> {
    Ok(keystores.find(&SecretLookup::Uuid(secret), None)?.value()?)
}

/// A secret as a client names it.
pub(super) fn parse_uuid(text: &str) -> Result<Uuid, RekeyError> {
    Uuid::try_parse(text).map_err(|_| RekeyError::Argument(text.to_owned()))
}

/// Key slots as a client names them.
pub(super) fn parse_slots(slots: &[String]) -> Result<Vec<SlotId>, RekeyError> {
    slots.iter().map(|slot| slot.parse().map_err(|()| RekeyError::Argument(slot.clone()))).collect()
}

/// The cost of a key slot as a client names it.
pub(super) fn parse_kdf(word: &str) -> Result<Kdf, RekeyError> {
    Kdf::from_word(word).ok_or_else(|| RekeyError::Argument(word.to_owned()))
}

impl From<RekeyError> for ControlError {
    fn from(error: RekeyError) -> Self {
        let failure = Failure::of(&error);
        match error {
            RekeyError::NoSuchDisk(_) => {
                Self::NoSuchDevice(failure.with_hint(Some("`vmward status` shows the guest's disks")))
            }
            RekeyError::NotPossible { .. } => {
                Self::NotAllowed(failure.with_hint(Some("shut the guest down, and change them at rest")))
            }
            RekeyError::Replaced(_) | RekeyError::Argument(_) => Self::NotAllowed(failure),
            RekeyError::Keystore(e) | RekeyError::Volume(VolumeError::Keystore(e)) => {
                of_secrets(e.trouble(), failure.with_hint(e.hint()))
            }
            RekeyError::Volume(e) => {
                let failure = failure.with_hint(e.hint());
                match e {
                    VolumeError::Unlock { source: UnlockError::WrongPassphrase, .. } => {
                        Self::WrongKey(failure)
                    }
                    VolumeError::Passphrase(_) => Self::SecretUnusable(failure),
                    _ => Self::Failed(failure),
                }
            }
            RekeyError::Qmp(QmpError::Refused { .. }) => Self::QemuRefused(failure),
            RekeyError::Qmp(_) => Self::QemuUnavailable(failure),
            RekeyError::Busy => Self::Busy(failure),
            RekeyError::Process(_) | RekeyError::Aborted => Self::Failed(failure),
        }
    }
}
