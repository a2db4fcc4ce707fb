//! Growing a volume at rest, and shrinking it.

use super::qemu_img::Call;
use super::{Interrupts, QemuImg, Source, VolumeError};

/// Gives the guest that many bytes, whatever headers the file has besides. The source is open for writing.
/// Shrinking cuts off what the guest has there, and is refused unless `shrink` says that this is meant.
pub async fn resize(
    qemu_img: &QemuImg,
    source: &Source,
    size: u64,
    shrink: bool,
    interrupts: &mut Interrupts,
) -> Result<(), VolumeError> {
    let before = source.size.unwrap_or_default();
    if size < before && !shrink {
        return Err(VolumeError::WouldShrink { path: source.top().path().to_owned(), before, size });
    }
    let call = || {
        let mut call = Call::new("resize");
        call.arg("-q");
        if size < before {
            call.arg("--shrink");
        }
        let name = source.name(&mut call)?;
        call.arg(name).arg(size.to_string());
        Ok(call)
    };
    let done = qemu_img.run(call, interrupts, &mut |_| {}).await;
    let now = source.look_at_size()?;
    match done {
        // The size is one number on disk: a signal came before it was changed, or after.
        Ok(()) | Err(VolumeError::Interrupted(_)) if now == size => Ok(()),
        Ok(()) => Err(VolumeError::OtherSize { path: source.top().path().to_owned(), now, size }),
        Err(e) => Err(source.failure(e)),
    }
}
