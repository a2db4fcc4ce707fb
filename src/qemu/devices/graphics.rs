//! Graphics: `-vnc`, `-spice`, `-display`.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::domain::Domain;
use crate::domain::devices::graphics::{
    ChannelSecurity, Graphics, GraphicsKind, Listen, Port, Spice, SpiceChannel, Vnc,
};
use crate::domain::devices::password::{Password, PasswordSource};
use crate::qemu::plan::comma_escaped;
use crate::qemu::{Capabilities, CommandLine, QemuObject, Resource, SecretObject, SecretSource, tls};
use crate::xml::{Diagnostics, Span};

use super::{Context, audio};

/// VNC displays are counted from this port on.
const FIRST_VNC_PORT: u16 = 5900;
/// libvirt's first port for SPICE.
const FIRST_SPICE_PORT: u16 = 5901;
/// libvirt looks for free ports up to this one.
const LAST_VNC_PORT: u16 = 65535;
/// libvirt listens there if nothing is said.
const DEFAULT_ADDRESS: &str = "127.0.0.1";

/// Adds all graphics, and turns QEMU's own window off if none is asked for.
pub(super) fn tell(context: &Context, line: &mut CommandLine, diagnostics: &mut Diagnostics) {
    let graphics = &context.domain.devices.graphics;
    check(graphics, diagnostics);
    if graphics.is_empty() {
        line.text("-display", "none");
    }
    for one in graphics {
        match &one.kind {
            GraphicsKind::Vnc(vnc) => tell_vnc(one, vnc, context, line, diagnostics),
            GraphicsKind::Spice(spice) => tell_spice(one, spice, context, line),
            GraphicsKind::Sdl { gl, fullscreen, display, authority } => {
                let mut told = "sdl".to_owned();
                if let Some(gl) = gl {
                    told.push_str(&format!(",gl={}", on_off(*gl)));
                }
                line.text("-display", told);
                if *fullscreen {
                    line.flag("-full-screen");
                }
                line.environment.extend(display.iter().map(|d| ("DISPLAY".to_owned(), d.clone())));
                let authority = authority.iter().map(|a| ("XAUTHORITY".to_owned(), a.display().to_string()));
                line.environment.extend(authority);
            }
            GraphicsKind::EglHeadless { render_node } => {
                line.text("-display", format!("egl-headless{}", render(context, render_node.as_ref(), true)));
            }
            GraphicsKind::Dbus { p2p, address, gl, render_node } => {
                let mut told = "dbus".to_owned();
                if *p2p {
                    told.push_str(",p2p=on");
                } else if let Some(address) = address {
                    told.push_str(&format!(",addr={}", comma_escaped(address)));
                }
                if let Some(gl) = gl {
                    told.push_str(&format!(",gl={}", on_off(*gl)));
                }
                told.push_str(&render(context, render_node.as_ref(), *gl == Some(true)));
                if one.audio.is_some() {
                    let name = audio::name_for(one.audio, one.span, context, diagnostics);
                    told.push_str(&format!(",audiodev={}", name.unwrap_or_default()));
                }
                line.text("-display", told);
            }
        }
    }
}

/// QEMU has one of each kind.
fn check(graphics: &[Graphics], diagnostics: &mut Diagnostics) {
    let mut rendering = graphics.iter().filter(|g| renders(&g.kind));
    if let (Some(first), Some(second)) = (rendering.next(), rendering.next()) {
        diagnostics
            .error(second.span, "two of the guest's displays use OpenGL, QEMU renders for one")
            .related(first.span, "the first one");
    }
    for (index, one) in graphics.iter().enumerate() {
        let kind = std::mem::discriminant(&one.kind);
        if let Some(first) = graphics[..index].iter().find(|g| std::mem::discriminant(&g.kind) == kind) {
            diagnostics
                .error(one.span, "a guest has one <graphics> of each type at most")
                .related(first.span, "the first one");
        }
    }
}

fn on_off(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}

/// The device that draws: the guest's, or the host's first one where one is needed.
fn render(context: &Context, node: Option<&PathBuf>, needed: bool) -> String {
    let node = node.or(context.capabilities.host.render_node.as_ref().filter(|_| needed));
    node.map(|n| format!(",rendernode={}", comma_escaped(&n.display().to_string()))).unwrap_or_default()
}

