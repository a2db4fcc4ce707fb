//! A copy of an image as a volume of another format, under another key.

use super::create::{Content, make};
use super::size::round_up;
use super::{Interrupts, NewVolume, QemuImg, Source, VolumeError};
use crate::secret::SecretValue;

/// Copies what the guest sees of `source` into a new volume. Without a passphrase that one is plain. On any failure
/// there is no file, or the one that was there before; the source is only read.
pub async fn convert(
    qemu_img: &QemuImg,
    source: &Source,
    volume: &NewVolume,
    passphrase: Option<&SecretValue>,
    interrupts: &mut Interrupts,
    progress: &mut dyn FnMut(Option<f64>),
) -> Result<u64, VolumeError> {
    let size = source.size.map(round_up).transpose().map_err(VolumeError::Request)?;
    let made = make(qemu_img, volume, Content::Image(source, size), passphrase, interrupts, progress).await;
    made.map_err(|e| source.failure(e))
}
