//! `<source>`: where an image is.

use crate::domain::PciAddress;
use crate::xml::{Diagnostics, Element, keywords};

use super::auth::Auth;
use super::encryption::Refused;
use super::network::{Network, Protocol};

keywords! {
    /// `type=` of a `<disk>` or `<backingStore>`: what kind of thing the source is.
    pub enum SourceType {
        /// A file.
        File = "file",
        /// A block device.
        Block = "block",
        /// A directory, shown as a FAT file system.
        Dir = "dir",
        /// A server.
        Network = "network",
        /// A volume of one of libvirt's storage pools.
        Volume = "volume",
        /// An NVMe device, driven by QEMU.
        Nvme = "nvme",
        /// A vhost-user process.
        VhostUser = "vhostuser",
        /// A vDPA device.
        VhostVdpa = "vhostvdpa",
    }
}

/// Where an image is.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file.
    File(String),
    /// A block device.
    Block {
        /// Its path.
        path: String,
        /// SCSI persistent reservations, for guests that form clusters.
        reservations: Option<Reservations>,
    },
    /// `POOL/VOLUME`, the volume of a storage pool. It can be shown, and is never opened.
    Volume(String),
    /// A directory.
    Directory(String),
    /// A server.
    Network(Box<Network>),
    /// An NVMe namespace.
    Nvme(Nvme),
    /// A vhost-user process.
    VhostUser(VhostUser),
    /// A vDPA device's path.
    VhostVdpa(String),
}

/// A namespace of an NVMe device of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nvme {
    /// The device.
    pub address: PciAddress,
    /// The namespace.
    pub namespace: u64,
    /// The device is to be taken from its host driver before the start and given back afterwards.
    pub managed: bool,
}

/// A process that serves a whole virtio-blk device on a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VhostUser {
    /// The socket.
    pub path: String,
    /// Seconds between attempts to connect again.
    pub reconnect: Option<u32>,
}

/// Who makes SCSI persistent reservations for QEMU, which may not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reservations {
    /// A helper that vmward starts.
    Managed,
    /// A helper that listens on this socket.
    Socket(String),
}

impl Source {
    /// Reads the `<source>` of a disk (or of its backing store), `parent`. `None`: there is no medium.
    pub(super) fn from_xml(
        parent: &Element,
        disk: Option<&Element>,
        element: Option<&Element>,
        diagnostics: &mut Diagnostics,
    ) -> Result<Option<Self>, Refused> {
        let kind = match parent.attribute("type") {
            None => SourceType::File,
            Some(_) => parent.keyword("type", diagnostics).ok_or(Refused)?,
        };
        if kind != SourceType::Network
            && let Some(auth) = disk.and_then(|d| d.child("auth")).or(element.and_then(|e| e.child("auth")))
        {
            auth.mark_read();
            if kind != SourceType::Volume {
                diagnostics.error(auth.span, "only network sources authenticate");
            }
        }
        let Some(e) = element else { return Ok(None) };
        labels(e, diagnostics);
        let path = |name: &str| e.get(name).filter(|p| !p.is_empty()).map(str::to_owned);
        Ok(match kind {
            SourceType::File => path("file").map(Self::File),
            SourceType::Block => {
                let reservations = Reservations::from_xml(e, diagnostics);
                path("dev").map(|path| Self::Block { path, reservations })
            }
            SourceType::Dir => path("dir").map(Self::Directory),
            SourceType::Network => Some(Self::Network(Box::new(Network::from_xml(e, disk, diagnostics)?))),
            SourceType::Volume => {
                let (pool, volume) = (e.require("pool", diagnostics), e.require("volume", diagnostics));
                let (Some(pool), Some(volume)) = (pool, volume) else { return Err(Refused) };
                // How an iSCSI pool's volume is reached.
                e.get("mode");
                diagnostics.stand_in(e.span, "vmward has no storage pools to look a volume up in").hint(
                    "write what the volume is: type='file' and <source file='...'/>, or type='block' \
                     and <source dev='...'/> (virsh vol-path tells), or type='network'",
                );
                // What is shown of it: everything but where it is.
                Some(Self::Volume(format!("{pool}/{volume}")))
            }
            SourceType::Nvme => Some(Self::Nvme(Nvme::from_xml(e, diagnostics).ok_or(Refused)?)),
            SourceType::VhostUser => {
                Some(Self::VhostUser(VhostUser::from_xml(e, diagnostics).ok_or(Refused)?))
            }
            SourceType::VhostVdpa => {
                Some(Self::VhostVdpa(e.require("dev", diagnostics).ok_or(Refused)?.to_owned()))
            }
        })
    }

