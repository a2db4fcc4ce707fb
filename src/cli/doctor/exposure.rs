//! The ways in which memory gets onto disks, swap and core dumps, and what stands between a guest and the host's files.

use std::fs;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::geteuid;

use crate::supervisor::landlock_abi;

use super::Finding;

/// A secret takes a page of its own, and a start with a hundred disks should not run out of them.
const ENOUGH_LOCKED_BYTES: u64 = 1 << 20;

/// What is said about memory.
pub(super) fn findings() -> [Finding; 4] {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let swap = swap(&text("/proc/swaps"), |device| {
        text(&format!("/sys/block/{device}/dm/uuid")).starts_with("CRYPT-")
    });
    let core_dumps =
        core_dumps(text("/proc/sys/kernel/core_pattern").trim(), text("/proc/sys/fs/suid_dumpable").trim());
    [locked_memory(), swap, core_dumps, confinement(landlock_abi())]
}

fn locked_memory() -> Finding {
    const ABOUT: &str = "locked memory";
    match getrlimit(Resource::RLIMIT_MEMLOCK) {
        // root locks as much as it likes.
        Ok((soft, _)) if soft >= ENOUGH_LOCKED_BYTES || geteuid().is_root() => {
            Finding::ok(ABOUT, "secrets stay out of swap")
        }
        Ok((soft, _)) => Finding::warning(
            ABOUT,
            format!("only {} KiB may be locked: the secrets of many disks could reach swap", soft / 1024),
        )
        .hint("raise `memlock` in /etc/security/limits.conf, or LimitMEMLOCK= of the unit"),
        Err(e) => Finding::error(ABOUT, format!("the limit cannot be read ({e})")),
    }
}

/// What files a supervisor and its QEMU may reach is for Landlock to say; `abi` is the kernel's version of it.
fn confinement(abi: Option<u32>) -> Finding {
    const ABOUT: &str = "confinement";
    match abi {
        Some(abi) => Finding::ok(ABOUT, format!("the kernel has Landlock (its rules on files are of ABI {abi})")),
        None => Finding::warning(ABOUT, "the kernel has no Landlock: a guest's processes reach all files of their user")
            .hint("it is in Linux 5.13 and later; where it is off, lsm= on the kernel's command line names it: lsm=landlock,..."),
    }
}

/// vmward locks its own secrets in memory; QEMU does not lock the keys of its open disks. `areas` is /proc/swaps.
fn swap(areas: &str, is_encrypted: impl Fn(&str) -> bool) -> Finding {
    const ABOUT: &str = "swap";
    let names = areas.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    let is_safe = |name: &str| {
        let device = Path::new(name).file_name().and_then(|n| n.to_str()).unwrap_or_default();
        name.starts_with("/dev/zram") || (name.starts_with("/dev/") && is_encrypted(device))
    };
    let on_disk: Vec<_> = names.filter(|name| !is_safe(name)).collect();
    if on_disk.is_empty() {
        return Finding::ok(ABOUT, "nothing is swapped to a disk in the clear");
    }
    Finding::warning(
        ABOUT,
        format!("{} is in use: QEMU's memory, with the keys of open disks, may be written there", on_disk.join(", ")),
    )
    .hint("encrypt it with a key of its own at each boot (crypttab: /dev/urandom swap), or give the guest locked memory")
}

/// vmward cannot be dumped, and QEMU runs with a core limit of 0 and keeps the guest's memory out. A program that
/// the kernel pipes dumps to gets those of QEMU's own memory, and may or may not heed the limit (core(5): `%c`).
fn core_dumps(pattern: &str, suid_dumpable: &str) -> Finding {
    const ABOUT: &str = "core dumps";
    let handler = pattern.strip_prefix('|').map(str::trim_start);
    // systemd-coredump keeps nothing of a process whose limit is 0.
    let heeds_limit =
        |command: &str| command.contains("systemd-coredump") && command.split_whitespace().any(|w| w == "%c");
    let program = |command: &str| command.split_whitespace().next().unwrap_or_default().to_owned();
    if suid_dumpable == "1" {
        return Finding::warning(
            ABOUT,
            "fs.suid_dumpable is 1: processes that have changed their user can be dumped by anybody",
        )
        .hint("sysctl fs.suid_dumpable=0");
    }
    match handler {
        None => Finding::ok(ABOUT, "QEMU and vmward leave none"),
        Some(command) if heeds_limit(command) => {
            Finding::ok(ABOUT, "QEMU and vmward leave none: systemd-coredump heeds their limit of 0")
        }
        Some(command) => Finding::warning(
            ABOUT,
            format!(
                "the kernel gives them to {}: the memory of a QEMU that crashes, with the keys of open disks, goes there whatever its limit is",
                program(command)
            ),
        )
        .hint("see what it does with them, or sysctl kernel.core_pattern=core"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::State;

    #[test]
    fn a_kernel_without_landlock_is_found() {
        assert!(confinement(None).state == State::Warning);
        assert!(confinement(Some(2)).message.contains("ABI 2"));
    }

    #[test]
    fn swap_on_a_disk_is_one_in_the_clear() {
        let warns = |areas: &str| {
            swap(&format!("Filename Type Size Used Priority\n{areas}"), |device| device == "dm-1").state
                == State::Warning
        };
        assert!(!warns(""));
        assert!(!warns("/dev/zram0 partition 1 0 100\n/dev/dm-1 partition 1 0 -2\n"));
        assert!(warns("/dev/dm-2 partition 1 0 -2\n"));
        assert!(warns("/dev/dm-1 partition 1 0 -2\n/swapfile file 1 0 -3\n"));
        // A file of a name like that of an encrypted device.
        assert!(warns("/dm-1 file 1 0 -3\n"));
    }

    #[test]
    fn core_dumps_go_to_programs_whatever_the_limit() {
        let warns = |pattern, dumpable| core_dumps(pattern, dumpable).state == State::Warning;
        assert!(!warns("core", "0"));
        assert!(!warns("/var/crash/core.%p", "2"));
        assert!(!warns("|/usr/lib/systemd/systemd-coredump %P %u %g %s %t %c %h", "2"));
        assert!(warns("|/usr/lib/systemd/systemd-coredump %P", "2"));
        assert!(warns("|/usr/share/apport/apport -p%p -s%s -c%c", "2"));
        assert!(warns("| /usr/bin/cat", "0"));
        assert!(warns("core", "1"));
    }
}
