//! `-chardev`: the host's side of character devices.

use std::path::Path;

use serde_json::json;

use crate::domain::devices::chardev::{Backend, Chardev, Endpoint, MouseMode, SocketMode};
use crate::qemu::plan::{SocketPath, comma_escaped, object};
use crate::qemu::{CommandLine, JsonObject, QemuObject, Resource, SecretObject, SecretSource, Tls};
use crate::secret::SecretRef;

use super::Context;

/// Adds the character device `id` of the device `alias`.
pub(super) fn tell(chardev: &Chardev, id: &str, alias: &str, context: &Context, line: &mut CommandLine) {
    let mut told = backend(chardev, id, alias, context, line);
    if let Some(log) = &chardev.log {
        let set = line.fd_set(
            Resource::File { path: log.path.clone(), append: log.append },
            &format!("{alias}-log"),
            chardev.span,
        );
        told.push_str(&format!(",logfile={set},logappend=on"));
    }
    line.text("-chardev", told);
}

fn path(path: &Path) -> String {
    comma_escaped(&path.display().to_string())
}

fn on_off(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}

/// When a lost connection is tried again.
pub(super) fn reconnecting(context: &Context, seconds: Option<u32>) -> String {
    let option = seconds.map(|s| context.capabilities.reconnect(s));
    option.map(|(name, value)| format!(",{name}={value}")).unwrap_or_default()
}

/// A character device that listens with certificates, as a running QEMU is told to make it anew.
#[derive(Debug, Clone)]
pub struct TlsListener {
    /// Its id.
    pub id: String,
    /// The object with its certificates, without that with the key's passphrase.
    pub credentials: JsonObject,
    /// The id of that one, and where its value is.
    pub secret: Option<(String, SecretRef)>,
    /// The `backend` of `chardev-change`.
    pub backend: JsonObject,
}

impl TlsListener {
    /// The one of the device `alias`, if it is one. What is written to a log besides is in a descriptor that only the start
    /// has: that one is none.
    pub fn of(chardev: &Chardev, alias: &str, tls: &Tls) -> Option<Self> {
        let Backend::Tcp { mode: SocketMode::Bind, endpoint, telnet, tls: Some(own), .. } = &chardev.backend
        else {
            return None;
        };
        if chardev.log.is_some() {
            return None;
        }
        let id = format!("char{alias}");
        let name = credentials_id(&id);
        let mut secret = None;
        let mut credentials = JsonObject::new();
        for object in tls.of_device(own).objects(&name, &key_id(&id), true, chardev.span) {
            match object {
                QemuObject::Secret(SecretObject { id, source: SecretSource::Keystore(found) }) => {
                    secret = Some((id, found));
                }
                QemuObject::Secret(_) => {}
                QemuObject::Plain(properties) => credentials = properties,
            }
        }
        let address = json!({ "host": endpoint.host, "port": endpoint.service });
        let backend = object(json!({
            "type": "socket",
            "data": {
                "addr": { "type": "inet", "data": address },
                "server": true,
                "wait": false,
                "telnet": telnet,
                "tls-creds": name,
            },
        }));
        Some(Self { id, credentials, secret, backend })
    }
}

/// The id of the certificates of a character device.
fn credentials_id(id: &str) -> String {
    format!("obj{id}_tls0")
}

/// The id of their key's passphrase.
fn key_id(id: &str) -> String {
    format!("{id}{KEY_SUFFIX}")
}

/// What such an id ends with.
const KEY_SUFFIX: &str = "-secret0";

/// Whether a secret object is one of those.
pub fn is_chardev_key(id: &str) -> bool {
    id.starts_with("char") && id.ends_with(KEY_SUFFIX)
}

