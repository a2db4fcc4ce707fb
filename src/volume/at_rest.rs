//! The key slots of an image that nothing runs from.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::keystore::{KeystoreError, Keystores};
use crate::secret::{SecretLookup, SecretValue};

use super::{ImageLock, Kdf, KeyArea, KeySlots, SlotId, Steps, VolumeError, image};

/// An image at rest, locked as long as this lives: no QEMU runs from it, and none starts.
pub struct AtRest<'k> {
    keystores: &'k Keystores,
    path: PathBuf,
    area: KeyArea,
    kdf: Kdf,
    machine_key: bool,
    _lock: ImageLock,
}

impl<'k> AtRest<'k> {
    /// Opens an image, whose secrets are in these keystores. `machine_key`: its one key is for machines, and is to open
    /// it as fast as can be.
    pub fn open(
        keystores: &'k Keystores,
        path: &Path,
        kdf: Kdf,
        machine_key: bool,
    ) -> Result<Self, VolumeError> {
        let file = image::open(path, true)?;
        let lock = ImageLock::take(&file, path)?;
        let area = KeyArea::of(file, path)?;
        Ok(Self { keystores, path: path.into(), area, kdf, machine_key, _lock: lock })
    }

    /// What is known of its keys.
    pub fn area(&self) -> &KeyArea {
        &self.area
    }

    fn value(&self, secret: Uuid) -> Result<Option<SecretValue>, VolumeError> {
        match self.keystores.find(&SecretLookup::Uuid(secret), None).and_then(|found| found.value()) {
            Ok(value) => Ok(Some(value)),
            Err(KeystoreError::NoValue { .. }) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn needed(&self, secret: Uuid) -> Result<SecretValue, VolumeError> {
        self.value(secret)?.ok_or(VolumeError::Keystore(KeystoreError::NoValue { uuid: secret, place: None }))
    }
}

impl KeySlots for AtRest<'_> {
    type Error = VolumeError;

    fn opened(&mut self, secret: Uuid) -> Result<Vec<SlotId>, VolumeError> {
        match self.value(secret)? {
            Some(value) => self.area.opened_by(&value),
            None => Ok(Vec::new()),
        }
    }

    fn has_room(&mut self) -> Result<bool, VolumeError> {
        Ok(self.area.free() > 0)
    }

    fn add(&mut self, secret: Uuid, _opener: Uuid, steps: &mut Steps<'_>) -> Result<(), VolumeError> {
        let value = self.needed(secret)?;
        let iterations = self
            .kdf
            .iterations(&value, self.area.header())
            .map_err(|source| VolumeError::Unlock { path: self.path.clone(), source })?;
        self.area.add(&value, iterations, steps).map(drop)
    }

    fn remove(&mut self, slots: &[SlotId], _keeper: Uuid, steps: &mut Steps<'_>) -> Result<(), VolumeError> {
        self.area.remove(slots, steps)
    }

    fn finish(&mut self, secret: Uuid, steps: &mut Steps<'_>) -> Result<(), VolumeError> {
        self.area.overwrite_unused()?;
        if self.machine_key {
            let value = self.needed(secret)?;
            self.area.make_quick(&value, steps)?;
        }
        Ok(())
    }

    fn path(&self) -> &Path {
        &self.path
    }
}
