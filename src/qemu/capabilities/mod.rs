//! What a QEMU program can do. Asked once of each program and kept in a cache (see [`cache`]).

mod cache;
mod firmware;
mod host;
mod probe;

pub use firmware::FirmwareDescriptor;
pub use host::{HELPER_SOCKET, Host};
pub use probe::ProbeError;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// The oldest QEMU that vmward runs: Debian 12's.
const OLDEST: (u32, u32) = (7, 2);

/// What a QEMU program can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Major and minor version, and the micro one, which tells fixes within a release.
    pub version: (u32, u32, u32),
    /// The types of devices and objects that it can make; `None` stands for all.
    types: Option<BTreeSet<String>>,
    /// The machine types, aliases among them; `None` stands for all.
    machines: Option<BTreeSet<String>>,
    /// Whether it was built with `-sandbox`.
    pub sandbox: bool,
    /// The host that it runs on; it changes without QEMU, so it is not kept.
    #[serde(skip)]
    pub host: Host,
}

impl Capabilities {
    /// QEMU 9.1 with everything built in: for command lines that are looked at, not run.
    pub fn latest() -> Self {
        Self { version: (9, 1, 0), types: None, machines: None, sandbox: true, host: Host::assumed() }
    }

    /// Whether it is this version or a later one.
    pub fn at_least(&self, major: u32, minor: u32) -> bool {
        (self.version.0, self.version.1) >= (major, minor)
    }

    /// Whether its luks driver takes the header from another node than the data.
    pub fn has_detached_luks_headers(&self) -> bool {
        self.at_least(9, 0)
    }

    /// Whether monitors are objects, with `-mon` on its way out.
    pub fn has_monitor_objects(&self) -> bool {
        self.at_least(11, 1) && self.has_object("monitor-qmp")
    }

    /// Whether a TLS session keeps the credentials that it began with. Before, `display-reload` frees them under a client
    /// in the middle of its handshake ("crypto: fix lifecycle handling of gnutls credentials objects").
    pub fn keeps_tls_credentials(&self) -> bool {
        self.at_least(10, 2)
    }

    /// The option that makes a socket connect again after some seconds, with its value. QEMU 9.2 counts in
    /// milliseconds, and seconds are on their way out.
    pub fn reconnect(&self, seconds: u32) -> (&'static str, u64) {
        let seconds = u64::from(seconds);
        if self.at_least(9, 2) { ("reconnect-ms", seconds * 1000) } else { ("reconnect", seconds) }
    }

    /// Whether it can make an object of that type (`-object`).
    pub fn has_object(&self, name: &str) -> bool {
        self.types.as_ref().is_none_or(|types| types.contains(name))
    }

    /// Whether it can make a device of that type (`-device`).
    pub fn has_device(&self, name: &str) -> bool {
        self.has_object(name)
    }

    /// Whether it knows that model of processors.
    pub fn has_processor(&self, model: &str) -> bool {
        ["x86_64", "i386"].iter().any(|target| self.has_object(&format!("{model}-{target}-cpu")))
    }

    /// Whether it knows that machine type or alias.
    pub fn has_machine(&self, name: &str) -> bool {
        self.machines.as_ref().is_none_or(|machines| machines.contains(name))
    }
}