/// Whether it renders with OpenGL, which QEMU does in one place only.
fn renders(kind: &GraphicsKind) -> bool {
    match kind {
        GraphicsKind::EglHeadless { .. } => true,
        GraphicsKind::Spice(spice) => spice.gl == Some(true),
        GraphicsKind::Sdl { gl, .. } | GraphicsKind::Dbus { gl, .. } => *gl == Some(true),
        GraphicsKind::Vnc(_) => false,
    }
}

/// An address as it stands before a port.
fn bracketed(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

/// A password as a secret object; the option that names it, or none where there is no password yet.
fn password(id: &str, password: &Password, line: &mut CommandLine) -> Option<String> {
    let source = match &password.source {
        PasswordSource::Nowhere => return None,
        PasswordSource::Xml(value) => SecretSource::Xml(value.clone()),
        PasswordSource::Secret(secret) => SecretSource::Keystore(secret.clone()),
    };
    line.object(QemuObject::Secret(SecretObject { id: id.to_owned(), source }));
    Some(format!("password-secret={id}"))
}

fn lib_dir_socket(context: &Context, name: &str) -> PathBuf {
    context.capabilities.host.lib_dir(context.domain.name()).join(name)
}

/// Where a network of libvirt's is, only libvirt knows; in its tests it is there.
const NOMINAL_NETWORK: &str = "192.168.122.1";

fn network(line: &mut CommandLine, span: Span) -> &'static str {
    line.require(Resource::Unavailable("listening on networks of libvirt".to_owned()), span);
    NOMINAL_NETWORK
}

fn vnc_socket(path: Option<&PathBuf>, context: &Context) -> PathBuf {
    path.cloned().unwrap_or_else(|| lib_dir_socket(context, "vnc.sock"))
}

/// Where a running guest's VNC listens, for `display-update`: on this port, or as at its start. `None`: nowhere.
pub fn vnc_address(domain: &Domain, capabilities: &Capabilities, port: Option<&str>) -> Option<Value> {
    let vnc = domain.devices.graphics.iter().find_map(|graphics| match &graphics.kind {
        GraphicsKind::Vnc(vnc) => Some((&graphics.listen, vnc.port)),
        _ => None,
    });
    let (listen, at_start) = vnc?;
    match listen {
        Listen::Address(address) => {
            let mut inet = json!({
                "type": "inet",
                "host": address.as_deref().unwrap_or(DEFAULT_ADDRESS),
                "port": port.map_or_else(|| at_start.unwrap_or(FIRST_VNC_PORT).to_string(), ToOwned::to_owned),
            });
            if port.is_none() && at_start.is_none() {
                inet["to"] = LAST_VNC_PORT.into();
            }
            Some(inet)
        }
        Listen::Socket(path) => {
            let path = vnc_socket(path.as_ref(), &Context { domain, capabilities });
            Some(json!({ "type": "unix", "path": path }))
        }
        Listen::Network(_) | Listen::None => None,
    }
}

