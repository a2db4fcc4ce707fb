//! The key slots of LUKS2, as librbd makes it. cryptsetup changes them in a copy of the key area; what has changed goes to the
//! cluster in an order in which the volume opens after each step.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::luks::{Luks2Header, Luks2Slot, MIN_ITERATIONS, UnlockError};
use crate::secret::SecretValue;

use super::super::delete::overwrite;
use super::super::qemu_img::Program;
use super::super::{Image, ImageEncryption, Kdf, SlotId, Step, Steps, VolumeError};
use super::Held;

/// How many key slots there are at most (`LUKS2_KEYSLOTS_MAX` of cryptsetup's lib/luks2/luks2.h).
const SLOTS: usize = 32;
/// How cryptsetup ends when a passphrase opens nothing (cryptsetup(8), RETURN CODES).
const WRONG_PASSPHRASE: i32 = 2;

/// The keys of a LUKS2 volume of a cluster.
pub(in super::super) struct Luks2Keys {
    held: Held,
    path: PathBuf,
    cryptsetup: Program,
    header: Luks2Header,
}

impl Luks2Keys {
    /// The keys of an image.
    pub(in super::super) fn of(held: Held, path: &Path) -> Result<Self, VolumeError> {
        let cryptsetup = Program::find("cryptsetup")?;
        let header = header(held.mirror(), path)?;
        Ok(Self { held, path: path.into(), cryptsetup, header })
    }

    /// The slots that a passphrase opens.
    pub(in super::super) fn opened_by(&self, passphrase: &SecretValue) -> Result<Vec<SlotId>, VolumeError> {
        let mut opened = Vec::new();
        for slot in &self.header.slots {
            if self.opens(slot, passphrase)? {
                opened.extend(id(slot));
            }
        }
        Ok(opened)
    }

    /// How many slots are free.
    pub(in super::super) fn free(&self) -> usize {
        SLOTS.saturating_sub(self.header.slots.len())
    }

    /// Gives a passphrase a slot, and proves from the cluster that it opens it; another one opens the volume already.
    pub(in super::super) fn add(
        &mut self,
        passphrase: &SecretValue,
        opener: &SecretValue,
        kdf: Kdf,
        steps: &mut Steps<'_>,
    ) -> Result<(), VolumeError> {
        let before = self.header.clone();
        let iterations = MIN_ITERATIONS.to_string();
        let add = self.held.change(&self.cryptsetup, "luksAddKey", |call, image| {
            call.arg("--batch-mode");
            if kdf.is_fast(passphrase) {
                call.arg("--pbkdf").arg("pbkdf2").arg("--pbkdf-force-iterations").arg(&iterations);
            }
            let opener = call.value(opener)?;
            call.arg("--key-file").arg(opener).arg(image);
            let new = call.value(passphrase)?;
            call.arg(new);
            Ok(())
        });
        add.map_err(|e| self.told(e))?;
        let changed = header(self.held.mirror(), &self.path)?;
        let new = changed.slots.iter().find(|slot| !before.slots.contains(slot));
        let area = new.ok_or_else(|| VolumeError::Unproven(self.path.clone()))?.area.clone();
        steps(Step::WriteMaterial);
        self.held.put(area)?;
        steps(Step::ActivateSlot);
        self.held.put(changed.headers.clone())?;
        steps(Step::Prove);
        self.held.get()?;
        self.header = header(self.held.mirror(), &self.path)?;
        let is_open = |slot: &Luks2Slot| Ok(!before.slots.contains(slot) && self.opens(slot, passphrase)?);
        match self.header.slots.iter().map(is_open).find(|open| !matches!(open, Ok(false))) {
            Some(proven) => proven.map(drop),
            None => Err(VolumeError::Unproven(self.path.clone())),
        }
    }

