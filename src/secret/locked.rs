//! Memory for secrets: locked (no swap), out of core dumps, and zeroized when given back.
//!
//! This is the one module of the project with `unsafe` code.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap_anonymous, munmap};
use zeroize::Zeroize;

/// Set once a page could not be locked (RLIMIT_MEMLOCK is used up).
static UNLOCKED: AtomicBool = AtomicBool::new(false);

/// Whether every secret so far is in locked memory. Where the limit on locked memory is too small, values
/// are still kept out of core dumps and zeroized, but could reach swap: `vmward run` warns of it.
pub fn all_locked() -> bool {
    !UNLOCKED.load(Ordering::Relaxed)
}

/// A mapping of its own, at least `len` bytes, zeroed.
pub(super) struct LockedBuffer {
    start: NonNull<c_void>,
    mapped: NonZeroUsize,
    len: usize,
}

// SAFETY: the mapping is owned by this value alone, and all access goes through & and &mut.
unsafe impl Send for LockedBuffer {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for LockedBuffer {}

impl LockedBuffer {
    /// A zeroed buffer of that many bytes.
    pub(super) fn new(len: usize) -> nix::Result<Self> {
        let mapped = NonZeroUsize::new(len.max(1)).unwrap_or(NonZeroUsize::MIN);
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe {
            mmap_anonymous(None, mapped, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE)?
        };
        let buffer = Self { start, mapped, len };
        // SAFETY: the range was mapped above and belongs to `buffer`.
        unsafe {
            // Without this the buffer must not hold a secret: `buffer`'s Drop unmaps it.
            madvise(start, mapped.get(), MmapAdvise::MADV_DONTDUMP)?;
            madvise(start, mapped.get(), MmapAdvise::MADV_WIPEONFORK)?;
            if mlock(start, mapped.get()).is_err() {
                UNLOCKED.store(true, Ordering::Relaxed);
            }
        }
        Ok(buffer)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `len` bytes from `start` are mapped readable for as long as `self` lives, and initialised (zeroed by the kernel).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast::<u8>(), self.len) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, writable, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast::<u8>(), self.len) }
    }

    /// Makes the buffer shorter; what is cut off is zeroized.
    pub(super) fn truncate(&mut self, len: usize) {
        if len < self.len {
            self.bytes_mut()[len..].zeroize();
            self.len = len;
        }
    }
}

impl Drop for LockedBuffer {
    fn drop(&mut self) {
        self.bytes_mut().zeroize();
        // SAFETY: the mapping is this value's own and nothing borrows from it any more. Unmapping unlocks it.
        // It cannot fail for a range that mmap returned.
        let _ = unsafe { munmap(self.start, self.mapped.get()) };
    }
}
