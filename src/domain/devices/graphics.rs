//! `<graphics>`.

use std::path::PathBuf;

use crate::secret::SecretRef;
use crate::xml::{Diagnostics, Element, Span, keywords};

use super::chardev::MouseMode;
use super::password::{Password, PasswordProtocol};
use super::tls::Tls;

keywords! {
    /// The `type` of graphics.
    pub enum GraphicsType {
        /// VNC.
        Vnc = "vnc",
        /// SPICE.
        Spice = "spice",
        /// A window on the host.
        Sdl = "sdl",
        /// Rendering without an output.
        EglHeadless = "egl-headless",
        /// D-Bus.
        Dbus = "dbus",
    }
}

keywords! {
    /// What a `<listen>` is.
    pub enum ListenType {
        /// An address of the host.
        Address = "address",
        /// The address of a network of libvirt's.
        Network = "network",
        /// A unix socket.
        Socket = "socket",
        /// Nowhere: clients get in through the supervisor.
        None = "none",
    }
}

keywords! {
    /// What becomes of a VNC client when another one comes.
    pub enum SharePolicy {
        /// A client may ask to be alone.
        AllowExclusive = "allow-exclusive",
        /// All clients share.
        ForceShared = "force-shared",
        /// Everything goes.
        Ignore = "ignore",
    }
}

keywords! {
    /// Which connections a channel of SPICE takes.
    pub enum ChannelSecurity {
        /// All of them.
        Any = "any",
        /// Those in TLS.
        Secure = "secure",
        /// Those in the clear.
        Insecure = "insecure",
    }
}

keywords! {
    /// The channels of SPICE.
    pub enum SpiceChannel {
        /// What all clients open first.
        Main = "main",
        /// The screen.
        Display = "display",
        /// Keyboard and mouse.
        Inputs = "inputs",
        /// The pointer.
        Cursor = "cursor",
        /// Sound to the client.
        Playback = "playback",
        /// Sound from the client.
        Record = "record",
        /// Smart cards.
        Smartcard = "smartcard",
        /// USB devices.
        Usbredir = "usbredir",
    }
}

/// Where graphics are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// On an address; `None`: 127.0.0.1.
    Address(Option<String>),
    /// On the address of a network of libvirt's.
    Network(String),
    /// On a unix socket; `None`: in the domain's lib dir.
    Socket(Option<PathBuf>),
    /// Nowhere.
    None,
}

/// VNC.
#[derive(Debug, Clone)]
pub struct Vnc {
    /// The port; `None`: the first free one from 5900 on.
    pub port: Option<u16>,
    /// The port for WebSockets; -1 is any.
    pub websocket: Option<i32>,
    /// The password that clients need.
    pub password: Option<Password>,
    /// Its certificates: clients have to use TLS.
    pub tls: Option<Tls>,
    /// What becomes of a client when another one comes.
    pub share_policy: Option<SharePolicy>,
    /// Whether clients can power the guest off.
    pub power_control: Option<bool>,
}

/// A port of SPICE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// None: nothing listens.
    None,
    /// The first free one.
    Any,
    /// This one.
    Given(u16),
}

impl Port {
    /// Its number, or the one to start with.
    pub fn number_or(self, first: u16) -> Option<u16> {
        match self {
            Self::None => None,
            Self::Any => Some(first),
            Self::Given(port) => Some(port),
        }
    }
}

