//! What goes over the control socket: the types of the varlink interface `org.vmward.Domain`, for the
//! service and for its clients.

use std::error::Error;

use serde::{Deserialize, Serialize};
use zlink::idl;
use zlink::introspect::{self, CustomType, Type};
use zlink::names::TypeName;

use crate::xml::{Diagnostic, Diagnostics, Severity, Span};

/// The name of the interface.
pub const INTERFACE: &str = "org.vmward.Domain";

/// How a running guest is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Type)]
pub struct Status {
    /// The guest's name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// QEMU's run state: `running`, `paused`, `shutdown`, `io-error`, ...
    pub state: String,
    /// The process id of the supervisor.
    pub supervisor: u32,
    /// The process id of QEMU.
    pub qemu: u32,
    /// QEMU's version: `10.0.2`.
    pub version: String,
    /// When the guest was started, in seconds since 1970.
    pub started: u64,
    /// The guest's disks.
    pub disks: Vec<DiskStatus>,
    /// The programs that serve devices of the guest beside QEMU.
    pub helpers: Vec<HelperStatus>,
}

/// A program that serves a device beside QEMU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, CustomType)]
pub struct HelperStatus {
    /// Its name: `swtpm`.
    pub program: String,
    /// The alias of the device: `tpm0`.
    pub device: String,
    /// Its process id, while it runs.
    pub process: Option<u32>,
    /// How it ended, if it does not run.
    pub ended: Option<String>,
}

/// A disk of a running guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, CustomType)]
pub struct DiskStatus {
    /// Its target: `vda`.
    pub target: String,
    /// Its alias, which is its id in QEMU: `virtio-disk0`.
    pub alias: String,
    /// Whether a layer of it is encrypted.
    pub encrypted: bool,
    /// Whether vmward has derived its key instead of QEMU, which has a LUKS header of one opening beside the image.
    pub unlocked_outside: bool,
}

/// A disk that was plugged in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Type)]
pub struct Attached {
    /// Its target.
    pub target: String,
    /// Its alias, which is its id in QEMU.
    pub alias: String,
    /// What was said about its XML, though it was taken.
    pub warnings: Vec<Problem>,
}

/// What a secret's value opens of a disk's image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Type)]
pub struct DiskKeySlots {
    /// The key slots that it opens, each as `NUMBER:MARK`; the mark tells it from what has that number later.
    pub opened: Vec<String>,
    /// How many key slots are not in use.
    pub free: u32,
}

/// A medium that was changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Type)]
pub struct MediaChanged {
    /// What was said about its XML, though it was taken.
    pub warnings: Vec<Problem>,
}

/// Certificates that were read again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Type)]
pub struct TlsReloaded {
    /// What uses those that are there now, for new connections.
    pub reloaded: Vec<String>,
    /// What still uses those that it was opened with, and until when.
    pub kept: Vec<String>,
}

/// A disk of a snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, CustomType)]
pub struct SnapshotDisk {
    /// Its target.
    pub target: String,
    /// The absolute path of the image with what is written from then on. In a request: beside the image below if none.
    pub overlay: Option<String>,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, CustomType)]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// Its disks.
    pub disks: Vec<SnapshotDisk>,
}

/// A snapshot that was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Type)]
pub struct SnapshotCreated {
    /// The snapshot.
    pub snapshot: Snapshot,
}

/// The snapshots of a guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Type)]
pub struct Snapshots {
    /// The oldest first.
    pub snapshots: Vec<Snapshot>,
}

/// A snapshot that was deleted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Type)]
pub struct SnapshotDeleted {
    /// The paths of overlays that nobody needs any more and that could not be removed.
    pub kept: Vec<String>,
}

/// The live XML.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Type)]
pub struct LiveXml {
    /// The whole `<domain>`, without secret values.
    pub xml: String,
}

/// QEMU's answer to a raw command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Type)]
pub struct QmpReply {
    /// What QEMU put in `return`.
    pub reply: serde_json::Value,
}

/// Something that happened in QEMU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Type)]
pub struct GuestEvent {
    /// QEMU's name for it: `SHUTDOWN`, `DEVICE_DELETED`, ... `EVENTS_MISSED` if the client was too slow.
    pub name: String,
    /// What QEMU says about it.
    pub data: serde_json::Value,
    /// When, in microseconds since 1970, if QEMU could tell.
    pub microseconds: Option<u64>,
}

/// Something to say about a place in XML that a client sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, CustomType)]
pub struct Problem {
    /// `error`, `unsupported` or `warning`.
    pub severity: String,
    /// One sentence.
    pub message: String,
    /// The first byte of the place.
    pub start: u64,
    /// One past its last byte.
    pub end: u64,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, Type)]
pub struct Failure {
    /// One sentence.
    pub message: String,
    /// Why, outermost first.
    pub causes: Vec<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// Each at its place, if XML was refused.
    pub problems: Vec<Problem>,
}

