//! The vocabulary of what QEMU is told.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::domain::devices::interface::DirectMode;
use crate::secret::{MASTER_KEY_ID, SealedSecret, SecretRef, SecretValue};
use crate::xml::{Diagnostics, Span};

use super::storage::{LocalImage, ServerImage};
use super::{Helper, SshFile};

/// A JSON object in the order in which it is printed.
pub type JsonObject = Map<String, Value>;

/// Where the value of a secret object comes from.
#[derive(Debug, Clone)]
pub enum SecretSource {
    /// A keystore.
    Keystore(SecretRef),
    /// The XML itself (cookies, `passwd=`).
    Xml(Arc<SecretValue>),
    /// Made for one opening: see [`Images::open_with_header`](super::storage::Images::open_with_header).
    Once(Arc<SecretValue>),
}

impl SecretSource {
    /// The value; `find` knows those of the keystores.
    pub fn value<'a>(
        &'a self,
        find: impl FnOnce(&SecretRef) -> Option<&'a SecretValue>,
    ) -> Option<&'a SecretValue> {
        match self {
            Self::Keystore(reference) => find(reference),
            Self::Xml(value) | Self::Once(value) => Some(value),
        }
    }
}

/// A `secret` object that QEMU is to have. Its value is encrypted only when it is printed or sent, each
/// time under a fresh IV.
#[derive(Debug, Clone)]
pub struct SecretObject {
    /// Its id, as libvirt names it.
    pub id: String,
    /// Its value.
    pub source: SecretSource,
}

impl SecretObject {
    /// The object's properties with its sealed value.
    pub fn properties(&self, sealed: &SealedSecret) -> JsonObject {
        Self::sealed_properties(&self.id, sealed)
    }

    /// The properties of a secret object with that id and value.
    pub fn sealed_properties(id: &str, sealed: &SealedSecret) -> JsonObject {
        object(json!({
            "qom-type": "secret",
            "id": id,
            "data": sealed.data,
            "keyid": MASTER_KEY_ID,
            "iv": sealed.iv,
            "format": "base64",
        }))
    }
}

/// An object that QEMU is to have.
#[derive(Debug, Clone)]
pub enum QemuObject {
    /// A secret.
    Secret(SecretObject),
    /// Anything else (`tls-creds-x509`, `throttle-group`, `pr-manager-helper`, ...), `qom-type` and `id` first.
    Plain(JsonObject),
}

impl QemuObject {
    /// Its id.
    pub fn id(&self) -> &str {
        match self {
            Self::Secret(s) => &s.id,
            Self::Plain(p) => p.get("id").and_then(Value::as_str).unwrap_or_default(),
        }
    }
}

/// Everything a disk needs in QEMU, each list in the order in which it is made; it is undone in reverse.
#[derive(Debug, Clone, Default)]
pub struct DiskPlan {
    /// `object-add` / `-object`.
    pub objects: Vec<QemuObject>,
    /// `blockdev-add` / `-blockdev`: base image first, protocol before format.
    pub nodes: Vec<JsonObject>,
    /// `chardev-add` / `-chardev`: a vhost-user disk has this instead of nodes.
    pub chardev: Option<SocketChardev>,
    /// `device_add` / `-device`; its `id` is the disk's alias.
    pub device: JsonObject,
    /// The arguments of `block_set_io_throttle`, sent when the device is there and before the guest runs.
    pub throttle: Option<JsonObject>,
    /// What has to be there outside QEMU beforehand.
    pub descriptors: Vec<Descriptor>,
    /// It has an image with managed persistent reservations, for which a helper has to run.
    pub reservations: Option<Span>,
    /// What it is read and written through, which has to run: that helper with the first of these disks, and others of its own.
    pub helpers: Vec<Helper>,
    /// Images that a helper gets from a server, each with its protocol node, which is not told yet where that listens.
    pub served: Vec<(String, SshFile, Span)>,
    /// The images among `nodes` that QEMU can have opened.
    pub images: Vec<LocalImage>,
    /// The raw LUKS images on servers among them.
    pub servers: Vec<ServerImage>,
    /// A device of the host that a node has as its `path`, with the place in the XML. At a start QEMU gets it opened.
    pub opened: Option<(String, Span)>,
}

