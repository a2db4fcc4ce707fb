//! What QEMU finds on the host: places for memory, and what time it is.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use raw_cpuid::CpuId;
use uuid::Uuid;

use crate::domain::id_set::IdSet;
use crate::domain::size::{KIB, MIB};
use crate::qemu::Tls;

use super::FirmwareDescriptor;

/// The kernel's virtio-net backend.
const VHOST_NET: &str = "/dev/vhost-net";
/// Where Linux has the devices that draw.
const RENDER_NODES: &str = "/dev/dri";
/// Linux's name for the list of what is mounted where.
const MOUNTS: &str = "/proc/self/mounts";
/// Where Linux says how large huge pages are by default.
const MEMINFO: &str = "/proc/meminfo";
/// Where Linux lists its NUMA nodes.
const NODES: &str = "/sys/devices/system/node/online";
/// A domain's part of a path is cut there, as libvirt does to keep socket paths short.
const SHORT_NAME: usize = 20;

/// What the names of helpers' sockets in the lib dir begin with, and no other file's: processes that were started
/// with such a path are the guest's helpers.
pub const HELPER_SOCKET: &str = "helper-";

/// What of the host goes into a command line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Host {
    /// Mounts of hugetlbfs: a directory for guests on each, by the size of its pages in bytes.
    pub hugetlbfs: BTreeMap<u64, String>,
    /// The size of huge pages that name none.
    pub default_hugepage: u64,
    /// Whether the kernel moves packets of virtio-net itself.
    pub vhost_net: bool,
    /// The device that draws for guests that use OpenGL and name none.
    pub render_node: Option<PathBuf>,
    /// Where each running domain has its lib dir.
    pub runtime_dir: PathBuf,
    /// What stands before a domain's name in those directories.
    prefix: &'static str,
    /// Its NUMA nodes.
    pub nodes: IdSet,
    /// Seconds since 1970.
    pub now: i64,
    /// How many seconds its local time is ahead of UTC, where that is not to be found out.
    utc_offset: Option<i64>,
    /// What TLS connections prove who they are with.
    pub tls: Tls,
    /// Whether the host's files are not to be looked at.
    assumed: bool,
}

impl Host {
    /// A host with all of libvirt's places, for command lines that are looked at, not run.
    pub fn assumed() -> Self {
        let mount = |size: &str| format!("/dev/hugepages{size}/libvirt/qemu");
        Self {
            hugetlbfs: BTreeMap::from([(2 * MIB, mount("2M")), (1024 * MIB, mount("1G"))]),
            default_hugepage: 2 * MIB,
            vhost_net: true,
            render_node: Some("/dev/dri/foo".into()),
            runtime_dir: "/var/lib/libvirt/qemu".into(),
            prefix: "-1-",
            nodes: IdSet::first(4),
            now: 1_234_567_890,
            utc_offset: Some(-30 * 60),
            tls: Tls::default(),
            assumed: true,
        }
    }

