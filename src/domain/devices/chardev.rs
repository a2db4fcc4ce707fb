//! The host's side of a character device: where serial ports, channels and their like lead to.

use std::path::PathBuf;

use crate::xml::{Diagnostics, Element, Span, keywords};

use super::tls::Tls;

keywords! {
    /// The `type` of a character device.
    pub enum ChardevType {
        /// Nowhere.
        Null = "null",
        /// A virtual console of QEMU's window.
        Vc = "vc",
        /// A new pseudo terminal.
        Pty = "pty",
        /// A serial or parallel device of the host.
        Dev = "dev",
        /// A file; output only.
        File = "file",
        /// A named pipe.
        Pipe = "pipe",
        /// The supervisor's standard input and output.
        Stdio = "stdio",
        /// UDP.
        Udp = "udp",
        /// TCP.
        Tcp = "tcp",
        /// A unix socket.
        Unix = "unix",
        /// SPICE's own channels.
        SpiceVmc = "spicevmc",
        /// A named channel of SPICE.
        SpicePort = "spiceport",
        /// QEMU's own spice agent.
        QemuVdagent = "qemu-vdagent",
        /// A D-Bus channel.
        Dbus = "dbus",
    }
}

keywords! {
    /// Who waits for whom.
    pub enum SocketMode {
        /// QEMU listens.
        Bind = "bind",
        /// QEMU connects.
        Connect = "connect",
    }
}

keywords! {
    /// What is spoken on a TCP connection.
    pub enum TcpProtocol {
        /// Bytes.
        Raw = "raw",
        /// Telnet.
        Telnet = "telnet",
    }
}

keywords! {
    /// Whose pointer the guest follows.
    pub enum MouseMode {
        /// The guest's own.
        Server = "server",
        /// The client's.
        Client = "client",
    }
}

/// A host and a port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// A name or an address; empty: all.
    pub host: String,
    /// The port.
    pub service: String,
}

/// Where a character device leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// Nowhere.
    Null,
    /// A virtual console.
    Vc,
    /// A new pseudo terminal.
    Pty,
    /// A device of the host.
    Device(PathBuf),
    /// A file.
    File {
        /// Its path.
        path: PathBuf,
        /// Whether what it holds is kept.
        append: bool,
    },
    /// A named pipe.
    Pipe(PathBuf),
    /// Standard input and output.
    Stdio,
    /// UDP.
    Udp {
        /// Where datagrams are sent.
        connect: Endpoint,
        /// Where they are received.
        bind: Endpoint,
    },
    /// TCP.
    Tcp {
        /// Who waits.
        mode: SocketMode,
        /// Where.
        endpoint: Endpoint,
        /// Whether telnet is spoken.
        telnet: bool,
        /// Its certificates, if it uses TLS.
        tls: Option<Tls>,
        /// Seconds until a lost connection is tried again.
        reconnect: Option<u32>,
    },
    /// A unix socket.
    Unix {
        /// Who waits.
        mode: SocketMode,
        /// Where; `None` (channels only): in the domain's lib dir.
        path: Option<PathBuf>,
        /// Seconds until a lost connection is tried again.
        reconnect: Option<u32>,
    },
    /// SPICE's own channels.
    SpiceVmc,
    /// A named channel of SPICE.
    SpicePort(String),
    /// QEMU's own spice agent.
    QemuVdagent {
        /// Whether the clipboard is shared.
        clipboard: Option<bool>,
        /// Whose pointer the guest follows.
        mouse: Option<MouseMode>,
    },
    /// A D-Bus channel.
    Dbus(String),
}

/// The host's side of a character device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chardev {
    /// Where it leads to.
    pub backend: Backend,
    /// Where the XML says so.
    pub span: Span,
    /// A file that gets a copy of all output.
    pub log: Option<Log>,
}

/// A copy of all output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The file.
    pub path: PathBuf,
    /// Whether what it holds is kept.
    pub append: bool,
}

impl Chardev {
    /// Its certificates, if it uses TLS.
    pub fn tls(&self) -> Option<&Tls> {
        match &self.backend {
            Backend::Tcp { tls, .. } => tls.as_ref(),
            _ => None,
        }
    }

