//! What a Vault URI says: `vault+https://HOST[:PORT]/MOUNT[/PATH][?...][#FIELD]`.

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use crate::keystore::StoreOptions;
use crate::keystore::credential_file::CredentialFile;

/// The server's usual port.
const PORT: u16 = 8200;
/// What stands for itself in a path: the characters of RFC 3986 without those that a server or a proxy may take for
/// its own.
const SEGMENT: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'/')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}')
    .add(b';');

/// A URI, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VaultUri {
    /// `vault+https://host:port/mount/path` and the field, for messages: without the query.
    pub shown: String,
    /// `https` or not.
    pub tls: bool,
    /// The server's name or address as TLS wants it, without brackets.
    pub host: String,
    /// `host:port`.
    pub authority: String,
    /// The mount of the key-value engine.
    pub mount: String,
    /// The path in it; empty for the mount itself.
    pub path: String,
    /// The field that holds a value.
    pub field: Option<String>,
    /// What the query says.
    pub options: VaultOptions,
}

/// The query of a URI.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct VaultOptions {
    /// Whom the server is to take this client for.
    pub auth: Option<Auth>,
    /// The namespace.
    pub namespace: Option<String>,
    /// The certificates of the authorities that may sign the server's; without it, those of the system.
    pub ca: Option<CredentialFile>,
    /// The client's certificate and its key.
    pub client: Option<(CredentialFile, CredentialFile)>,
    /// The transit engine's mount and the key that wraps values.
    pub transit: Option<(String, String)>,
    /// Whether the field is the base64 of the value.
    pub base64: bool,
}

/// Whom the server is to take this client for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Auth {
    /// A token in a file, read each time: who renews it writes it there.
    Token(CredentialFile),
    /// An application with a role.
    AppRole {
        /// Where the method is enabled.
        mount: String,
        /// The role.
        role_id: CredentialFile,
        /// What proves it; there are roles that do without.
        secret_id: Option<CredentialFile>,
    },
}

impl VaultUri {
    /// Takes a URI apart. Nothing is read; credentials are named in it, not contained.
    pub(super) fn parse(uri: &str, options: &StoreOptions) -> Result<Self, String> {
        let (scheme, rest) =
            uri.split_once("://").ok_or("it needs a host, as in vault+https://host/mount")?;
        let (rest, fragment) = split(rest, '#');
        let (rest, query) = split(rest, '?');
        let (authority, path) = split(rest, '/');
        if authority.contains('@') {
            return Err(
                "a user, password or token is never in a URI: name a file with ?token-file=".to_owned()
            );
        }
        let (host, port) = host_and_port(authority)?;
        let mut segments = Vec::new();
        for segment in path.unwrap_or_default().trim_end_matches('/').split('/') {
            segments.push(name(&decoded(segment)?, "the path")?);
        }
        let mut query = Query::parse(query.unwrap_or_default())?;
        let mount = match query.take("mount") {
            None => segments.remove(0),
            Some(mount) => {
                let mount = path_name(&mount, "the mount")?;
                let len = mount.split('/').count();
                let at: Vec<_> = segments.drain(..len.min(segments.len())).collect();
                if at.join("/") != mount {
                    return Err(format!("its path does not begin with the mount {mount}"));
                }
                mount
            }
        };
        let path = segments.join("/");
        let field = fragment.map(decoded).transpose()?;
        if field.as_ref().is_some_and(|f| f.is_empty() || f.contains(char::is_control)) {
            return Err("what is after the # is no name of a field".to_owned());
        }
        let options = query.options(options)?;
        let tls = scheme == "vault+https";
        let authority = format!("{host}:{port}");
        let mut shown = format!("{scheme}://{authority}/{mount}");
        for (before, text) in [("/", Some(&path).filter(|p| !p.is_empty())), ("#", field.as_ref())] {
            if let Some(text) = text {
                shown.push_str(before);
                shown.push_str(text);
            }
        }
        if options.client.is_some() && !tls {
            return Err("a client certificate needs vault+https".to_owned());
        }
        let host = host.trim_matches(['[', ']']).to_owned();
        Ok(Self { shown, tls, host, authority, mount, path, field, options })
    }

    /// The same with the credentials of a configured store of the same server, where this one names none of its own.
    pub(super) fn with_auth_of_configured(mut self, options: &StoreOptions) -> Self {
        if self.options.auth.is_some() {
            return self;
        }
        let stores = options.configured.iter().filter(|uri| uri.starts_with("vault+"));
        let same = |other: &VaultUri| (other.tls, &other.authority) == (self.tls, &self.authority);
        if let Some(store) = stores.filter_map(|uri| Self::parse(uri, options).ok()).find(same) {
            let theirs = store.options;
            let ours = &mut self.options;
            ours.auth = theirs.auth;
            ours.namespace = ours.namespace.take().or(theirs.namespace);
            ours.ca = ours.ca.take().or(theirs.ca);
            ours.client = ours.client.take().or(theirs.client);
        }
        self
    }