    /// Takes slots out of use and overwrites their key material. Those that are other slots by now stay, and so does the
    /// last one.
    pub(in super::super) fn remove(
        &mut self,
        slots: &[SlotId],
        steps: &mut Steps<'_>,
    ) -> Result<(), VolumeError> {
        let those = |slot: &&Luks2Slot| id(slot).is_some_and(|id| slots.contains(&id));
        for slot in self.header.slots.iter().filter(those).cloned().collect::<Vec<_>>() {
            if self.header.slots.len() < 2 {
                return Err(VolumeError::Unproven(self.path.clone()));
            }
            let kill = self.held.change(&self.cryptsetup, "luksKillSlot", |call, image| {
                call.arg("--batch-mode").arg(image).arg(slot.number.to_string());
                Ok(())
            });
            kill.map_err(|e| self.told(e))?;
            self.header = header(self.held.mirror(), &self.path)?;
            steps(Step::DeactivateSlot);
            self.held.put(self.header.headers.clone())?;
            steps(Step::OverwriteMaterial);
            self.overwrite(slot.area)?;
        }
        Ok(())
    }

    /// Overwrites what is between the areas of the slots that are in use: somebody may have stopped halfway.
    pub(in super::super) fn overwrite_unused(&self) -> Result<(), VolumeError> {
        let mut used: Vec<_> = self.header.slots.iter().map(|slot| slot.area.clone()).collect();
        used.sort_by_key(|area| area.start);
        used.push(self.held.len()..self.held.len());
        let mut at = self.header.headers.end;
        for area in used {
            if let Some(written) = written(self.held.mirror(), at..area.start, &self.path)? {
                self.overwrite(written)?;
            }
            at = at.max(area.end);
        }
        Ok(())
    }

    fn opens(&self, slot: &Luks2Slot, passphrase: &SecretValue) -> Result<bool, VolumeError> {
        let tried = self.held.change(&self.cryptsetup, "open", |call, image| {
            let passphrase = call.value(passphrase)?;
            call.arg("--test-passphrase").arg("--key-slot").arg(slot.number.to_string());
            call.arg("--key-file").arg(passphrase).arg(image);
            Ok(())
        });
        match tried {
            Ok(()) => Ok(true),
            Err(VolumeError::Program { status, .. }) if status.code() == Some(WRONG_PASSPHRASE) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Random bytes: no holes that keep the old ones.
    fn overwrite(&self, area: Range<u64>) -> Result<(), VolumeError> {
        overwrite(self.held.mirror(), area.start, area.end)
            .map_err(VolumeError::io(&self.path, "overwritten"))?;
        self.held.put(area)
    }

    fn told(&self, error: VolumeError) -> VolumeError {
        match error {
            VolumeError::Program { status, .. } if status.code() == Some(WRONG_PASSPHRASE) => {
                VolumeError::WrongPassphrase(self.path.display().to_string())
            }
            error => error,
        }
    }
}

fn id(slot: &Luks2Slot) -> Option<SlotId> {
    SlotId::with_salt(slot.number, &slot.salt)
}

fn header(file: &File, path: &Path) -> Result<Luks2Header, VolumeError> {
    match Image::read(file, path)?.encryption {
        Some(ImageEncryption::Luks2(header)) if header.is_whole() => Ok(header),
        Some(ImageEncryption::Luks2(_)) => Err(VolumeError::Unlock {
            path: path.into(),
            source: UnlockError::Unusual("its JSON is not what is known of LUKS2"),
        }),
        _ => Err(VolumeError::NotEncrypted(path.into())),
    }
}

/// From the first to the last byte of a part that are not zero.
fn written(file: &File, part: Range<u64>, path: &Path) -> Result<Option<Range<u64>>, VolumeError> {
    let len = usize::try_from(part.end.saturating_sub(part.start)).unwrap_or_default();
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, part.start).map_err(VolumeError::io(path, "read"))?;
    let first = bytes.iter().position(|b| *b != 0);
    let last = bytes.iter().rposition(|b| *b != 0);
    Ok(first.zip(last).map(|(first, last)| part.start + first as u64..part.start + last as u64 + 1))
}