fn tell_vnc(
    graphics: &Graphics,
    vnc: &Vnc,
    context: &Context,
    line: &mut CommandLine,
    diagnostics: &mut Diagnostics,
) {
    let display = vnc.port.unwrap_or(FIRST_VNC_PORT).saturating_sub(FIRST_VNC_PORT);
    let mut told = match &graphics.listen {
        Listen::Address(address) => {
            format!("{}:{display}", bracketed(address.as_deref().unwrap_or(DEFAULT_ADDRESS)))
        }
        Listen::Network(_) => {
            format!("{}:{display}", network(line, graphics.span))
        }
        Listen::Socket(path) => {
            let path = vnc_socket(path.as_ref(), context);
            format!("vnc=unix:{}", comma_escaped(&path.display().to_string()))
        }
        Listen::None => "none".to_owned(),
    };
    let port = matches!(graphics.listen, Listen::Address(_) | Listen::Network(_));
    if port && vnc.port.is_none() {
        // QEMU looks for a free one itself: there is no moment in which somebody else can take it.
        if !line.nominal {
            told.push_str(&format!(",to={}", LAST_VNC_PORT - FIRST_VNC_PORT));
        }
    }
    if let Some(websocket) = vnc.websocket {
        told.push_str(&match websocket {
            -1 => ",websocket=on".to_owned(),
            port => format!(",websocket={port}"),
        });
    }
    if let Some(policy) = vnc.share_policy {
        told.push_str(&format!(",share={}", policy.as_str()));
    }
    if let Some(given) = &vnc.password {
        let option = password("vnc-password-secret0", given, line);
        // Without one it turns all away until one is set.
        told.push_str(&format!(",{}", option.as_deref().unwrap_or("password=on")));
    }
    if let Some(tls) = &vnc.tls {
        let ours = context.capabilities.host.tls.of_device(tls);
        let objects = ours.objects(tls::VNC_CREDENTIALS, tls::VNC_SECRET, true, graphics.span);
        objects.into_iter().for_each(|o| line.object(o));
        told.push_str(&format!(",tls-creds={}", tls::VNC_CREDENTIALS));
    }
    if let Some(power) = vnc.power_control {
        told.push_str(&format!(",power-control={}", on_off(power)));
    }
    if let Some(audiodev) = audio::name_for(graphics.audio, graphics.span, context, diagnostics) {
        told.push_str(&format!(",audiodev={audiodev}"));
    }
    line.text("-vnc", told);
    if let Some(keymap) = &graphics.keymap {
        line.text("-k", keymap.clone());
    }
}

fn tell_spice(graphics: &Graphics, spice: &Spice, context: &Context, line: &mut CommandLine) {
    let mut told: Vec<String> = Vec::new();
    let ports = spice.port != Port::None || spice.tls_port != Port::None;
    let listens = ports && matches!(graphics.listen, Listen::Address(_) | Listen::Network(_));
    match &graphics.listen {
        // Without a port there is nothing to listen on: clients get in through the supervisor.
        Listen::Address(_) | Listen::Network(_) if !ports => told.push("port=0".to_owned()),
        Listen::Address(_) | Listen::Network(_) => {
            if let Some(port) = spice.port.number_or(FIRST_SPICE_PORT) {
                told.push(format!("port={port}"));
            }
            if let Some(port) = spice.tls_port.number_or(FIRST_SPICE_PORT + 1) {
                told.push(format!("tls-port={port}"));
                told.push(format!(
                    "x509-dir={}",
                    comma_escaped(&context.capabilities.host.tls.usual.directory)
                ));
            }
            let address = match &graphics.listen {
                Listen::Address(address) => address.as_deref().unwrap_or(DEFAULT_ADDRESS),
                _ => network(line, graphics.span),
            };
            told.push(format!("addr={}", comma_escaped(address)));
        }
        Listen::Socket(path) => {
            let path = path.clone().unwrap_or_else(|| lib_dir_socket(context, "spice.sock"));
            told.push("unix=on".to_owned());
            told.push(format!("addr={}", comma_escaped(&path.display().to_string())));
        }
        Listen::None => told.push("port=0".to_owned()),
    }
    match &spice.password {
        // Without one it turns all away until one is set.
        Some(given) => told.extend(password("spice-password-secret0", given, line)),
        None if !ports && !matches!(graphics.listen, Listen::Socket(_)) => {}
        // The host of libvirt's tests has a password for all guests.
        None if context.capabilities.host.is_assumed() => {}
        None => told.push("disable-ticketing=on".to_owned()),
    }
    for (channel, security) in spice.channels.iter().filter(|_| listens) {
        let kind = if *security == ChannelSecurity::Secure { "tls" } else { "plaintext" };
        told.push(format!("{kind}-channel={}", channel.map_or("default", SpiceChannel::as_str)));
    }
    for (name, value) in &spice.options {
        told.push(format!("{name}={}", comma_escaped(value)));
    }
    if let Some(gl) = spice.gl {
        let node = if gl { render(context, spice.render_node.as_ref(), true) } else { String::new() };
        told.push(format!("gl={}{node}", on_off(gl)));
    }
    told.push("seamless-migration=on".to_owned());
    line.text("-spice", told.join(","));
    if let Some(keymap) = &graphics.keymap {
        line.text("-k", keymap.clone());
    }
}