/// SPICE.
#[derive(Debug, Clone)]
pub struct Spice {
    /// The port for connections in the clear.
    pub port: Port,
    /// The port for TLS.
    pub tls_port: Port,
    /// Which connections each channel takes; `None` stands for those that are not named.
    pub channels: Vec<(Option<SpiceChannel>, ChannelSecurity)>,
    /// The password that clients need.
    pub password: Option<Password>,
    /// Options as QEMU names them, in its order.
    pub options: Vec<(&'static str, String)>,
    /// OpenGL.
    pub gl: Option<bool>,
    /// The device that renders.
    pub render_node: Option<PathBuf>,
}

/// What is served.
#[derive(Debug, Clone)]
pub enum GraphicsKind {
    /// VNC.
    Vnc(Vnc),
    /// SPICE.
    Spice(Spice),
    /// A window on the host.
    Sdl {
        /// OpenGL.
        gl: Option<bool>,
        /// Whether it takes the whole screen.
        fullscreen: bool,
        /// The X display.
        display: Option<String>,
        /// The X authority file.
        authority: Option<PathBuf>,
    },
    /// Rendering without an output.
    EglHeadless {
        /// The device that renders.
        render_node: Option<PathBuf>,
    },
    /// D-Bus.
    Dbus {
        /// Through the supervisor alone.
        p2p: bool,
        /// The bus.
        address: Option<String>,
        /// OpenGL.
        gl: Option<bool>,
        /// The device that renders.
        render_node: Option<PathBuf>,
    },
}

/// A `<graphics>`.
#[derive(Debug, Clone)]
pub struct Graphics {
    /// Where it stands.
    pub span: Span,
    /// What is served.
    pub kind: GraphicsKind,
    /// Where.
    pub listen: Listen,
    /// The keyboard layout of clients.
    pub keymap: Option<String>,
    /// The audio backend that clients hear.
    pub audio: Option<u32>,
}

impl Graphics {
    /// Reads a `<graphics>`.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let kind: GraphicsType = element.require_keyword("type", diagnostics)?;
        let listens = matches!(kind, GraphicsType::Vnc | GraphicsType::Spice);
        let listen = if listens { listen(element, diagnostics) } else { Listen::None };
        let keymap = listens.then(|| element.get("keymap").map(str::to_owned)).flatten();
        let audio = element.only_child("audio", diagnostics).and_then(|a| a.number("id", diagnostics));
        let kind = match kind {
            GraphicsType::Vnc => GraphicsKind::Vnc(vnc(element, diagnostics)),
            GraphicsType::Spice => GraphicsKind::Spice(spice(element, diagnostics)),
            GraphicsType::Sdl => GraphicsKind::Sdl {
                gl: gl(element, diagnostics).0,
                fullscreen: element.yes_no("fullscreen", diagnostics).unwrap_or(false),
                display: element.get("display").map(str::to_owned),
                authority: element.get("xauth").map(PathBuf::from),
            },
            GraphicsType::EglHeadless => {
                GraphicsKind::EglHeadless { render_node: gl(element, diagnostics).1 }
            }
            GraphicsType::Dbus => {
                let (gl, render_node) = gl(element, diagnostics);
                GraphicsKind::Dbus {
                    p2p: element.yes_no("p2p", diagnostics).unwrap_or(false),
                    address: element.get("address").map(str::to_owned),
                    gl,
                    render_node,
                }
            }
        };
        Some(Self { span: element.span, kind, listen, keymap, audio })
    }

    /// The password that its clients need, and how they give it.
    pub fn password(&self) -> Option<(PasswordProtocol, &Password)> {
        match &self.kind {
            GraphicsKind::Vnc(vnc) => vnc.password.as_ref().map(|p| (PasswordProtocol::Vnc, p)),
            GraphicsKind::Spice(spice) => spice.password.as_ref().map(|p| (PasswordProtocol::Spice, p)),
            _ => None,
        }
    }

    /// Its certificates.
    pub fn tls(&self) -> Option<&Tls> {
        match &self.kind {
            GraphicsKind::Vnc(vnc) => vnc.tls.as_ref(),
            _ => None,
        }
    }

    /// The secrets that it uses.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretRef> {
        let password = self.password().and_then(|(_, password)| password.secret());
        password.into_iter().chain(self.tls().and_then(|tls| tls.secret.as_ref()))
    }
}

fn gl(element: &Element, diagnostics: &mut Diagnostics) -> (Option<bool>, Option<PathBuf>) {
    let Some(gl) = element.only_child("gl", diagnostics) else { return (None, None) };
    (gl.yes_no("enable", diagnostics), gl.get("rendernode").map(PathBuf::from))
}

/// `<listen>` children, or the older attributes `listen=` and `socket=`. QEMU listens in one place.
fn listen(element: &Element, diagnostics: &mut Diagnostics) -> Listen {
    let attribute = element.get("listen").filter(|a| !a.is_empty());
    let socket = element.get("socket").filter(|s| !s.is_empty());
    let Some(listen) = element.only_child("listen", diagnostics) else {
        return match socket {
            Some(socket) => Listen::Socket(Some(socket.into())),
            None => Listen::Address(attribute.map(str::to_owned)),
        };
    };
    match listen.require_keyword("type", diagnostics) {
        Some(ListenType::Address) => {
            let address = listen.get("address").filter(|a| !a.is_empty());
            if let (Some(old), Some(new)) = (attribute, address)
                && old != new
            {
                diagnostics.error(
                    listen.span,
                    format!("<listen> says {new}, the attribute of <graphics> says {old}"),
                );
            }
            Listen::Address(address.or(attribute).map(str::to_owned))
        }
        Some(ListenType::Network) => {
            // The address is a running guest's.
            listen.get("address");
            Listen::Network(listen.require("network", diagnostics).unwrap_or_default().to_owned())
        }
        Some(ListenType::Socket) => Listen::Socket(listen.get("socket").or(socket).map(PathBuf::from)),
        Some(ListenType::None) => Listen::None,
        None => Listen::Address(None),
    }
}

/// -1 is "any" in the XML.
fn port(element: &Element, name: &str, diagnostics: &mut Diagnostics) -> Option<u16> {
    let found: i32 = element.number(name, diagnostics)?;
    if found == -1 {
        return None;
    }
    let port = u16::try_from(found).ok();
    if port.is_none() {
        diagnostics.error(element.span, format!("{found} is not a port"));
    }
    port
}

