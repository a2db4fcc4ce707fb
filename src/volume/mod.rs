//! Encrypted disk images: made, looked at, resized, converted and destroyed. Images are made by qemu-img, which gets each
//! passphrase through a pipe that only it inherits.

mod cipher;
mod convert;
mod create;
mod delete;
mod error;
mod image;
mod kdf;
mod lock;
mod qcow2;
mod qemu_img;
mod resize;
mod size;
mod source;
mod staging;
mod xml;

pub use cipher::{Cipher, CipherMode, CipherName, HashName, IvGenerator};
pub use convert::convert;
pub use create::{Backing, NewVolume, Owner, Preallocation, Qcow2Options, VolumeFormat, create};
pub use delete::{Destroyed, destroy};
pub use error::VolumeError;
pub use image::{BackingImage, Image, ImageEncryption, ImageFormat, canonical};
pub use kdf::Kdf;
pub use lock::ImageLock;
pub use qcow2::Qcow2Error;
pub use qemu_img::{Interrupts, QemuImg};
pub use resize::resize;
pub use size::parse_size;
pub use source::{Layer, Source, SourceFormat};
pub use xml::VolumeXml;
