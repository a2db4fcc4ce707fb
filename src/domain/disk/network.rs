//! `<source protocol='...'>`: an image on a server.

use std::net::Ipv6Addr;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::secret::{SecretValue, UsageKind};
use crate::xml::{Diagnostics, Element, Span, keywords};

use super::auth::Auth;
use super::encryption::Refused;

keywords! {
    /// `protocol=` of a source.
    pub enum ProtocolName {
        /// A Ceph cluster.
        Rbd = "rbd",
        /// An iSCSI target.
        Iscsi = "iscsi",
        /// A Network Block Device.
        Nbd = "nbd",
        /// HTTP.
        Http = "http",
        /// HTTP over TLS.
        Https = "https",
        /// FTP.
        Ftp = "ftp",
        /// FTP over TLS.
        Ftps = "ftps",
        /// TFTP.
        Tftp = "tftp",
        /// SFTP.
        Ssh = "ssh",
        /// A Gluster volume.
        Gluster = "gluster",
        /// NFS, spoken by QEMU itself.
        Nfs = "nfs",
        /// Veritas HyperScale.
        Vxhs = "vxhs",
    }
}

impl ProtocolName {
    /// The port where the XML names none. Ceph's library and NFS find their own.
    fn default_port(self) -> u16 {
        match self {
            Self::Rbd | Self::Nfs => 0,
            Self::Iscsi => 3260,
            Self::Nbd => 10809,
            Self::Http => 80,
            Self::Https => 443,
            Self::Ftp => 21,
            Self::Ftps => 990,
            Self::Tftp => 69,
            Self::Ssh => 22,
            Self::Gluster => 24007,
            Self::Vxhs => 9999,
        }
    }

    /// The usage of secrets that it authenticates with.
    fn secret_kind(self) -> Option<UsageKind> {
        match self {
            Self::Rbd => Some(UsageKind::Ceph),
            // As in libvirt, whose nbdkit has SSH passwords of this usage.
            Self::Iscsi | Self::Http | Self::Https | Self::Ftp | Self::Ftps | Self::Ssh => {
                Some(UsageKind::Iscsi)
            }
            Self::Nbd | Self::Tftp | Self::Gluster | Self::Nfs | Self::Vxhs => None,
        }
    }

    /// Whether it takes any number of hosts; the others take one.
    fn many_hosts(self) -> bool {
        matches!(self, Self::Rbd | Self::Gluster)
    }
}

keywords! {
    /// The protocols whose images have URLs.
    pub enum UrlScheme {
        /// HTTP.
        Http = "http",
        /// HTTP over TLS.
        Https = "https",
        /// FTP.
        Ftp = "ftp",
        /// FTP over TLS.
        Ftps = "ftps",
        /// TFTP.
        Tftp = "tftp",
    }
}

keywords! {
    /// `transport=` of a host.
    pub enum Transport {
        /// TCP.
        Tcp = "tcp",
        /// A unix socket of this host.
        Unix = "unix",
    }
}

/// A server's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// Over TCP.
    Tcp {
        /// Its name or address.
        name: String,
        /// Its port; 0 lets the protocol's library choose.
        port: u16,
    },
    /// A socket of this host.
    Unix {
        /// Its path.
        path: String,
    },
}

impl Host {
    /// `name:port`, an IPv6 address in brackets.
    pub fn authority(&self) -> String {
        match self {
            Self::Tcp { name, port } if name.parse::<Ipv6Addr>().is_ok() => format!("[{name}]:{port}"),
            Self::Tcp { name, port } => format!("{name}:{port}"),
            Self::Unix { path } => path.clone(),
        }
    }

    fn from_xml(e: &Element, protocol: ProtocolName, diagnostics: &mut Diagnostics) -> Option<Self> {
        let transport = match e.attribute("transport") {
            None => Transport::Tcp,
            Some(_) => e.keyword("transport", diagnostics)?,
        };
        match transport {
            Transport::Unix if !matches!(protocol, ProtocolName::Nbd | ProtocolName::Gluster) => {
                diagnostics.error(e.span, format!("'{}' is not spoken over unix sockets", protocol.as_str()));
                None
            }
            Transport::Unix => Some(Self::Unix { path: e.require("socket", diagnostics)?.to_owned() }),
            Transport::Tcp => {
                let name = e.require("name", diagnostics)?.to_owned();
                let port = match e.attribute("port") {
                    None => protocol.default_port(),
                    Some(_) => e.number("port", diagnostics)?,
                };
                Some(Self::Tcp { name, port })
            }
        }
    }
}