impl DiskPlan {
    /// What QEMU is told of the object or node of that name.
    pub fn told(&self, name: &str) -> Option<&JsonObject> {
        let objects = self.objects.iter().filter_map(|o| match o {
            QemuObject::Plain(properties) => Some((o.id(), properties)),
            QemuObject::Secret(_) => None,
        });
        let nodes =
            self.nodes.iter().map(|n| (n.get("node-name").and_then(Value::as_str).unwrap_or_default(), n));
        objects.chain(nodes).find(|(id, _)| *id == name).map(|(_, told)| told)
    }
}

/// A character device that connects to a unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketChardev {
    /// Its id.
    pub id: String,
    /// The socket.
    pub path: String,
    /// When a lost connection is tried again: the option and its value, see [`Capabilities::reconnect`].
    pub reconnect: Option<(&'static str, u64)>,
}

impl SocketChardev {
    /// The arguments of `chardev-add`.
    pub fn properties(&self) -> JsonObject {
        let mut data = object(json!({
            "addr": { "type": "unix", "data": { "path": self.path } },
            "server": false,
        }));
        if let Some((name, value)) = self.reconnect {
            data.insert(name.to_owned(), value.into());
        }
        object(json!({ "id": self.id, "backend": { "type": "socket", "data": data } }))
    }

    /// The value of `-chardev`.
    fn option(&self) -> String {
        // QEMU's key=value syntax: a comma in a value is doubled.
        let mut option = format!("socket,id={},path={}", self.id, self.path.replace(',', ",,"));
        if let Some((name, value)) = self.reconnect {
            option.push_str(&format!(",{name}={value}"));
        }
        option
    }
}

/// Something outside QEMU that vmward does not provide yet.
pub(crate) fn unavailable(span: Span, what: &str) -> Descriptor {
    Descriptor { numbers: Vec::new(), resource: Resource::Unavailable(what.to_owned()), span }
}

/// One option of QEMU's command line.
#[derive(Debug, Clone)]
pub enum Argument {
    /// `-nodefaults`.
    Flag(&'static str),
    /// `-m 1024`, in QEMU's key=value syntax where the option has one.
    Text(&'static str, String),
    /// `-device {"driver":...}`.
    Json(&'static str, JsonObject),
    /// `-object {"qom-type":"secret",...}`, sealed when it is printed.
    Secret(SecretObject),
    /// One word of `<qemu:commandline>`, as it is.
    Raw(String),
}

/// A file or directory of the host that is to be there when QEMU starts, and QEMU's user's to use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Preparation {
    /// A directory of this domain alone, in which QEMU makes the files of its memory.
    Directory(PathBuf),
    /// A file that is copied from another one if it is not there: a firmware's variables.
    Copy {
        /// What it is copied from.
        from: PathBuf,
        /// The file.
        to: PathBuf,
        /// Where the XML asks for it.
        span: Span,
    },
    /// A file in the lib dir that QEMU reads when it starts.
    Write {
        /// The file.
        path: PathBuf,
        /// What is in it.
        contents: String,
    },
}

/// Something outside QEMU that is made or opened before it starts and that it inherits as a descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// The numbers that the arguments name, one for each queue of a device; none: nothing is inherited.
    pub numbers: Vec<i32>,
    /// What it is.
    pub resource: Resource,
    /// Where the XML asks for it: a start that cannot provide it points here.
    pub span: Span,
}

/// What a [`Descriptor`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resource {
    /// A tap device, made for the guest's lifetime and brought up.
    Tap(Tap),
    /// A macvtap device, made for the guest's lifetime and brought up.
    Macvtap(Macvtap),
    /// `/dev/vhost-net`: the kernel's virtio-net backend.
    VhostNet,
    /// `/dev/vhost-vsock`: sockets between the guest and the host. QEMU tells it the guest's CID.
    VhostVsock,
    /// `/dev/vhost-scsi`: SCSI targets of the kernel. QEMU tells it which one.
    VhostScsi,
    /// A tap device on a network that somebody else manages; what of it vmward does not provide.
    ForeignTap(&'static str),
    /// A listening unix socket.
    UnixListener(SocketPath),
    /// A file for output, made if it is not there.
    File {
        /// Its path.
        path: PathBuf,
        /// Whether what it holds is kept.
        append: bool,
    },
    /// A device of the host, for reading and writing.
    Device(PathBuf),
    /// What whoever starts QEMU has open already.
    Open,
    /// What vmward does not provide yet, in words that complete "vmward does not provide ... yet".
    Unavailable(String),
}

/// Where a listening socket is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketPath {
    /// Where the XML says.
    Given(PathBuf),
    /// In the domain's lib dir, under this name.
    InLibDir(String),
}