    /// The credentials that it is opened with.
    pub fn auth(&self) -> Option<&Auth> {
        match self {
            Self::Network(network) => network.auth.as_ref(),
            _ => None,
        }
    }

    /// Whether it is an image of a Ceph cluster.
    pub fn is_rbd(&self) -> bool {
        matches!(self, Self::Network(n) if matches!(n.protocol, Protocol::Rbd { .. }))
    }

    /// The file or block device of this host that the image's bytes are in.
    pub fn local_path(&self) -> Option<&str> {
        match self {
            Self::File(path) | Self::Block { path, .. } => Some(path),
            _ => None,
        }
    }
}

/// `<seclabel>`: vmward changes the labels of no file. Where the XML asks for no change either, that is it.
fn labels(source: &Element, diagnostics: &mut Diagnostics) {
    for label in source.children("seclabel") {
        if label.get("relabel") == Some("yes") {
            diagnostics
                .warning(label.span, "vmward does not label images: QEMU opens it with the label it has");
        }
        label.mark_read();
    }
}

impl Nvme {
    fn from_xml(e: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        if e.require("type", diagnostics)? != "pci" {
            diagnostics.error(e.span, "an NVMe source is of type 'pci'");
            return None;
        }
        let namespace: u64 = {
            e.require("namespace", diagnostics)?;
            e.number("namespace", diagnostics)?
        };
        if namespace == 0 {
            diagnostics.error(e.span, "NVMe namespaces are numbered from 1");
        }
        let managed = e.yes_no("managed", diagnostics).unwrap_or(false);
        let Some(address) = e.only_child("address", diagnostics) else {
            diagnostics.error(e.span, "an NVMe source needs the <address> of the device");
            return None;
        };
        Some(Self { address: PciAddress::from_xml(address, diagnostics)?, namespace, managed })
    }
}

impl VhostUser {
    fn from_xml(e: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        if e.require("type", diagnostics)? != "unix" {
            diagnostics.error(e.span, "a vhost-user source is of type 'unix'");
            return None;
        }
        let path = e.require("path", diagnostics)?.to_owned();
        let reconnect = e.only_child("reconnect", diagnostics).and_then(|r| {
            let enabled = r.yes_no("enabled", diagnostics)?;
            let timeout = r.number("timeout", diagnostics);
            if enabled && timeout.is_none() {
                diagnostics.error(r.span, "<reconnect enabled='yes'> lacks a timeout");
            }
            timeout.filter(|_| enabled)
        });
        Some(Self { path, reconnect })
    }
}

impl Reservations {
    fn from_xml(source: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let e = source.only_child("reservations", diagnostics)?;
        e.require("managed", diagnostics)?;
        let managed = e.yes_no("managed", diagnostics)?;
        // Whether the reservations follow the guest to another host: vmward moves no guests.
        e.yes_no("migration", diagnostics);
        let helper = e.only_child("source", diagnostics);
        match (managed, helper) {
            (true, None) => Some(Self::Managed),
            (true, Some(helper)) => {
                // The socket of a helper that libvirt started: it prints it, and so it may be given.
                helper.mark_read();
                Some(Self::Managed)
            }
            (false, Some(helper)) => {
                for (name, value) in [("type", "unix"), ("mode", "client")] {
                    if helper.require(name, diagnostics)? != value {
                        diagnostics.error(helper.span, format!("a reservation helper has {name}='{value}'"));
                    }
                }
                Some(Self::Socket(helper.require("path", diagnostics)?.to_owned()))
            }
            (false, None) => {
                diagnostics.error(e.span, "<reservations managed='no'> needs the <source> of a helper");
                None
            }
        }
    }
}