/// An image on a server.
#[derive(Debug, Clone)]
pub struct Network {
    /// What it is for the server.
    pub protocol: Protocol,
    /// The servers: exactly one, or for rbd and gluster any number.
    pub hosts: Vec<Host>,
    /// The credentials.
    pub auth: Option<Auth>,
}

/// What an image is for its server.
#[derive(Debug, Clone)]
pub enum Protocol {
    /// An image of a Ceph cluster.
    Rbd {
        /// The pool.
        pool: String,
        /// The image in it.
        image: String,
        /// A snapshot of the image.
        snapshot: Option<String>,
        /// Ceph's configuration file.
        config: Option<String>,
    },
    /// A unit of an iSCSI target.
    Iscsi {
        /// The target.
        target: String,
        /// The unit.
        lun: u32,
        /// The initiator's name.
        initiator: Option<String>,
    },
    /// An export of an NBD server.
    Nbd {
        /// The export.
        export: Option<String>,
        /// The connection is encrypted.
        tls: bool,
        /// The name that the server's certificate must have.
        tls_hostname: Option<String>,
        /// Seconds that requests wait for a lost server.
        reconnect_delay: Option<u32>,
    },
    /// A file that has a URL.
    Url {
        /// The scheme.
        scheme: UrlScheme,
        /// The path.
        path: String,
        /// What follows `?`.
        query: Option<String>,
        /// `name=value; ...`: credentials, in all but name.
        cookies: Option<Arc<SecretValue>>,
        /// Whether the server's certificate is checked.
        verify: Option<bool>,
        /// Bytes that are read ahead.
        readahead: Option<u64>,
        /// Seconds that the server may take.
        timeout: Option<u64>,
    },
    /// A file over SFTP.
    Ssh {
        /// Its path.
        path: String,
        /// The user.
        username: Option<String>,
        /// The file with the servers' keys, of one with a password.
        known_hosts: Option<String>,
    },
    /// A file of a Gluster volume.
    Gluster {
        /// The volume.
        volume: String,
        /// Its path.
        path: String,
    },
    /// A file of an NFS server.
    Nfs {
        /// Its path, the exported directory included.
        path: String,
        /// The user id that the server is told.
        user: Option<u32>,
        /// The group id that the server is told.
        group: Option<u32>,
    },
    /// A disk of a Veritas HyperScale server.
    Vxhs {
        /// The disk.
        id: String,
        /// The connection is encrypted.
        tls: bool,
    },
}

impl Network {
    /// Reads a source; `disk` is where `<auth>` may stand as well.
    pub(super) fn from_xml(
        e: &Element,
        disk: Option<&Element>,
        diagnostics: &mut Diagnostics,
    ) -> Result<Self, Refused> {
        let name: ProtocolName = e.require_keyword("protocol", diagnostics).ok_or(Refused)?;
        let hosts: Vec<_> = e.children("host").filter_map(|h| Host::from_xml(h, name, diagnostics)).collect();
        let written = e.children("host").count();
        if !name.many_hosts() && written != 1 {
            diagnostics.error(e.span, format!("'{}' takes exactly one <host>", name.as_str()));
            return Err(Refused);
        }
        if written == 0 && name == ProtocolName::Gluster {
            diagnostics.error(e.span, "'gluster' takes at least one <host>");
            return Err(Refused);
        }
        if hosts.len() != written {
            return Err(Refused);
        }
        let auth = match name.secret_kind() {
            Some(kind) => Auth::from_places(disk, e, kind, diagnostics)?,
            None => {
                for auth in [disk.and_then(|d| d.child("auth")), e.child("auth")].into_iter().flatten() {
                    auth.mark_read();
                    diagnostics.error(auth.span, format!("QEMU takes no password for '{}'", name.as_str()));
                }
                None
            }
        };
        let protocol = Protocol::from_xml(name, e, auth.as_ref(), diagnostics).ok_or(Refused)?;
        Ok(Self { protocol, hosts, auth })
    }
}