    /// Reads `type=` and `<source>`s of a device. A unix socket without a path is an error unless `generated` says that
    /// vmward chooses one.
    pub fn from_xml(device: &Element, generated: bool, diagnostics: &mut Diagnostics) -> Option<Self> {
        let kind: ChardevType = device.require_keyword("type", diagnostics)?;
        let backend = Self::backend(kind, device, generated, diagnostics);
        if kind != ChardevType::Tcp
            && let Some(protocol) = device.only_child("protocol", diagnostics)
            && protocol.keyword::<TcpProtocol>("type", diagnostics).is_some_and(|p| p != TcpProtocol::Raw)
        {
            diagnostics.error(protocol.span, "only TCP connections have a protocol");
        }
        let log = device.only_child("log", diagnostics).and_then(|log| {
            Some(Log {
                path: log.require("file", diagnostics)?.into(),
                append: log.on_off("append", diagnostics).unwrap_or(false),
            })
        });
        Some(Self { backend: backend?, span: device.span, log })
    }

    fn backend(
        kind: ChardevType,
        device: &Element,
        generated: bool,
        diagnostics: &mut Diagnostics,
    ) -> Option<Backend> {
        match kind {
            ChardevType::Null => Some(Backend::Null),
            ChardevType::Vc => Some(Backend::Vc),
            ChardevType::Stdio => Some(Backend::Stdio),
            ChardevType::SpiceVmc => Some(Backend::SpiceVmc),
            ChardevType::Pty => {
                // The path and `tty=` are what a running guest's XML shows; each start makes a new one.
                if let Some(source) = device.child("source") {
                    source.get("path");
                }
                device.get("tty");
                Some(Backend::Pty)
            }
            ChardevType::Dev => path(device, diagnostics).map(Backend::Device),
            ChardevType::Pipe => path(device, diagnostics).map(Backend::Pipe),
            ChardevType::File => {
                let append = device.child("source").and_then(|s| s.on_off("append", diagnostics));
                Some(Backend::File { path: path(device, diagnostics)?, append: append.unwrap_or(false) })
            }
            ChardevType::Udp => Some(udp(device, diagnostics)),
            ChardevType::Tcp => tcp(device, diagnostics),
            ChardevType::Unix => unix(device, generated, diagnostics),
            ChardevType::SpicePort => channel(device, diagnostics).map(Backend::SpicePort),
            ChardevType::Dbus => channel(device, diagnostics).map(Backend::Dbus),
            ChardevType::QemuVdagent => {
                let source = device.only_child("source", diagnostics);
                Some(Backend::QemuVdagent {
                    clipboard: source
                        .and_then(|s| s.child("clipboard"))
                        .and_then(|c| c.yes_no("copypaste", diagnostics)),
                    mouse: source.and_then(|s| s.child("mouse")).and_then(|m| m.keyword("mode", diagnostics)),
                })
            }
        }
    }
}

fn source<'a>(device: &'a Element, diagnostics: &mut Diagnostics) -> Option<&'a Element> {
    let found = device.only_child("source", diagnostics);
    match found {
        Some(source) => ignore_label(source),
        None => {
            diagnostics.error(device.span, format!("<{}> lacks its <source>", device.name));
        }
    }
    found
}

/// Labels are SELinux's and AppArmor's: vmward has none to set on a character device.
fn ignore_label(source: &Element) {
    source.children("seclabel").for_each(Element::mark_read);
}

fn path(device: &Element, diagnostics: &mut Diagnostics) -> Option<PathBuf> {
    let source = source(device, diagnostics)?;
    source.require("path", diagnostics).map(PathBuf::from)
}

fn channel(device: &Element, diagnostics: &mut Diagnostics) -> Option<String> {
    source(device, diagnostics)?.require("channel", diagnostics).map(str::to_owned)
}

fn endpoint(source: &Element) -> Endpoint {
    Endpoint {
        host: source.get("host").unwrap_or_default().to_owned(),
        service: source.get("service").unwrap_or_default().to_owned(),
    }
}

