//! Encrypted disk images: made, looked at, resized, converted, given new keys and destroyed. Images are made by qemu-img,
//! which gets each passphrase through a pipe that only it inherits; key slots are changed here.

mod at_rest;
mod cipher;
mod convert;
mod create;
mod delete;
mod error;
mod image;
mod kdf;
mod key_area;
mod lock;
mod qcow2;
mod qemu_img;
mod rbd;
mod rekey;
mod resize;
mod size;
mod slot;
mod source;
mod staging;
mod target;
mod xml;

pub use at_rest::AtRest;
pub use cipher::{Cipher, CipherMode, CipherName, HashName, IvGenerator};
pub use convert::convert;
pub use create::{Backing, NewVolume, Owner, Preallocation, Qcow2Options, VolumeFormat, create};
pub use delete::{Destroyed, destroy};
pub use error::VolumeError;
pub use image::{BackingImage, Image, ImageEncryption, ImageFormat, canonical};
pub use kdf::Kdf;
pub use key_area::KeyArea;
pub use lock::{ImageLock, is_locked};
pub use qcow2::Qcow2Error;
pub(crate) use qemu_img::piped;
pub use qemu_img::{Interrupts, QemuImg};
pub use rbd::{Cluster, NewRbd, Rbd, RbdFormat, RbdName};
pub use rekey::{KeySlots, Rekeyed, is_unfinished, rekey};
pub use resize::resize;
pub use size::parse_size;
pub use slot::{SlotId, Step, Steps};
pub use source::{Layer, Source, SourceFormat};
pub use target::NewTarget;
pub use xml::VolumeXml;