impl Protocol {
    fn from_xml(
        name: ProtocolName,
        e: &Element,
        auth: Option<&Auth>,
        diagnostics: &mut Diagnostics,
    ) -> Option<Self> {
        Some(match name {
            ProtocolName::Rbd => {
                let (pool, image) = split(e, "pool/image", diagnostics)?;
                Self::Rbd {
                    pool,
                    image,
                    snapshot: named(e, "snapshot", "name", diagnostics),
                    config: named(e, "config", "file", diagnostics),
                }
            }
            ProtocolName::Iscsi => {
                let name = e.require("name", diagnostics)?;
                let (target, lun) = name.split_once('/').unwrap_or((name, "0"));
                let Ok(lun) = lun.parse() else {
                    diagnostics
                        .error(place(e, "name"), format!("'{lun}' is not the number of an iSCSI unit"));
                    return None;
                };
                let initiator =
                    e.only_child("initiator", diagnostics).and_then(|i| named(i, "iqn", "name", diagnostics));
                Self::Iscsi { target: target.to_owned(), lun, initiator }
            }
            ProtocolName::Nbd => Self::nbd(e, diagnostics),
            ProtocolName::Http => Self::url(UrlScheme::Http, e, diagnostics)?,
            ProtocolName::Https => Self::url(UrlScheme::Https, e, diagnostics)?,
            ProtocolName::Ftp => Self::url(UrlScheme::Ftp, e, diagnostics)?,
            ProtocolName::Ftps => Self::url(UrlScheme::Ftps, e, diagnostics)?,
            ProtocolName::Tftp => Self::url(UrlScheme::Tftp, e, diagnostics)?,
            ProtocolName::Ssh => {
                let identity = e.only_child("identity", diagnostics);
                let username = identity.and_then(|i| i.get("username")).map(str::to_owned);
                let known_hosts = match auth {
                    Some(auth) => ssh_of_helper(e, identity, auth, diagnostics),
                    None => {
                        ssh_files(e, identity, diagnostics);
                        None
                    }
                };
                Self::Ssh { path: e.require("name", diagnostics)?.to_owned(), username, known_hosts }
            }
            ProtocolName::Gluster => {
                let (volume, path) = split(e, "volume/path", diagnostics)?;
                Self::Gluster { volume, path }
            }
            ProtocolName::Nfs => {
                let identity = e.only_child("identity", diagnostics);
                let mut id = |name| identity.and_then(|i| numeric_id(i, name, diagnostics));
                let (user, group) = (id("user"), id("group"));
                Self::Nfs { path: e.require("name", diagnostics)?.to_owned(), user, group }
            }
            ProtocolName::Vxhs => Self::Vxhs {
                id: e.require("name", diagnostics)?.to_owned(),
                tls: e.yes_no("tls", diagnostics).unwrap_or(false),
            },
        })
    }

    fn nbd(e: &Element, diagnostics: &mut Diagnostics) -> Self {
        let tls = e.yes_no("tls", diagnostics).unwrap_or(false);
        if let Some(name) = e.attribute("tlsHostname").filter(|_| !tls) {
            diagnostics.error(name.name_span, "tlsHostname needs tls='yes'");
        }
        Self::Nbd {
            export: e.get("name").map(str::to_owned),
            tls,
            tls_hostname: e.get("tlsHostname").map(str::to_owned),
            reconnect_delay: e
                .only_child("reconnect", diagnostics)
                .and_then(|r| r.require("delay", diagnostics).and_then(|_| r.number("delay", diagnostics))),
        }
    }

    fn url(scheme: UrlScheme, e: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let path = e.require("name", diagnostics)?.to_owned();
        let is_http = matches!(scheme, UrlScheme::Http | UrlScheme::Https);
        let is_secure = matches!(scheme, UrlScheme::Https | UrlScheme::Ftps);
        let tuning = |child: &str, attribute: &str, diagnostics: &mut Diagnostics| -> Option<u64> {
            let found = e.only_child(child, diagnostics)?;
            found.require(attribute, diagnostics)?;
            found.number(attribute, diagnostics)
        };
        Some(Self::Url {
            scheme,
            path,
            query: if is_http { e.get("query").map(str::to_owned) } else { None },
            cookies: if is_http { cookies(e, diagnostics) } else { None },
            verify: if is_secure {
                e.only_child("ssl", diagnostics).and_then(|ssl| ssl.yes_no("verify", diagnostics))
            } else {
                None
            },
            readahead: tuning("readahead", "size", diagnostics),
            timeout: tuning("timeout", "seconds", diagnostics),
        })
    }
}