fn backend(chardev: &Chardev, id: &str, alias: &str, context: &Context, line: &mut CommandLine) -> String {
    let id = comma_escaped(id);
    match &chardev.backend {
        Backend::Null => format!("null,id={id}"),
        Backend::Vc => format!("vc,id={id}"),
        Backend::Pty => format!("pty,id={id}"),
        Backend::Stdio => format!("stdio,id={id}"),
        Backend::Device(device) => {
            let kind = if alias.starts_with("parallel") { "parallel" } else { "serial" };
            format!("{kind},id={id},path={}", path(device))
        }
        Backend::Pipe(pipe) => format!("pipe,id={id},path={}", path(pipe)),
        Backend::File { path, append } => {
            let resource = Resource::File { path: path.clone(), append: *append };
            let set = line.fd_set(resource, &format!("{alias}-source"), chardev.span);
            // The file is open already, and emptied if it is to be: QEMU must not do that again.
            format!("file,id={id},path={set},append=on")
        }
        Backend::Udp { connect, bind } => udp(&id, connect, bind),
        Backend::Tcp { mode, endpoint, telnet, tls, reconnect } => {
            let mut told = format!(
                "socket,id={id},host={},port={}",
                comma_escaped(&endpoint.host),
                comma_escaped(&endpoint.service)
            );
            if *telnet {
                told.push_str(",telnet=on");
            }
            if *mode == SocketMode::Bind {
                told.push_str(",server=on,wait=off");
            }
            if let Some(tls) = tls {
                let credentials = credentials_id(&id);
                let ours = context.capabilities.host.tls.of_device(tls);
                let server = *mode == SocketMode::Bind;
                let objects = ours.objects(&credentials, &key_id(&id), server, chardev.span);
                objects.into_iter().for_each(|o| line.object(o));
                told.push_str(&format!(",tls-creds={credentials}"));
            }
            told + &reconnecting(context, *reconnect)
        }
        Backend::Unix { mode: SocketMode::Bind, path, .. } => {
            let socket = match path {
                Some(path) => SocketPath::Given(path.clone()),
                None => SocketPath::InLibDir(format!("{alias}.sock")),
            };
            let fd = line.descriptor(Resource::UnixListener(socket), chardev.span);
            format!("socket,id={id},fd={fd},server=on,wait=off")
        }
        Backend::Unix { mode: SocketMode::Connect, path: socket, reconnect } => {
            let socket = socket.as_deref().unwrap_or(Path::new(""));
            format!("socket,id={id},path={}{}", path(socket), reconnecting(context, *reconnect))
        }
        Backend::SpiceVmc => format!("spicevmc,id={id},name={}", spice_name(alias)),
        Backend::SpicePort(channel) => format!("spiceport,id={id},name={}", comma_escaped(channel)),
        Backend::QemuVdagent { clipboard, mouse } => {
            let mut told = format!("qemu-vdagent,id={id},name=vdagent");
            if let Some(clipboard) = clipboard {
                told.push_str(&format!(",clipboard={}", on_off(*clipboard)));
            }
            if let Some(mouse) = mouse {
                told.push_str(&format!(",mouse={}", on_off(*mouse == MouseMode::Client)));
            }
            told
        }
        Backend::Dbus(channel) => format!("dbus,id={id},name={}", comma_escaped(channel)),
    }
}

/// SPICE's own channels have a name for each use.
fn spice_name(alias: &str) -> &'static str {
    if alias.starts_with("redir") {
        "usbredir"
    } else if alias.starts_with("smartcard") {
        "smartcard"
    } else {
        "vdagent"
    }
}

fn udp(id: &str, connect: &Endpoint, bind: &Endpoint) -> String {
    // What is empty is QEMU's to choose: any address, a free port.
    let port = |service: &str| if service.is_empty() { "0".to_owned() } else { comma_escaped(service) };
    format!(
        "udp,id={id},host={},port={},localaddr={},localport={}",
        comma_escaped(&connect.host),
        port(&connect.service),
        comma_escaped(&bind.host),
        port(&bind.service)
    )
}