/// Makes the enumeration of the errors: each is its name on the wire and a [`Failure`].
macro_rules! errors {
    ($($(#[doc = $doc:literal])+ $name:ident = $wire:literal,)+) => {
        /// The errors of the interface. Their names are stable.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "error", content = "parameters")]
        pub enum ControlError {
            $($(#[doc = $doc])+ #[serde(rename = $wire)] $name(Failure),)+
        }

        impl ControlError {
            /// What every error has.
            pub fn failure(&self) -> &Failure {
                match self {
                    $(Self::$name(failure) => failure,)+
                }
            }
        }

        // By hand, because the derive macro for variants with a type of their own does not compile where
        // they have comments (zlink 0.8.0).
        impl introspect::ReplyError for ControlError {
            const VARIANTS: &'static [&'static idl::Error<'static>] = &[$({
                const COMMENTS: &[&idl::Comment<'static>] = &[$(&idl::Comment::new($doc)),+];
                const ERROR: idl::Error<'static> = idl::Error::new(
                    TypeName::from_static_str_unchecked(stringify!($name)),
                    FAILURE_FIELDS,
                    COMMENTS,
                );
                &ERROR
            },)+];
        }
    };
}

const FAILURE_FIELDS: &[&idl::Field<'static>] = match <Failure as Type>::TYPE {
    idl::Type::Object(idl::List::Borrowed(fields)) => fields,
    _ => &[],
};

errors! {
    /// The XML that was sent is refused: see its problems.
    InvalidXml = "org.vmward.Domain.InvalidXml",
    /// What is asked for cannot be done to this guest.
    InvalidRequest = "org.vmward.Domain.InvalidRequest",
    /// A secret that is needed is missing, or has no value.
    SecretUnavailable = "org.vmward.Domain.SecretUnavailable",
    /// A secret that is needed is of another usage, or its value is damaged or no passphrase.
    SecretUnusable = "org.vmward.Domain.SecretUnusable",
    /// The supervisor may not read a secret that is needed, or has no key to it.
    SecretForbidden = "org.vmward.Domain.SecretForbidden",
    /// A keystore does not work.
    KeystoreUnavailable = "org.vmward.Domain.KeystoreUnavailable",
    /// A keystore cannot be reached, is locked, or did not answer in time: the same again may help.
    KeystoreNotReady = "org.vmward.Domain.KeystoreNotReady",
    /// A program that serves what is asked for is not installed, or did not start.
    HelperUnavailable = "org.vmward.Domain.HelperUnavailable",
    /// The guest has no such disk.
    NoSuchDevice = "org.vmward.Domain.NoSuchDevice",
    /// The guest refused to let go of the device, which is still there.
    GuestRefused = "org.vmward.Domain.GuestRefused",
    /// The guest has not let go of the device in time. It is still there, and may go later.
    DeviceStillThere = "org.vmward.Domain.DeviceStillThere",
    /// The secret's value does not unlock the image.
    WrongKey = "org.vmward.Domain.WrongKey",
    /// Another process has the image open.
    ImageInUse = "org.vmward.Domain.ImageInUse",
    /// What the disk is on may not be opened.
    StorageForbidden = "org.vmward.Domain.StorageForbidden",
    /// What the disk is on is not there.
    StorageMissing = "org.vmward.Domain.StorageMissing",
    /// What the disk is on is not what its XML says.
    StorageMismatch = "org.vmward.Domain.StorageMismatch",
    /// The server that the disk is on does not answer: the same again may help.
    StorageNotReady = "org.vmward.Domain.StorageNotReady",
    /// The guest has let go of the device, but something in QEMU still holds what is behind it.
    StillInUse = "org.vmward.Domain.StillInUse",
    /// QEMU refused; what had been done was undone.
    QemuRefused = "org.vmward.Domain.QemuRefused",
    /// QEMU did not answer, or ended.
    QemuUnavailable = "org.vmward.Domain.QemuUnavailable",
    /// Another client is changing the keys of a disk, or is connecting to the display: the same again may help.
    Busy = "org.vmward.Domain.Busy",
    /// The call is not allowed.
    NotAllowed = "org.vmward.Domain.NotAllowed",
    /// Something else failed.
    Failed = "org.vmward.Domain.Failed",
}

impl Failure {
    /// An error with its chain of causes.
    pub fn of(error: &dyn Error) -> Self {
        let mut causes = Vec::new();
        let mut cause = error.source();
        while let Some(e) = cause {
            causes.push(e.to_string());
            cause = e.source();
        }
        Self { message: error.to_string(), causes, ..Self::default() }
    }

    /// The same with advice.
    pub fn with_hint(mut self, hint: Option<impl Into<String>>) -> Self {
        self.hint = hint.map(Into::into);
        self
    }
}

impl From<&Diagnostic> for Problem {
    fn from(d: &Diagnostic) -> Self {
        Self {
            severity: match d.severity {
                Severity::Error | Severity::StandIn => "error",
                Severity::Unsupported | Severity::OutsideQemu => "unsupported",
                Severity::Warning => "warning",
            }
            .to_owned(),
            message: d.message.clone(),
            start: d.span.start as u64,
            end: d.span.end as u64,
            hint: d.hint.clone(),
        }
    }
}

/// The problems of XML that was sent, to be shown beside it.
pub fn diagnostics(problems: &[Problem]) -> Diagnostics {
    let mut diagnostics = Diagnostics::new();
    for p in problems {
        let place = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let span = Span { start: place(p.start), end: place(p.end) };
        let said = match p.severity.as_str() {
            "warning" => diagnostics.warning(span, &p.message),
            "unsupported" => diagnostics.unsupported(span, &p.message),
            _ => diagnostics.error(span, &p.message),
        };
        if let Some(hint) = &p.hint {
            said.hint(hint);
        }
    }
    diagnostics
}
