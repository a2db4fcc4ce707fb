//! What calls leave behind on the stack.

use std::hint::black_box;

use zeroize::Zeroize;

/// More than the frames of a cipher take.
const DEPTH: usize = 64 << 10;

/// Does something with a key, and wipes the stack that it used: ciphers wipe their key schedules where they end, not the
/// places from which these were moved.
pub fn wiping_stack<R>(work: impl FnOnce() -> R) -> R {
    let result = deeper(work);
    wipe();
    result
}

// Neither of the two may become part of its caller, whose frame is not wiped.
#[inline(never)]
fn deeper<R>(work: impl FnOnce() -> R) -> R {
    work()
}

#[inline(never)]
fn wipe() {
    let mut frames = [0u8; DEPTH];
    frames.zeroize();
    black_box(&frames);
}
