//! Memory for secrets: locked (no swap), out of core dumps, and zeroized when given back; and a heap that is wiped
//! where it is freed, because not every library wipes what it was given (age's writer keeps the plaintext in a
//! plain vector, HTTP and JSON readers do as well).
//!
//! This is the one module with `unsafe` code beside `supervisor/footprint.rs`.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::c_void;
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap_anonymous, munmap};
use zeroize::Zeroize;

#[global_allocator]
static HEAP: WipedHeap = WipedHeap;

/// The system's heap, of which nothing is given back with its content.
struct WipedHeap;

// SAFETY: every block comes from `System` with the layout that was asked for and goes back to it with the same one.
// `realloc` is the trait's own, which goes through `alloc` and `dealloc`: a block that moved would leave a copy.
unsafe impl GlobalAlloc for WipedHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller gives up a block of this layout, so all of it may be written.
        unsafe { block.write_bytes(0, layout.size()) };
        // Without this the compiler may leave out writes to memory that is freed next.
        black_box(block);
        // SAFETY: it came from `System` with this layout.
        unsafe { System.dealloc(block, layout) }
    }
}

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