    /// Whether the server is this machine, which what is sent in the clear does not leave.
    pub(super) fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
    }
}

/// A path with its segments encoded, to be put into a request.
pub(super) fn encoded(path: &str) -> String {
    let segments: Vec<_> =
        path.split('/').map(|segment| utf8_percent_encode(segment, SEGMENT).to_string()).collect();
    segments.join("/")
}

fn split(text: &str, at: char) -> (&str, Option<&str>) {
    text.split_once(at).map_or((text, None), |(before, after)| (before, Some(after)))
}

fn decoded(text: &str) -> Result<String, String> {
    let text = percent_decode_str(text).decode_utf8().map_err(|_| "it is not UTF-8".to_owned())?;
    Ok(text.into_owned())
}

/// A segment of a path that means the same to everybody who passes it on.
fn name(text: &str, what: &str) -> Result<String, String> {
    if text.is_empty() || text == "." || text == ".." || text.contains('/') || text.contains(char::is_control)
    {
        return Err(format!("{what} needs names that are not empty, as in vault+https://host/mount/path"));
    }
    Ok(text.to_owned())
}

fn path_name(text: &str, what: &str) -> Result<String, String> {
    let names: Result<Vec<_>, _> = text.trim_matches('/').split('/').map(|n| name(n, what)).collect();
    Ok(names?.join("/"))
}

fn host_and_port(authority: &str) -> Result<(&str, u16), String> {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()),
        _ => (authority, Some(PORT)),
    };
    let port = port.ok_or("its port is no number from 1 to 65535")?;
    let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let good = match bracketed {
        Some(ip) => ip.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
        }
    };
    if good && port != 0 {
        Ok((host, port))
    } else {
        Err("it needs a host, as in vault+https://host/mount".to_owned())
    }
}

/// The parameters that are left to be taken.
struct Query(Vec<(String, String)>);

impl Query {
    fn parse(text: &str) -> Result<Self, String> {
        let mut parameters: Vec<(String, String)> = Vec::new();
        for parameter in text.split('&').filter(|p| !p.is_empty()) {
            let (key, value) = split(parameter, '=');
            let (key, value) = (decoded(key)?, decoded(value.unwrap_or_default())?);
            if matches!(key.as_str(), "token" | "role-id" | "secret-id" | "password") {
                return Err(format!("a credential is never in a URI: name a file with ?{key}-file="));
            }
            if value.is_empty() || value.contains(char::is_control) {
                return Err(format!("?{key}= has no usable value"));
            }
            if parameters.iter().any(|(k, _)| *k == key) {
                return Err(format!("?{key}= is there twice"));
            }
            parameters.push((key, value));
        }
        Ok(Self(parameters))
    }

    fn take(&mut self, key: &str) -> Option<String> {
        let at = self.0.iter().position(|(k, _)| k == key)?;
        Some(self.0.swap_remove(at).1)
    }

    fn options(mut self, options: &StoreOptions) -> Result<VaultOptions, String> {
        let mut file =
            |key: &str| self.take(key).map(|name| CredentialFile::named(&name, options)).transpose();
        let (token, role_id, secret_id) =
            (file("token-file")?, file("role-id-file")?, file("secret-id-file")?);
        let (ca, cert, key) = (file("ca")?, file("cert")?, file("key")?);
        let approle = self.take("approle");
        let auth = match (token, role_id, secret_id) {
            (Some(file), None, None) if approle.is_none() => Some(Auth::Token(file)),
            (None, Some(role_id), secret_id) => {
                let mount = path_name(approle.as_deref().unwrap_or("approle"), "?approle=")?;
                Some(Auth::AppRole { mount, role_id, secret_id })
            }
            (None, None, None) if approle.is_none() => None,
            _ => return Err("it needs ?token-file=, or ?role-id-file= and ?secret-id-file=".to_owned()),
        };
        let client = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err("?cert= and ?key= go together".to_owned()),
        };
        let transit = match self.take("transit") {
            None => None,
            Some(text) => {
                let path = path_name(&text, "?transit=")?;
                let (mount, key) =
                    path.rsplit_once('/').ok_or("?transit= is a mount and a key, as in transit/vmward")?;
                Some((mount.to_owned(), key.to_owned()))
            }
        };
        let namespace = self.take("namespace").map(|n| path_name(&n, "?namespace=")).transpose()?;
        let base64 = match self.take("encoding").as_deref() {
            None => false,
            Some("base64") => true,
            Some(_) => return Err("?encoding= is base64 or not there".to_owned()),
        };
        if let Some((key, _)) = self.0.first() {
            return Err(format!("vmward knows no ?{key}= of it"));
        }
        Ok(VaultOptions { auth, namespace, ca, client, transit, base64 })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::keystore::file::IdentitySources;

