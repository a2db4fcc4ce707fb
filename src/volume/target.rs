//! A volume to be made, wherever that is.

use std::path::PathBuf;

use super::{NewRbd, NewVolume, VolumeError};

/// What is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewTarget {
    /// A file.
    File(NewVolume),
    /// An image of a Ceph cluster.
    Image(NewRbd),
}

impl NewTarget {
    /// Where it is to be, as messages and the usage of its secret name it.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::File(volume) => volume.path.clone(),
            Self::Image(new) => new.name.path(),
        }
    }

    /// Its format, as the option names it.
    pub fn format(&self) -> &'static str {
        match self {
            Self::File(volume) => volume.format.as_str(),
            Self::Image(new) => new.format.as_str(),
        }
    }

    /// What the guest is to see, in bytes, where it was said.
    pub fn size(&self) -> Option<u64> {
        match self {
            Self::File(volume) => volume.size,
            Self::Image(new) => Some(new.size),
        }
    }

    /// Says what is wrong before anything is made.
    pub fn check(&self) -> Result<(), VolumeError> {
        match self {
            Self::File(volume) => volume.check(),
            Self::Image(new) => new.check(),
        }
    }
}
