//! Key slots by name, and the steps in which they change.

use std::fmt;
use std::str::FromStr;

use crate::luks::Luks1Header;

/// A key slot: its number, and the start of its salt, by which it is told from what has that number later. Written
/// `2:0011223344556677`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotId {
    /// Its number, from 0.
    pub number: usize,
    mark: u64,
}

impl SlotId {
    /// The slot of that number, if it is in use.
    pub fn of(header: &Luks1Header, number: usize) -> Option<Self> {
        let slot = header.slots.get(number).filter(|slot| slot.active)?;
        Self::with_salt(number, &slot.salt)
    }

    /// The slot of that number, whose salt this is.
    pub(super) fn with_salt(number: usize, salt: &[u8]) -> Option<Self> {
        Some(Self { number, mark: u64::from_be_bytes(*salt.first_chunk()?) })
    }

    /// Whether it is still that slot.
    pub fn is_in(self, header: &Luks1Header) -> bool {
        Self::of(header, self.number) == Some(self)
    }
}

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:016x}", self.number, self.mark)
    }
}

impl FromStr for SlotId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (number, mark) = text.split_once(':').ok_or(())?;
        let id = Self {
            number: number.parse().map_err(drop)?,
            mark: u64::from_str_radix(mark, 16).map_err(drop)?,
        };
        // One way to write it, as the salt that it is compared with.
        if id.to_string() == text { Ok(id) } else { Err(()) }
    }
}

/// What is about to be done; wherever it is cut off, the secret's value opens the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The new value goes into the keystore, beside the old one.
    Remember,
    /// The volume key, encrypted under the new value, goes into a free slot.
    WriteMaterial,
    /// The slot becomes one that is in use.
    ActivateSlot,
    /// It is read again and opened.
    Prove,
    /// The secret gets the new value.
    SetValue,
    /// A slot goes out of use.
    DeactivateSlot,
    /// Its key material is overwritten.
    OverwriteMaterial,
    /// A copy of the header is made, before the digest changes.
    KeepHeader,
    /// The digest of the volume key becomes a cheap one.
    WriteDigest,
    /// The copy goes.
    DropHeader,
    /// What the keystore remembered goes.
    Forget,
}

impl Step {
    /// All of them, in the order in which they begin.
    pub const ALL: [Self; 11] = [
        Self::Remember,
        Self::WriteMaterial,
        Self::ActivateSlot,
        Self::Prove,
        Self::SetValue,
        Self::DeactivateSlot,
        Self::OverwriteMaterial,
        Self::KeepHeader,
        Self::WriteDigest,
        Self::DropHeader,
        Self::Forget,
    ];

    /// Its name, for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Remember => "remember",
            Self::WriteMaterial => "write-material",
            Self::ActivateSlot => "activate-slot",
            Self::Prove => "prove",
            Self::SetValue => "set-value",
            Self::DeactivateSlot => "deactivate-slot",
            Self::OverwriteMaterial => "overwrite-material",
            Self::KeepHeader => "keep-header",
            Self::WriteDigest => "write-digest",
            Self::DropHeader => "drop-header",
            Self::Forget => "forget",
        }
    }
}

/// Is told of each step before it is taken.
pub type Steps<'a> = dyn FnMut(Step) + 'a;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_slot_is_read_as_it_is_written(number in 0usize..9, mark: u64) {
            let slot = SlotId { number, mark };
            prop_assert_eq!(slot.to_string().parse(), Ok(slot));
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,30}|[0-9]{0,22}:[0-9a-f+]{0,18}") {
            if let Ok(slot) = text.parse::<SlotId>() {
                prop_assert_eq!(slot.to_string(), text);
            }
        }
    }
}