    fn options() -> StoreOptions {
        StoreOptions::new(IdentitySources { credentials: None, key_file: "/nonexistent".into() })
    }

    fn parse(uri: &str) -> Result<VaultUri, String> {
        VaultUri::parse(uri, &options())
    }

    #[test]
    fn a_uri_names_server_mount_path_and_field() {
        let uri = parse("vault+https://vault.example/secret/web%20x/db#pass%23word").unwrap();
        assert_eq!(
            (uri.authority.as_str(), uri.host.as_str(), uri.tls),
            ("vault.example:8200", "vault.example", true)
        );
        assert_eq!((uri.mount.as_str(), uri.path.as_str()), ("secret", "web x/db"));
        assert_eq!(uri.field.as_deref(), Some("pass#word"));
        assert_eq!(encoded(&uri.path), "web%20x/db");
        let uri = parse("vault+http://[::1]:80/team/kv/a/?mount=team/kv&token-file=/t").unwrap();
        assert_eq!((uri.mount.as_str(), uri.path.as_str(), uri.host.as_str()), ("team/kv", "a", "::1"));
        assert_eq!(uri.shown, "vault+http://[::1]:80/team/kv/a");
        assert!(uri.is_loopback() && parse("vault+http://127.0.0.5/s").unwrap().is_loopback());
        assert!(!parse("vault+http://localhost.example/s").unwrap().is_loopback());
    }

    #[test]
    fn who_asks_is_said_by_files() {
        let uri =
            parse("vault+https://h/s?role-id-file=/r&secret-id-file=/s&approle=auth2&transit=a/b/k").unwrap();
        let Some(Auth::AppRole { mount, secret_id: Some(_), .. }) = uri.options.auth else { panic!() };
        assert_eq!(mount, "auth2");
        assert_eq!(uri.options.transit, Some(("a/b".to_owned(), "k".to_owned())));
        for bad in [
            "?token=s.abc",
            "?secret-id=x",
            "?token-file=t",
            "?token-file=/t&role-id-file=/r",
            "?secret-id-file=/s",
            "?approle=x",
            "?token-file=/t&approle=x",
            "?cert=/c",
            "?key=/k",
            "?transit=key",
            "?namespace=..",
            "?tokn-file=/t",
            "?token-file=/t&token-file=/t",
            "?token-file=",
            "?encoding=hex",
            "?mount=other",
        ] {
            let e = parse(&format!("vault+https://h/s{bad}")).unwrap_err();
            assert!(!e.contains("s.abc"), "{e}");
        }
        for bad in [
            "h",
            "h/",
            "h//x",
            "h/s/../x",
            "h/s/%2e%2e",
            "h/s/a%2fb",
            "h/s/%00",
            "h/s/%ff",
            "u:p@h/s",
            "h:x/s",
            "h:0/s",
            "h:70000/s",
            "/s",
            "[::g]/s",
            "h/s#",
            "h s/s",
        ] {
            assert!(parse(&format!("vault+https://{bad}")).is_err(), "{bad}");
        }
        assert!(parse("vault+http://h/s?cert=/c&key=/k").is_err());
    }

    #[test]
    fn an_object_asks_as_the_configured_store_of_its_server_does() {
        let mut options = options();
        options.configured = vec!["vault+https://h:8200/kv?token-file=/t&ca=/ca&transit=t/k".to_owned()];
        let auth =
            |uri: &str| VaultUri::parse(uri, &options).unwrap().with_auth_of_configured(&options).options;
        let taken = auth("vault+https://h/other/x#f");
        assert!(taken.auth.is_some() && taken.ca.is_some());
        assert_eq!(taken.transit, None, "how a value is kept is the object's own");
        assert!(auth("vault+https://h2/other/x#f").auth.is_none());
        assert!(auth("vault+http://h/other/x#f").auth.is_none());
    }

    proptest! {
        #[test]
        fn no_uri_is_too_strange(rest in "\\PC{0,80}") {
            let _ = parse(&format!("vault+https://{rest}"));
        }

        #[test]
        fn no_path_leaves_its_mount(rest in "([a.%2eEfF/]|%2e|%2f){0,20}") {
            if let Ok(uri) = parse(&format!("vault+https://h/s/{rest}")) {
                prop_assert_eq!(uri.mount, "s");
                prop_assert!(uri.path.is_empty() || !encoded(&uri.path).split('/').any(|s| matches!(s, "" | "." | "..")));
            }
        }
    }
}