impl Resource {
    /// What of it vmward does not provide, if anything.
    pub fn unprovided(&self) -> Option<&str> {
        Some(match self {
            Self::Unavailable(what) => what,
            Self::ForeignTap(what) => what,
            _ => return None,
        })
    }

    /// The first number where none is open (see [`CommandLine::nominal`]): those that libvirt's tests use.
    fn nominal(&self) -> i32 {
        match self {
            Self::ForeignTap(_) | Self::Macvtap(_) => 102,
            Self::Tap(tap) if tap.bridge.is_some() => 102,
            Self::Tap(_) | Self::VhostScsi => 3,
            Self::VhostNet => 44,
            Self::VhostVsock => 6789,
            Self::UnixListener(_)
            | Self::File { .. }
            | Self::Device(_)
            | Self::Open
            | Self::Unavailable(_) => 1729,
        }
    }
}

/// A tap device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tap {
    /// Its name on the host; `None`: the kernel picks `vnetN`.
    pub name: Option<String>,
    /// `managed='no'`: it exists already and belongs to somebody else, who sets it up.
    pub existing: bool,
    /// The bridge that it is put on.
    pub bridge: Option<String>,
    /// Whether packets carry a virtio header (virtio models).
    pub vnet_header: bool,
    /// More than one queue: each is a descriptor of its own.
    pub multi_queue: bool,
    /// The guest's MAC address; the host's end gets the same with `fe` in front.
    pub mac: Option<[u8; 6]>,
    /// The largest packet; `None`: the kernel's usual one.
    pub mtu: Option<u32>,
}

/// A macvtap device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Macvtap {
    /// Its name on the host; `None`: `macvtapN`.
    pub name: Option<String>,
    /// The interface of the host that it is on.
    pub device: String,
    /// How it reaches others there.
    pub mode: DirectMode,
    /// The guest's MAC address, which is the device's.
    pub mac: Option<[u8; 6]>,
    /// The largest packet; `None`: that of the interface.
    pub mtu: Option<u32>,
}

/// QEMU's command line for one domain: everything but the program and the options that are the
/// supervisor's own (monitor, master key, sandbox, `-S`).
#[derive(Debug, Clone, Default)]
pub struct CommandLine {
    /// The options in order.
    pub arguments: Vec<Argument>,
    /// What the arguments name by descriptor number.
    pub descriptors: Vec<Descriptor>,
    /// Nothing will be started: descriptors have the numbers of libvirt's tests instead of their own.
    pub nominal: bool,
    /// The arguments of a `block_set_io_throttle` for each disk that has limits, to be sent before the guest runs.
    pub throttles: Vec<JsonObject>,
    /// Variables of QEMU's environment. No secrets: `/proc` shows them.
    pub environment: Vec<(String, String)>,
    /// What is to be there on the host before QEMU starts.
    pub preparations: Vec<Preparation>,
    /// What is to run beside QEMU.
    pub helpers: Vec<Helper>,
    /// The images among its nodes that QEMU can have opened.
    pub images: Vec<LocalImage>,
    /// The raw LUKS images on servers among them.
    pub servers: Vec<ServerImage>,
}

impl CommandLine {
    /// Adds an option without a value.
    pub fn flag(&mut self, flag: &'static str) {
        self.arguments.push(Argument::Flag(flag));
    }

    /// Adds an option with a text value.
    pub fn text(&mut self, flag: &'static str, value: impl Into<String>) {
        self.arguments.push(Argument::Text(flag, value.into()));
    }

    /// Adds an option with a JSON value: `line.json("-device", json!({...}))`.
    pub fn json(&mut self, flag: &'static str, value: JsonObject) {
        self.arguments.push(Argument::Json(flag, value));
    }

    /// Adds an object.
    pub fn object(&mut self, object: QemuObject) {
        self.arguments.push(match object {
            QemuObject::Secret(secret) => Argument::Secret(secret),
            QemuObject::Plain(properties) => Argument::Json("-object", properties),
        });
    }

    /// Adds a disk.
    pub fn disk(&mut self, mut plan: DiskPlan) {
        if let Some((path, span)) = plan.opened {
            let set = self.fd_set(Resource::Device(path.as_str().into()), &path, span);
            for value in plan.nodes.iter_mut().filter_map(|n| n.get_mut("path")).filter(|v| **v == path) {
                *value = set.clone().into();
            }
        }
        plan.objects.into_iter().for_each(|o| self.object(o));
        if let Some(chardev) = plan.chardev {
            self.text("-chardev", chardev.option());
        }
        plan.nodes.into_iter().for_each(|n| self.json("-blockdev", n));
        self.json("-device", plan.device);
        self.throttles.extend(plan.throttle);
        self.descriptors.extend(plan.descriptors);
        self.helpers.extend(plan.helpers);
        self.images.extend(plan.images);
        self.servers.extend(plan.servers);
    }

