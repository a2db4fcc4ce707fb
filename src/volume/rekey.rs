//! A volume's secret gets a new value, and the volume a key slot for it: in an order in which there is always a value in
//! the keystore that opens the volume, wherever it is cut off, and in which the next run finds what there was.
//!
//! The new value is kept beside the old one as a secret of its own until all is done. Its UUID follows from that of the
//! volume's secret, so that it is found again; its usage says which key slots it is to replace, which nobody could tell
//! once the old value is gone. The secret itself gets the new value when the slot for it is there and has opened, and the
//! old slot goes only when the secret's value has opened the new one.

use uuid::Uuid;

use crate::keystore::{KeystoreError, Keystores, SecretFound, Trouble};
use crate::luks::UnlockError;
use crate::secret::{SecretDefinition, SecretLookup, SecretValue, Usage, UsageKind};

use super::{SlotId, Step, Steps, VolumeError};

/// What the UUID of a new value's secret is made of, besides the UUID of the volume's (RFC 9562, version 5).
const NEW_VALUE: &[u8] = b"vmward volume rekey";

/// Whoever changes the key slots of a volume: this process, or the supervisor of the guest that runs from it. Values are
/// named by their secrets, and read from the keystore by whoever needs them.
pub trait KeySlots {
    /// What goes wrong.
    type Error: From<VolumeError>;
    /// The slots that a secret's value opens; of one that has no value, none.
    fn opened(&mut self, secret: Uuid) -> Result<Vec<SlotId>, Self::Error>;
    /// Whether there is a slot that is not in use.
    fn has_room(&mut self) -> Result<bool, Self::Error>;
    /// Makes a slot for a secret's value, and proves that it opens it; another one's value opens the volume already.
    fn add(&mut self, secret: Uuid, opener: Uuid, steps: &mut Steps<'_>) -> Result<(), Self::Error>;
    /// Removes slots, none of which is the last that this secret's value opens.
    fn remove(&mut self, slots: &[SlotId], keeper: Uuid, steps: &mut Steps<'_>) -> Result<(), Self::Error>;
    /// What is left to do with the slots once the secret's value is the only one of its own.
    fn finish(&mut self, secret: Uuid, steps: &mut Steps<'_>) -> Result<(), Self::Error>;
    /// The volume, for messages.
    fn path(&self) -> &std::path::Path;
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rekeyed {
    /// The secret has a new value.
    Anew,
    /// An earlier run was completed, whose new value the secret has now.
    Completed,
}

/// How an earlier run went on.
enum Earlier {
    /// To its end.
    Completed,
    /// It was undone, because its value cannot be read here.
    Undone,
}

/// Gives a volume's secret a new value, `value` or a random one. If an earlier run was cut off, that one is completed, and
/// that is all unless there is a `value`.
pub fn rekey<S: KeySlots>(
    keystores: &Keystores,
    secret: &SecretFound<'_>,
    value: Option<&SecretValue>,
    slots: &mut S,
    steps: &mut Steps<'_>,
) -> Result<Rekeyed, S::Error> {
    let mut rekey = Rekey { keystores, secret, slots, steps };
    let earlier = match rekey.find_new()? {
        Some(new) => Some(rekey.resume(&new)?),
        None => None,
    };
    let completed = matches!(earlier, Some(Earlier::Completed));
    let generated;
    let (value, given) = match value {
        Some(value) => (value, true),
        None if completed => return Ok(Rekeyed::Completed),
        None => {
            generated = SecretValue::random_passphrase().map_err(VolumeError::NoValue)?;
            (&generated, false)
        }
    };
    match rekey.begin(value, given)? {
        Begun::Done => Ok(Rekeyed::Anew),
        Begun::SameValue if completed => Ok(Rekeyed::Completed),
        Begun::SameValue => Err(VolumeError::SameValue.into()),
    }
}

/// Whether a run was cut off that the next one completes.
pub fn is_unfinished(keystores: &Keystores, secret: Uuid) -> bool {
    keystores.find(&SecretLookup::Uuid(new_uuid(secret)), None).is_ok()
}

/// How a new run went.
enum Begun {
    Done,
    SameValue,
}

struct Rekey<'a, 's, S> {
    keystores: &'a Keystores,
    secret: &'a SecretFound<'a>,
    slots: &'a mut S,
    steps: &'a mut Steps<'s>,
}

impl<'a, S: KeySlots> Rekey<'a, '_, S> {
    fn uuid(&self) -> Uuid {
        self.secret.definition.uuid
    }

    /// The new value of a run that was cut off.
    fn find_new(&self) -> Result<Option<SecretFound<'a>>, S::Error> {
        match self.keystores.find(&SecretLookup::Uuid(new_uuid(self.uuid())), None) {
            Ok(found) => Ok(Some(found)),
            Err(KeystoreError::NotDefined { .. }) => Ok(None),
            Err(e) => Err(VolumeError::from(e).into()),
        }
    }

    fn begin(&mut self, value: &SecretValue, given: bool) -> Result<Begun, S::Error> {
        value.as_passphrase().map_err(VolumeError::Passphrase)?;
        let old = self.slots.opened(self.uuid())?;
        if old.is_empty() {
            return Err(self.wrong_value());
        }
        if !self.slots.has_room()? {
            return Err(VolumeError::SlotsFull(self.slots.path().to_owned()).into());
        }
        (self.steps)(Step::Remember);
        let new = self.remember(value, &old)?;
        let mut is_open = false;
        if given {
            // Whoever chose it may have chosen it before.
            let opened = self.slots.opened(new.definition.uuid)?;
            if opened.iter().any(|slot| old.contains(slot)) {
                forget(&new)?;
                return Ok(Begun::SameValue);
            }
            is_open = !opened.is_empty();
        }
        if !is_open {
            self.slots.add(new.definition.uuid, self.uuid(), self.steps)?;
        }
        self.replace(value)?;
        self.finish(&new)?;
        Ok(Begun::Done)
    }

    /// Keeps the new value in the store of the volume's secret, for those who can read that one.
    fn remember(&self, value: &SecretValue, old: &[SlotId]) -> Result<SecretFound<'a>, VolumeError> {
        let definition = new_definition(&self.secret.definition, old);
        self.secret.store.define(&definition)?;
        let new = self.keystores.secret(self.secret.store, definition);
        if let Err(e) = new.set_value(value).map_err(VolumeError::from).and_then(|()| check_kept(&new, value))
        {
            // Of the two errors the first one says what is wrong.
            let _ = forget(&new);
            return Err(e);
        }
        Ok(new)
    }

    /// The secret gets the new value, in the place of the old one. Whether it did is seen by what opens then.
    fn replace(&mut self, value: &SecretValue) -> Result<(), VolumeError> {
        (self.steps)(Step::SetValue);
        self.secret.set_value(value)?;
        Ok(())
    }

    /// Goes on where a run was cut off.
    fn resume(&mut self, new: &SecretFound<'_>) -> Result<Earlier, S::Error> {
        let by_old = self.slots.opened(self.uuid())?;
        let by_new = self.slots.opened(new.definition.uuid)?;
        if by_old.is_empty() && by_new.is_empty() {
            return Err(self.wrong_value());
        }
        if !by_old.iter().any(|slot| by_new.contains(slot)) {
            // The secret has the old value yet, or, in a store that does not replace a value in one step, none.
            let value = match new.value() {
                Ok(value) => value,
                // Who makes secrets need not be able to read them; nor need one have got its value.
                Err(e) if !by_old.is_empty() && is_out_of_reach(&e) => {
                    self.slots.remove(&by_new, self.uuid(), self.steps)?;
                    forget(new)?;
                    return Ok(Earlier::Undone);
                }
                Err(e) => return Err(VolumeError::from(e).into()),
            };
            if by_new.is_empty() {
                self.slots.add(new.definition.uuid, self.uuid(), self.steps)?;
            }
            self.replace(&value)?;
        }
        self.finish(new)?;
        Ok(Earlier::Completed)
    }

    /// Removes what the new value replaces. What opens the volume is what the keystore has as the secret's value now.
    fn finish(&mut self, new: &SecretFound<'_>) -> Result<(), S::Error> {
        let kept = self.slots.opened(self.uuid())?;
        let mut old = replaced(&new.definition);
        if kept.is_empty() || (!old.is_empty() && kept.iter().all(|slot| old.contains(slot))) {
            return Err(VolumeError::Unproven(self.slots.path().to_owned()).into());
        }
        old.retain(|slot| !kept.contains(slot));
        self.slots.remove(&old, self.uuid(), self.steps)?;
        self.slots.finish(self.uuid(), self.steps)?;
        (self.steps)(Step::Forget);
        forget(new)?;
        Ok(())
    }

    fn wrong_value(&self) -> S::Error {
        let path = self.slots.path().to_owned();
        VolumeError::Unlock { path, source: UnlockError::WrongPassphrase }.into()
    }
}

/// Whether a store gives back what it was given, if this user can read it at all.
fn check_kept(new: &SecretFound<'_>, value: &SecretValue) -> Result<(), VolumeError> {
    match new.value() {
        Ok(kept) if kept == *value => Ok(()),
        Ok(_) => Err(VolumeError::NotKept(new.store.uri().to_owned())),
        Err(e) if e.trouble() == Trouble::Permission => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn is_out_of_reach(error: &KeystoreError) -> bool {
    error.trouble() == Trouble::Permission || matches!(error, KeystoreError::NoValue { .. })
}

/// Forgets a new value that the secret itself has now, or that opens nothing.
fn forget(new: &SecretFound<'_>) -> Result<(), VolumeError> {
    match new.store.undefine(&new.definition) {
        Ok(()) | Err(KeystoreError::NotDefined { .. }) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn new_uuid(secret: Uuid) -> Uuid {
    Uuid::new_v5(&secret, NEW_VALUE)
}

/// The secret that keeps the new value of another one until it replaces these slots.
fn new_definition(secret: &SecretDefinition, old: &[SlotId]) -> SecretDefinition {
    let slots: Vec<String> = old.iter().map(SlotId::to_string).collect();
    let id = format!("new value of {} for key slots {}", secret.uuid, slots.join(","));
    SecretDefinition {
        uuid: new_uuid(secret.uuid),
        ephemeral: secret.ephemeral,
        private: secret.private,
        description: None,
        value_uri: None,
        recipients: secret.recipients.clone(),
        usage: Some(Usage { kind: UsageKind::Volume, id }),
    }
}

/// The slots that a new value replaces.
fn replaced(new: &SecretDefinition) -> Vec<SlotId> {
    let id = new.usage.as_ref().map_or("", |usage| usage.id.as_str());
    let slots = id.rsplit(' ').next().unwrap_or_default();
    slots.split(',').filter_map(|slot| slot.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_replaced_is_found_again() {
        let secret = SecretDefinition::of_uuid(Uuid::from_u128(1));
        let old: Vec<SlotId> =
            ["0:00000000000000ff", "7:ffffffffffffffff"].iter().map(|s| s.parse().unwrap()).collect();
        let new = new_definition(&secret, &old);
        assert_eq!(new.uuid, new_uuid(secret.uuid));
        assert_eq!(new.check_text(), Ok(()));
        assert_eq!(replaced(&new), old);
        assert_ne!(new_definition(&SecretDefinition::of_uuid(Uuid::from_u128(2)), &old).uuid, new.uuid);
        assert!(replaced(&secret).is_empty());
        let usage = |id: &str| Some(Usage { kind: UsageKind::Volume, id: id.to_owned() });
        for id in ["", "0", "slots 0:1", "slots 0:00000000000000fg", "slots :,:,"] {
            assert!(replaced(&SecretDefinition { usage: usage(id), ..secret.clone() }).is_empty(), "{id}");
        }
    }
}