    /// This host.
    pub fn of_this_machine() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let default_hugepage = default_hugepage(&read(MEMINFO));
        Self {
            hugetlbfs: hugetlbfs(&read(MOUNTS), default_hugepage),
            default_hugepage,
            vhost_net: Path::new(VHOST_NET).exists(),
            render_node: render_node(Path::new(RENDER_NODES)),
            runtime_dir: "/run/vmward".into(),
            prefix: "",
            nodes: IdSet::parse(read(NODES).trim()).unwrap_or_else(|| IdSet::first(1)),
            now: Timestamp::now().as_second(),
            utc_offset: None,
            tls: Tls::default(),
            assumed: false,
        }
    }

    /// The seconds since 1970 on a clock that shows its local time.
    pub fn local_now(&self) -> i64 {
        // The whole database of time zones is looked through: not for guests that do without.
        let found = || TimeZone::system().to_offset(Timestamp::now()).seconds().into();
        self.now.saturating_add(self.utc_offset.unwrap_or_else(found))
    }

    /// The firmware that is installed, in the order in which it is preferred.
    pub fn firmware(&self) -> Vec<FirmwareDescriptor> {
        if self.assumed { FirmwareDescriptor::assumed() } else { FirmwareDescriptor::of_this_machine() }
    }

    /// A running domain's private directory.
    pub fn lib_dir(&self, name: &str) -> PathBuf {
        if self.assumed {
            self.runtime_dir.join(format!("domain-{}", self.domain_dir(name)))
        } else {
            self.runtime_dir.join(name)
        }
    }

    /// Where a domain's memory lives that is a file: in the lib dir, which is on a tmpfs and wiped at the end, so
    /// that what the guest keeps in memory reaches no disk.
    pub fn memory_dir(&self, name: &str) -> PathBuf {
        if self.assumed {
            self.runtime_dir.join("ram").join(self.domain_dir(name))
        } else {
            self.lib_dir(name).join("memory")
        }
    }

    /// Where an emulated TPM listens.
    pub fn tpm_socket(&self, name: &str, device: &str) -> PathBuf {
        if self.assumed { "/dev/test".into() } else { self.helper_socket(name, device) }
    }

    /// Where passt listens for a network interface.
    pub fn passt_socket(&self, name: &str, device: &str) -> PathBuf {
        if self.assumed {
            format!("/var/run/libvirt/qemu/passt/{}-{device}.socket", self.domain_dir(name)).into()
        } else {
            self.helper_socket(name, device)
        }
    }

    /// Where virtiofsd listens for a filesystem.
    pub fn virtiofs_socket(&self, name: &str, device: &str) -> PathBuf {
        if self.assumed {
            self.lib_dir(name).join(format!("{device}-fs.sock"))
        } else {
            self.helper_socket(name, device)
        }
    }

    /// Where the helper for persistent reservations listens.
    pub fn reservations_socket(&self, name: &str, helper: &str) -> PathBuf {
        if self.assumed {
            self.lib_dir(name).join(format!("{helper}.sock"))
        } else {
            self.helper_socket(name, helper)
        }
    }

    /// Where a helper listens for a device.
    pub fn helper_socket(&self, name: &str, device: &str) -> PathBuf {
        self.lib_dir(name).join(format!("{HELPER_SOCKET}{device}.sock"))
    }

    /// Whether nothing will be started: files are not looked at, descriptors are not open.
    pub fn is_assumed(&self) -> bool {
        self.assumed
    }

    /// A UUID that nothing has yet; on an assumed host always the same one, so that command lines can be compared.
    pub fn new_uuid(&self) -> Uuid {
        const COUNTED: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        if self.assumed { uuid::Builder::from_random_bytes(COUNTED).into_uuid() } else { Uuid::new_v4() }
    }

    /// How the processor encrypts memory: the bit of addresses that says so, and how many bits that takes.
    pub fn memory_encryption(&self) -> Option<(u32, u32)> {
        if self.assumed {
            // An EPYC of the third generation.
            return Some((51, 1));
        }
        let info = CpuId::new().get_memory_encryption_info().filter(|info| info.has_sev())?;
        Some((info.c_bit_position().into(), info.physical_address_reduction().into()))
    }

    /// The name of a domain's own directory among those of all domains.
    pub fn domain_dir(&self, name: &str) -> String {
        let short: String = name.chars().take(SHORT_NAME).collect();
        format!("{}{short}", self.prefix)
    }
}

/// The first device that draws without showing.
fn render_node(directory: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(directory).ok()?;
    let nodes = entries.filter_map(Result::ok).map(|entry| entry.path());
    nodes.filter(|path| path.to_string_lossy().contains("/renderD")).min()
}

fn default_hugepage(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("Hugepagesize:"));
    let number = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok());
    number.map_or(2 * MIB, |kib| kib * KIB)
}

/// The first mount of each page size. A mount that names no size has the default one.
fn hugetlbfs(mounts: &str, default: u64) -> BTreeMap<u64, String> {
    let mut found = BTreeMap::new();
    for line in mounts.lines() {
        let [_, path, "hugetlbfs", options, ..] = line.split(' ').collect::<Vec<_>>()[..] else { continue };
        let size = options.split(',').find_map(|o| o.strip_prefix("pagesize="));
        let size = size.map_or(Some(default), crate::domain::size::parse);
        if let Some(size) = size {
            found.entry(size).or_insert_with(|| format!("{path}/vmward"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_render_node_is_found() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(render_node(directory.path()), None);
        for name in ["card0", "renderD129", "renderD128", "by-path"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        assert_eq!(render_node(directory.path()), Some(directory.path().join("renderD128")));
        assert_eq!(render_node(&directory.path().join("none")), None);
    }

    #[test]
    fn mounts_of_hugetlbfs_are_found() {
        let mounts = "proc /proc proc rw 0 0\n\
                      hugetlbfs /dev/hugepages hugetlbfs rw,relatime,pagesize=2M 0 0\n\
                      none /mnt/huge1G hugetlbfs rw,pagesize=1024M 0 0\n\
                      none /mnt/again hugetlbfs rw 0 0\n";
        let found = hugetlbfs(mounts, 2 * MIB);
        assert_eq!(found.len(), 2);
        assert_eq!(found[&(2 * MIB)], "/dev/hugepages/vmward");
        assert_eq!(found[&(1024 * MIB)], "/mnt/huge1G/vmward");
        assert_eq!(default_hugepage("MemFree: 3 kB\nHugepagesize:       2048 kB\n"), 2 * MIB);
    }
}