    /// Has QEMU inherit something; its number.
    pub fn descriptor(&mut self, resource: Resource, span: Span) -> i32 {
        self.queue_descriptors(resource, 1, span).first().copied().unwrap_or_default()
    }

    /// Has QEMU inherit something that it opens once for each queue.
    pub fn queue_descriptors(&mut self, resource: Resource, queues: u32, span: Span) -> Vec<i32> {
        /// Below are the standard ones and those of the supervisor's own options.
        const FIRST: i32 = 10;
        let used = self.descriptors.iter().flat_map(|d| &d.numbers).max();
        let first = if self.nominal { resource.nominal() } else { used.map_or(FIRST, |n| n + 1) };
        let numbers: Vec<i32> = (first..).take(queues as usize).collect();
        self.descriptors.push(Descriptor { numbers: numbers.clone(), resource, span });
        numbers
    }

    /// Has QEMU inherit something that it opens by a path; that path.
    pub fn fd_set(&mut self, resource: Resource, name: &str, span: Span) -> String {
        fd_set_path(self.add_fd_set(resource, name, span).0)
    }

    /// The set's number, and the descriptor's.
    pub fn add_fd_set(&mut self, resource: Resource, name: &str, span: Span) -> (u32, i32) {
        let sets = self.arguments.iter().filter(|a| matches!(a, Argument::Text("-add-fd", _))).count();
        let set = u32::try_from(sets).unwrap_or(u32::MAX);
        let fd = self.descriptor(resource, span);
        self.text("-add-fd", format!("set={set},fd={fd},opaque={name}"));
        (set, fd)
    }

    /// Needs something that QEMU does not inherit.
    pub fn require(&mut self, resource: Resource, span: Span) {
        self.descriptors.push(Descriptor { numbers: Vec::new(), resource, span });
    }

    /// Says, each at its line, what a start would need and vmward does not provide.
    pub fn say_unprovided(&self, diagnostics: &mut Diagnostics) {
        for descriptor in &self.descriptors {
            if let Some(what) = descriptor.resource.unprovided() {
                diagnostics.error(descriptor.span, format!("vmward does not provide {what} yet"));
            }
        }
    }

    /// Whether a device of the guest is on QEMU's standard streams.
    pub fn uses_stdio(&self) -> bool {
        self.arguments
            .iter()
            .any(|a| matches!(a, Argument::Text("-chardev", value) if value.starts_with("stdio,")))
    }

    /// The secret objects in here.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretObject> {
        self.arguments.iter().filter_map(|a| match a {
            Argument::Secret(s) => Some(s),
            _ => None,
        })
    }

    /// The options as strings; `seal` encrypts each secret's value.
    pub fn render<E>(
        &self,
        mut seal: impl FnMut(&SecretObject) -> Result<SealedSecret, E>,
    ) -> Result<Vec<String>, E> {
        let mut out = Vec::with_capacity(self.arguments.len() * 2);
        for argument in &self.arguments {
            match argument {
                Argument::Flag(flag) => out.push((*flag).to_owned()),
                Argument::Raw(word) => out.push(word.clone()),
                Argument::Text(flag, value) => out.extend([(*flag).to_owned(), value.clone()]),
                Argument::Json(flag, value) => {
                    out.extend([(*flag).to_owned(), Value::Object(value.clone()).to_string()]);
                }
                Argument::Secret(secret) => {
                    let properties = secret.properties(&seal(secret)?);
                    out.extend(["-object".to_owned(), Value::Object(properties).to_string()]);
                }
            }
        }
        Ok(out)
    }
}

/// The path by which QEMU opens what is in a set of descriptors.
pub(super) fn fd_set_path(set: u32) -> String {
    format!("/dev/fdset/{set}")
}

/// The map of a `json!({...})`.
pub(crate) fn object(value: Value) -> JsonObject {
    match value {
        Value::Object(map) => map,
        _ => JsonObject::new(),
    }
}

/// A value inside QEMU's key=value syntax, where a comma separates.
pub(crate) fn comma_escaped(value: &str) -> String {
    value.replace(',', ",,")
}
