//! The memory of the test's own process. Tests that look through it need a process, and so a file, of their own: what one
//! has read of another's memory would be found as well.
#![allow(clippy::unwrap_used, reason = "this is a test")]

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};

/// All that this process could have written a value to.
pub fn memory() -> Vec<u8> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut memory = File::open("/proc/self/mem").unwrap();
    // Made large enough at once, so that no copy of it is left behind while it is filled.
    let mut image = Vec::with_capacity(64 << 20);
    for line in maps.lines().filter(|l| l.contains(" rw")) {
        let (start, end) = line.split_whitespace().next().unwrap().split_once('-').unwrap();
        let (start, end) = (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
        // Not the image itself.
        let own = image.as_ptr() as u64;
        if (start..end).contains(&own) {
            continue;
        }
        memory.seek(SeekFrom::Start(start)).unwrap();
        let _ = (&mut memory).take(end - start).read_to_end(&mut image);
    }
    assert!(image.len() < image.capacity());
    image
}

/// How often something is in it.
pub fn count(haystack: &[u8], needle: &[u8]) -> usize {
    haystack.windows(needle.len()).filter(|w| w[0] == needle[0] && *w == needle).count()
}
