//! What a `<filesystem>` asks of its daemon, virtiofsd.

use std::path::PathBuf;

use crate::xml::{Diagnostics, Element, keywords};

keywords! {
    /// How long the guest may rely on what it has read.
    pub enum CacheMode {
        /// Not at all.
        None = "none",
        /// For as long as it likes.
        Always = "always",
    }
}

keywords! {
    /// How virtiofsd shuts itself in.
    pub enum SandboxMode {
        /// In namespaces of its own.
        Namespace = "namespace",
        /// By chroot alone.
        Chroot = "chroot",
    }
}

/// Users or groups that the guest's are mapped to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMap {
    /// The guest's first one.
    pub start: u32,
    /// The host's first one.
    pub target: u32,
    /// How many there are.
    pub count: u32,
}

/// `<binary>` and `<idmap>`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Virtiofsd {
    /// The program; `None`: the installed one.
    pub binary: Option<PathBuf>,
    /// Whether the guest has extended attributes.
    pub xattr: Option<bool>,
    /// How long the guest may rely on what it has read.
    pub cache: Option<CacheMode>,
    /// How it shuts itself in.
    pub sandbox: Option<SandboxMode>,
    /// Whether the guest's POSIX locks are the host's.
    pub posix_locks: Option<bool>,
    /// Whether the guest's BSD locks are the host's.
    pub flocks: Option<bool>,
    /// How many threads it may have.
    pub threads: Option<u32>,
    /// How many files it may have open.
    pub open_files: Option<u64>,
    /// Whose the guest's users are.
    pub users: Vec<IdMap>,
    /// Whose the guest's groups are.
    pub groups: Vec<IdMap>,
}

impl Virtiofsd {
    /// Reads what a `<filesystem>` has of it.
    pub fn of_filesystem(filesystem: &Element, diagnostics: &mut Diagnostics) -> Self {
        let mut daemon = Self::default();
        if let Some(ids) = filesystem.only_child("idmap", diagnostics) {
            daemon.users = ids.children("uid").filter_map(|e| id_map(e, diagnostics)).collect();
            daemon.groups = ids.children("gid").filter_map(|e| id_map(e, diagnostics)).collect();
        }
        let Some(binary) = filesystem.only_child("binary", diagnostics) else { return daemon };
        daemon.binary = binary.get("path").map(PathBuf::from);
        daemon.xattr = binary.on_off("xattr", diagnostics);
        let cache = binary.only_child("cache", diagnostics);
        daemon.cache = cache.and_then(|c| c.require_keyword("mode", diagnostics));
        let sandbox = binary.only_child("sandbox", diagnostics);
        daemon.sandbox = sandbox.and_then(|s| s.require_keyword("mode", diagnostics));
        if let Some(lock) = binary.only_child("lock", diagnostics) {
            daemon.posix_locks = lock.on_off("posix", diagnostics);
            daemon.flocks = lock.on_off("flock", diagnostics);
        }
        let threads = binary.only_child("thread_pool", diagnostics);
        daemon.threads = threads.and_then(|t| t.number("size", diagnostics));
        let open = binary.only_child("openfiles", diagnostics);
        daemon.open_files = open.and_then(|o| o.number("max", diagnostics));
        daemon
    }
}

fn id_map(element: &Element, diagnostics: &mut Diagnostics) -> Option<IdMap> {
    for name in ["start", "target", "count"] {
        element.require(name, diagnostics)?;
    }
    Some(IdMap {
        start: element.number("start", diagnostics)?,
        target: element.number("target", diagnostics)?,
        count: element.number("count", diagnostics)?,
    })
}