/// `<name attribute='...'>`.
fn named(e: &Element, child: &str, attribute: &str, diagnostics: &mut Diagnostics) -> Option<String> {
    e.only_child(child, diagnostics)?.require(attribute, diagnostics).map(str::to_owned)
}

fn place(e: &Element, attribute: &str) -> Span {
    e.attribute(attribute).map_or(e.span, |a| a.span)
}

/// The two parts of a source's name.
fn split(e: &Element, form: &str, diagnostics: &mut Diagnostics) -> Option<(String, String)> {
    let name = e.require("name", diagnostics)?;
    let parts = name.trim_start_matches('/').split_once('/').filter(|(a, b)| !a.is_empty() && !b.is_empty());
    if parts.is_none() {
        diagnostics.error(place(e, "name"), format!("'{name}' is not of the form {form}"));
    }
    parts.map(|(a, b)| (a.to_owned(), b.to_owned()))
}

/// Files for the SSH client. QEMU's has no way to be told of any: it takes those of the user that it runs as.
fn ssh_files(source: &Element, identity: Option<&Element>, diagnostics: &mut Diagnostics) {
    let known = source.only_child("knownHosts", diagnostics).and_then(|k| k.attribute("path"));
    let identity = ["keyfile", "agentsock"].into_iter().filter_map(|name| identity?.attribute(name));
    for attribute in known.into_iter().chain(identity) {
        diagnostics
            .outside_qemu(
                Span { start: attribute.name_span.start, end: attribute.span.end },
                "QEMU takes known hosts and keys only from ~/.ssh of the user that it runs as",
            )
            .hint("put them there, and leave this out");
    }
}

/// What the helper takes that logs in with a password: the file of known hosts, but no keys.
fn ssh_of_helper(
    source: &Element,
    identity: Option<&Element>,
    auth: &Auth,
    diagnostics: &mut Diagnostics,
) -> Option<String> {
    if let Some(user) = identity.and_then(|i| i.attribute("username")).filter(|u| u.value != auth.username) {
        diagnostics.error(user.span, format!("<auth> has another user, '{}'", auth.username));
    }
    for key in ["keyfile", "agentsock"].into_iter().filter_map(|name| identity?.attribute(name)) {
        diagnostics.error(key.span, "<auth> logs in with a password, not with a key");
    }
    let known = source.only_child("knownHosts", diagnostics)?;
    let path = known.require("path", diagnostics)?;
    if !path.starts_with('/') {
        diagnostics.error(place(known, "path"), "the file of known hosts is an absolute path");
    }
    Some(path.to_owned())
}

/// A numeric user or group id; libvirt writes a plus sign in front.
fn numeric_id(e: &Element, attribute: &str, diagnostics: &mut Diagnostics) -> Option<u32> {
    let a = e.attribute(attribute)?;
    let id = a.value.strip_prefix('+').unwrap_or(&a.value).parse().ok();
    if id.is_none() {
        diagnostics
            .error(a.span, format!("'{}' is not a numeric id", a.value))
            .hint("the server knows numbers only: write user='+1000'");
    }
    id
}

/// `<cookies>`, joined as a browser sends them. Cookies log in, so they are kept as secrets are.
fn cookies(e: &Element, diagnostics: &mut Diagnostics) -> Option<Arc<SecretValue>> {
    let list = e.only_child("cookies", diagnostics)?;
    let mut joined = Zeroizing::new(String::new());
    for cookie in list.children("cookie") {
        let Some(name) = cookie.require("name", diagnostics) else { continue };
        // RFC 6265: what would end the cookie, or the header, has no place in it.
        let is_token = |s: &str| !s.is_empty() && !s.contains([' ', '\t', '\n', '"', ',', ';', '\\', '=']);
        let is_value = |s: &str| s.bytes().all(|b| b.is_ascii_graphic() && !b",;\\".contains(&b));
        if !is_token(name) || !is_value(cookie.text()) {
            diagnostics.error(cookie.span, "this is not a cookie: it holds characters that end one");
            continue;
        }
        if !joined.is_empty() {
            joined.push_str("; ");
        }
        joined.push_str(name);
        joined.push('=');
        joined.push_str(cookie.text());
    }
    match SecretValue::copy_of(joined.as_bytes()) {
        Ok(value) => Some(Arc::new(value)),
        Err(error) => {
            diagnostics.error(list.span, format!("the cookies cannot be kept: {error}"));
            None
        }
    }
}
