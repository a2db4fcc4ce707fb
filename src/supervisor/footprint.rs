//! What a supervisor takes while nothing happens.
//!
//! Starting a guest runs through megabytes of code of which waiting for its end needs a tenth. Those pages are no copies, they
//! are the kernel's cache of the program's file; but as long as they are mapped they count as this process's, and are kept
//! longer than what nobody maps.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::mman::{MmapAdvise, madvise};
use tokio::sync::Notify;
use tokio::time::sleep;

/// Where the program's code and constants are mapped.
static CODE: OnceLock<Vec<Range<usize>>> = OnceLock::new();

/// How long after something was done nothing more of it is to come.
const SETTLED: Duration = Duration::from_millis(500);

/// Gives the pages of code back that it took to do something, each time that was said to have been done.
pub(super) async fn shrink(done: &Notify) {
    loop {
        done.notified().await;
        sleep(SETTLED).await;
        release_code();
    }
}

/// Gives the pages of code back. What is needed again comes from the kernel's cache of the file, in microseconds.
pub(super) fn release_code() {
    let code = CODE.get_or_init(|| {
        find().unwrap_or_else(|e| {
            tracing::debug!("the pages of code cannot be given back: {e}");
            Vec::new()
        })
    });
    for range in code {
        let Some(start) = NonNull::new(range.start as *mut c_void) else { continue };
        // SAFETY: a private mapping of the program's file that cannot be written to, and of which no page was ever another
        // than the file's: whatever is accessed again is read from the file again. It is there as long as the process is,
        // unlike those of libraries, some of which are unloaded.
        if let Err(e) = unsafe { madvise(start, range.len(), MmapAdvise::MADV_DONTNEED) } {
            tracing::debug!("pages of code were not given back: {e}");
        }
    }
}

fn find() -> io::Result<Vec<Range<usize>>> {
    let program = fs::read_link("/proc/self/exe")?;
    let maps = fs::read_to_string("/proc/self/smaps")?;
    Ok(program.to_str().map(|program| unwritten(&maps, program)).unwrap_or_default())
}

/// The private mappings of a file, in the text of `/proc/PID/smaps` (proc_pid_smaps(5)), that cannot be written to and never
/// were: what the dynamic linker has relocated is protected by now, and still no page of the file.
fn unwritten(maps: &str, path: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut mapping = None;
    for line in maps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else { continue };
        if first == "Anonymous:" {
            found.extend(mapping.take().filter(|_| second == "0"));
        } else if !first.ends_with(':') {
            let is_its = line.strip_suffix(path).is_some_and(|rest| rest.ends_with(' '));
            let is_protected = second.starts_with("r-") && second.ends_with('p');
            mapping = first.split_once('-').filter(|_| is_its && is_protected).and_then(|(start, end)| {
                let address = |digits| usize::from_str_radix(digits, 16).ok();
                Some(address(start)?..address(end)?)
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_as_in_the_file_is_given_back() {
        let mapping = |range: &str, mode: &str, path: &str, anonymous: u32| {
            format!(
                "{range} {mode} 00000000 fe:00 42                         {path}\n\
                 Size:                 16 kB\nRss:                  16 kB\nAnonymous:      {anonymous:>8} kB\n\
                 VmFlags: rd ex mr mw me\n"
            )
        };
        let maps = [
            mapping("1000-2000", "r--p", "/usr/bin/vmward", 0),
            mapping("2000-5000", "r-xp", "/usr/bin/vmward", 0),
            mapping("5000-6000", "r--p", "/usr/bin/vmward", 4),
            mapping("6000-7000", "rw-p", "/usr/bin/vmward", 0),
            mapping("7000-8000", "r-xs", "/usr/bin/vmward", 0),
            mapping("8000-9000", "r-xp", "/usr/lib/libc.so.6", 0),
            mapping("9000-a000", "r-xp", "/srv/usr/bin/vmward", 0),
            mapping("a000-b000", "r--p", "", 0),
        ];
        assert_eq!(unwritten(&maps.concat(), "/usr/bin/vmward"), [0x1000..0x2000, 0x2000..0x5000]);
    }

    #[test]
    fn this_program_goes_on_with_fewer_pages() {
        let resident = || {
            let status = fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
            line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap()
        };
        let before = resident();
        release_code();
        let after = resident();
        assert!(after < before, "{after} kB of {before}");
    }
}