fn udp(device: &Element, diagnostics: &mut Diagnostics) -> Backend {
    let (mut connect, mut bind) = (Endpoint::default(), Endpoint::default());
    for source in device.children("source") {
        ignore_label(source);
        match source.keyword("mode", diagnostics) {
            Some(SocketMode::Bind) => bind = endpoint(source),
            Some(SocketMode::Connect) | None => connect = endpoint(source),
        }
    }
    if connect.service.is_empty() {
        diagnostics.error(device.span, "UDP needs a <source mode='connect'> with a service");
    }
    Backend::Udp { connect, bind }
}

/// `tls='yes'`, and what is said of the certificates.
fn tls(source: &Element, diagnostics: &mut Diagnostics) -> Option<Tls> {
    let certificates = Tls::from_xml(source, diagnostics);
    match (source.yes_no("tls", diagnostics), certificates) {
        (Some(true), certificates) => Some(certificates.unwrap_or_default()),
        (_, Some(_)) => {
            diagnostics.error(source.span, "<tls> needs tls='yes'");
            None
        }
        (_, None) => None,
    }
}

fn tcp(device: &Element, diagnostics: &mut Diagnostics) -> Option<Backend> {
    let source = source(device, diagnostics)?;
    let mode = source.keyword("mode", diagnostics).unwrap_or(SocketMode::Connect);
    source.require("host", diagnostics);
    source.require("service", diagnostics);
    let protocol = device.only_child("protocol", diagnostics);
    let encrypted =
        protocol.and_then(|p| p.attribute("type")).filter(|a| ["tls", "telnets"].contains(&a.value.as_str()));
    if let Some(attribute) = encrypted {
        diagnostics
            .error(attribute.span, format!("QEMU has no protocol '{}'", attribute.value))
            .hint("TLS is <source tls='yes' .../> with <protocol type='raw'/>");
        return None;
    }
    let protocol = protocol.and_then(|p| p.keyword("type", diagnostics)).unwrap_or(TcpProtocol::Raw);
    Some(Backend::Tcp {
        mode,
        endpoint: endpoint(source),
        telnet: protocol == TcpProtocol::Telnet,
        tls: tls(source, diagnostics),
        reconnect: reconnect(source, mode, diagnostics),
    })
}

fn unix(device: &Element, generated: bool, diagnostics: &mut Diagnostics) -> Option<Backend> {
    let found = device.only_child("source", diagnostics);
    if let Some(source) = found {
        ignore_label(source);
    }
    let path = found.and_then(|s| s.get("path")).filter(|p| !p.is_empty()).map(PathBuf::from);
    if path.is_none() && !generated {
        diagnostics.error(
            found.map_or(device.span, |s| s.span),
            format!("<{} type='unix'> lacks the path of its <source>", device.name),
        );
        return None;
    }
    // A channel that names no socket gets a listening one in the lib dir.
    let default = if path.is_none() { SocketMode::Bind } else { SocketMode::Connect };
    let mode = found.and_then(|s| s.keyword("mode", diagnostics)).unwrap_or(default);
    if path.is_none() && mode == SocketMode::Connect {
        diagnostics
            .error(found.map_or(device.span, |s| s.span), "connecting to a unix socket needs its path");
        return None;
    }
    Some(Backend::Unix { mode, path, reconnect: found.and_then(|s| reconnect(s, mode, diagnostics)) })
}

/// `<reconnect enabled= timeout=/>` of a socket; `enabled='no'` says 0 seconds, which is never.
pub(super) fn reconnect(source: &Element, mode: SocketMode, diagnostics: &mut Diagnostics) -> Option<u32> {
    let reconnect = source.only_child("reconnect", diagnostics)?;
    let timeout: Option<u32> = reconnect.number("timeout", diagnostics);
    let enabled = reconnect.yes_no("enabled", diagnostics)?;
    if !enabled {
        return Some(0);
    }
    if mode == SocketMode::Bind {
        diagnostics.error(reconnect.span, "a listening socket cannot reconnect");
    }
    if timeout.is_none_or(|t| t == 0) {
        diagnostics.error(reconnect.span, "reconnecting needs a timeout of at least 1 second");
    }
    timeout
}
