//! The key slots of an image that nothing runs from.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use uuid::Uuid;

use crate::keystore::{KeystoreError, Keystores};
use crate::secret::{SecretLookup, SecretValue};

use super::rbd::{Held, Luks2Keys};
use super::{
    Image, ImageEncryption, ImageLock, Kdf, KeyArea, KeySlots, Rbd, RbdName, SlotId, Steps, VolumeError,
    image,
};

/// An image at rest, locked or held as long as this lives: no QEMU runs from it, and, of a file, none starts.
pub struct AtRest<'k> {
    keystores: &'k Keystores,
    path: PathBuf,
    keys: Keys,
    kdf: Kdf,
    machine_key: bool,
    _lock: Option<ImageLock>,
}

enum Keys {
    Luks1(Box<KeyArea>),
    /// Of librbd.
    Luks2(Box<Luks2Keys>),
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
        let keys = Keys::Luks1(Box::new(KeyArea::of(file, path)?));
        Ok(Self { keystores, path: path.into(), keys, kdf, machine_key, _lock: Some(lock) })
    }

    /// The same with an image of a cluster.
    pub fn in_cluster(
        keystores: &'k Keystores,
        rbd: Rc<Rbd>,
        name: RbdName,
        kdf: Kdf,
        machine_key: bool,
    ) -> Result<Self, VolumeError> {
        let path = name.path();
        let held = Held::take(rbd, name)?;
        let keys = match Image::read(held.mirror(), &path)?.encryption {
            Some(ImageEncryption::Luks2(_)) if machine_key => {
                let why =
                    "a machine key is LUKS1's; a new key that is generated makes luks2 open fast as well";
                return Err(VolumeError::Request(why.into()));
            }
            Some(ImageEncryption::Luks2(_)) => Keys::Luks2(Box::new(Luks2Keys::of(held, &path)?)),
            _ => Keys::Luks1(Box::new(KeyArea::of_held(held, &path)?)),
        };
        Ok(Self { keystores, path, keys, kdf, machine_key, _lock: None })
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
        let Some(value) = self.value(secret)? else { return Ok(Vec::new()) };
        match &mut self.keys {
            Keys::Luks1(area) => area.opened_by(&value),
            Keys::Luks2(keys) => keys.opened_by(&value),
        }
    }

    fn has_room(&mut self) -> Result<bool, VolumeError> {
        let free = match &self.keys {
            Keys::Luks1(area) => area.free(),
            Keys::Luks2(keys) => keys.free(),
        };
        Ok(free > 0)
    }

    fn add(&mut self, secret: Uuid, opener: Uuid, steps: &mut Steps<'_>) -> Result<(), VolumeError> {
        let value = self.needed(secret)?;
        let opener = self.needed(opener)?;
        match &mut self.keys {
            Keys::Luks2(keys) => keys.add(&value, &opener, self.kdf, steps),
            // The volume key is known since its slot was opened.
            Keys::Luks1(area) => {
                let iterations = self
                    .kdf
                    .iterations(&value, area.header())
                    .map_err(|source| VolumeError::Unlock { path: self.path.clone(), source })?;
                area.add(&value, iterations, steps).map(drop)
            }
        }
    }

    fn remove(&mut self, slots: &[SlotId], _keeper: Uuid, steps: &mut Steps<'_>) -> Result<(), VolumeError> {
        match &mut self.keys {
            Keys::Luks1(area) => area.remove(slots, steps),
            Keys::Luks2(keys) => keys.remove(slots, steps),
        }
    }

    fn finish(&mut self, secret: Uuid, steps: &mut Steps<'_>) -> Result<(), VolumeError> {
        let value = self.machine_key.then(|| self.needed(secret)).transpose()?;
        match &mut self.keys {
            Keys::Luks2(keys) => keys.overwrite_unused(),
            Keys::Luks1(area) => {
                area.overwrite_unused()?;
                match value {
                    Some(value) => area.make_quick(&value, steps),
                    None => Ok(()),
                }
            }
        }
    }

    fn path(&self) -> &Path {
        &self.path
    }
}