fn vnc(element: &Element, diagnostics: &mut Diagnostics) -> Vnc {
    let auto = element.yes_no("autoport", diagnostics) == Some(true);
    let port = port(element, "port", diagnostics).filter(|_| !auto);
    // QEMU counts displays from there.
    const FIRST_VNC_PORT: u16 = 5900;
    if let (Some(port), Some(attribute)) = (port, element.attribute("port"))
        && port < FIRST_VNC_PORT
    {
        diagnostics.error(attribute.span, format!("VNC ports start at {FIRST_VNC_PORT}"));
    }
    Vnc {
        port,
        websocket: element.number("websocket", diagnostics),
        password: Password::from_xml(element, PasswordProtocol::Vnc, diagnostics),
        tls: Tls::from_xml(element, diagnostics),
        share_policy: element.keyword("sharePolicy", diagnostics),
        power_control: element.yes_no("powerControl", diagnostics),
    }
}

fn spice(element: &Element, diagnostics: &mut Diagnostics) -> Spice {
    let autoport = element.yes_no("autoport", diagnostics).unwrap_or(false);
    let mut options = Vec::new();
    for (name, attribute, option) in SPICE_OPTIONS {
        if let Some(value) = element.child(name).and_then(|child| child.get(attribute)) {
            options.push((*option, value.to_owned()));
        }
    }
    if let Some(mode) =
        element.child("mouse").and_then(|m| m.require_keyword::<MouseMode>("mode", diagnostics))
    {
        let agent = if mode == MouseMode::Client { "on" } else { "off" };
        options.push(("agent-mouse", agent.to_owned()));
    }
    if element.child("clipboard").and_then(|c| c.yes_no("copypaste", diagnostics)) == Some(false) {
        options.push(("disable-copy-paste", "on".to_owned()));
    }
    if element.child("filetransfer").and_then(|f| f.yes_no("enable", diagnostics)) == Some(false) {
        options.push(("disable-agent-file-xfer", "on".to_owned()));
    }
    let (gl, render_node) = gl(element, diagnostics);
    let spice_port = |name: &str, diagnostics: &mut Diagnostics| match element.attribute(name) {
        None => Port::None,
        Some(attribute) if attribute.value == "-1" => Port::Any,
        // 0 is libvirt's word for none.
        Some(_) => port(element, name, diagnostics).filter(|p| *p != 0).map_or(Port::None, Port::Given),
    };
    let channels = channels(element, diagnostics);
    let (port, tls_port) = if autoport {
        // What stands there comes from a running guest. TLS is not offered to clients that nobody asked to use it.
        for name in ["port", "tlsPort"] {
            element.get(name);
        }
        let wanted = |security: ChannelSecurity| {
            if channels.iter().any(|(_, s)| *s == security) { Port::Any } else { Port::None }
        };
        // Where all are to be secure, only one that is named otherwise needs a port in the clear.
        let all_secure = channels.contains(&(None, ChannelSecurity::Secure));
        let (clear, secure) = (wanted(ChannelSecurity::Insecure), wanted(ChannelSecurity::Secure));
        (if all_secure { clear } else { Port::Any }, secure)
    } else {
        (spice_port("port", diagnostics), spice_port("tlsPort", diagnostics))
    };
    for (security, there) in [(ChannelSecurity::Secure, tls_port), (ChannelSecurity::Insecure, port)] {
        if there == Port::None && channels.iter().any(|(_, s)| *s == security) {
            diagnostics
                .error(
                    element.span,
                    format!("channels of SPICE are to be '{}', and no port is", security.as_str()),
                )
                .hint("add port='-1' or tlsPort='-1'");
        }
    }
    let password = Password::from_xml(element, PasswordProtocol::Spice, diagnostics);
    Spice { port, tls_port, channels, password, options, gl, render_node }
}

fn channels(
    element: &Element,
    diagnostics: &mut Diagnostics,
) -> Vec<(Option<SpiceChannel>, ChannelSecurity)> {
    let default = element.keyword("defaultMode", diagnostics).map(|security| (None, security));
    let named = element.children("channel").filter_map(|channel| {
        let name = channel.require_keyword("name", diagnostics);
        let security = channel.require_keyword("mode", diagnostics);
        Some((Some(name?), security?))
    });
    let named: Vec<_> = named.collect();
    default.into_iter().chain(named).filter(|(_, security)| *security != ChannelSecurity::Any).collect()
}

/// Child, attribute, and QEMU's name of what is handed on as it is.
const SPICE_OPTIONS: &[(&str, &str, &str)] = &[
    ("image", "compression", "image-compression"),
    ("jpeg", "compression", "jpeg-wan-compression"),
    ("zlib", "compression", "zlib-glz-wan-compression"),
    ("playback", "compression", "playback-compression"),
    ("streaming", "mode", "streaming-video"),
];
