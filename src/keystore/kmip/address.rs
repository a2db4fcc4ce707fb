//! `kmip://HOST[:PORT][/NAME]?ca=FILE&cert=FILE&key=FILE`.

use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;

use super::message::Version;

/// The port that is KMIP's.
const PORT: u16 = 5696;

/// What a URI says.
#[derive(Debug, Clone)]
pub(super) struct Address {
    /// For messages: host, port and object.
    pub uri: String,
    /// A name or an IP address.
    pub host: String,
    pub port: u16,
    /// The authorities that the server's certificate may come from.
    pub ca: PathBuf,
    /// The client's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The one version to speak; without it the newest that both know.
    pub version: Option<Version>,
    /// One object.
    pub object: Option<ObjectName>,
}

/// How a URI names an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ObjectName {
    /// By its Name attribute.
    Name(String),
    /// By the identifier that the server gave it.
    Id(String),
}

impl Address {
    /// Reads a URI. Files with relative names are looked for among this service's credentials.
    pub(super) fn parse(uri: &str, credentials: Option<&Path>) -> Result<Self, String> {
        let rest = uri
            .strip_prefix("kmip://")
            .ok_or("it begins with kmip://HOST, as in kmip://keys.example?ca=FILE&cert=FILE&key=FILE")?;
        if rest.contains('#') {
            return Err("what stands after '#' means nothing here; write %23 for a '#' in a name".to_owned());
        }
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = place.split_once('/').unwrap_or((place, ""));
        if authority.contains('@') {
            return Err("it must hold no credentials: the server knows its clients by their certificates, \
                        which are in the files of ?cert= and ?key="
                .to_owned());
        }
        let (host, port) = host_and_port(authority)?;
        let (mut ca, mut cert, mut key, mut version, mut id) = (None, None, None, None, None);
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let value = decode(value)?;
            if value.is_empty() {
                return Err(format!("its parameter {name}= is empty"));
            }
            let before = match name {
                "ca" => ca.replace(file(&value, name, credentials)?).is_some(),
                "cert" => cert.replace(file(&value, name, credentials)?).is_some(),
                "key" => key.replace(file(&value, name, credentials)?).is_some(),
                "version" => version
                    .replace(Version::parse(&value).ok_or_else(|| {
                        format!(
                            "it asks for the version {value}; vmward speaks {}",
                            Version::list(Version::SPOKEN)
                        )
                    })?)
                    .is_some(),
                "id" => id.replace(value).is_some(),
                // Not its value: it may be a password.
                _ => {
                    return Err(format!(
                        "it knows the parameters ca, cert, key, version and id, and not {name}"
                    ));
                }
            };
            if before {
                return Err(format!("it has the parameter {name}= twice"));
            }
        }
        let object = match (decode(path)?, id) {
            (name, None) if name.is_empty() => None,
            (name, None) => Some(ObjectName::Name(name)),
            (name, Some(id)) if name.is_empty() => Some(ObjectName::Id(id)),
            _ => return Err("an object is named by /NAME or by ?id=, not by both".to_owned()),
        };
        let needed = |file: Option<PathBuf>, name: &str, what: &str| {
            file.ok_or_else(|| format!("it needs ?{name}=FILE, {what}"))
        };
        let shown = match &object {
            None => String::new(),
            Some(ObjectName::Name(_)) => format!("/{path}"),
            Some(ObjectName::Id(id)) => format!("?id={id}"),
        };
        Ok(Self {
            uri: format!(
                "kmip://{}:{port}{shown}",
                if host.contains(':') { format!("[{host}]") } else { host.clone() }
            ),
            host,
            port,
            ca: needed(ca, "ca", "the certificate of the authority that signed the server's")?,
            cert: needed(cert, "cert", "the certificate by which the server knows its client")?,
            key: needed(key, "key", "the private key of the client's certificate")?,
            version,
            object,
        })
    }
}

fn host_and_port(authority: &str) -> Result<(String, u16), String> {
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, rest)) => (host, Some(rest.strip_prefix(':').ok_or("after ']' comes :PORT")?)),
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if host.is_empty() {
        return Err("it names no host".to_owned());
    }
    let port = match port {
        None => PORT,
        Some(port) => port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or("its port is no number from 1 to 65535; an IPv6 address stands in [ ]")?,
    };
    Ok((host.to_owned(), port))
}

fn file(name: &str, parameter: &str, credentials: Option<&Path>) -> Result<PathBuf, String> {
    let path = Path::new(name);
    match credentials {
        _ if path.is_absolute() => Ok(path.to_owned()),
        Some(dir) => Ok(dir.join(path)),
        None => Err(format!(
            "the file of {parameter}= must be an absolute path, or the name of a credential of a systemd service"
        )),
    }
}

fn decode(text: &str) -> Result<String, String> {
    percent_decode_str(text)
        .decode_utf8()
        .map(|text| text.into_owned())
        .map_err(|_| "one of its %-escapes is not UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: &str = "ca=/c&cert=/d&key=/e";

    fn parse(uri: &str) -> Result<Address, String> {
        Address::parse(&uri.replace("FILES", FILES), None)
    }

    #[test]
    fn its_parts_are_read() {
        let address = parse("kmip://keys.example?FILES").unwrap();
        assert_eq!(
            (&*address.host, address.port, &*address.uri),
            ("keys.example", 5696, "kmip://keys.example:5696")
        );
        assert_eq!((address.ca, address.object, address.version), ("/c".into(), None, None));
        let address = parse("kmip://[::1]:1/web1%2Froot?FILES&version=1.4").unwrap();
        assert_eq!((&*address.host, address.port), ("::1", 1));
        assert_eq!(address.object, Some(ObjectName::Name("web1/root".into())));
        assert_eq!((&*address.uri, address.version), ("kmip://[::1]:1/web1%2Froot", Version::parse("1.4")));
        assert_eq!(parse("kmip://h/?FILES&id=7").unwrap().object, Some(ObjectName::Id("7".into())));
        let address =
            Address::parse("kmip://h?ca=ca.pem&cert=c.pem&key=k.pem", Some(Path::new("/run/creds"))).unwrap();
        assert_eq!(address.key, Path::new("/run/creds/k.pem"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (uri, why) in [
            ("kmip:h", "begins with kmip://HOST"),
            ("kmip://?FILES", "no host"),
            ("kmip://h:x?FILES", "no number from"),
            ("kmip://fe80::1?FILES", "stands in [ ]"),
            ("kmip://h", "needs ?ca=FILE"),
            ("kmip://h?ca=/c&cert=/d", "needs ?key=FILE"),
            ("kmip://h?FILES&key=/f", "twice"),
            ("kmip://h?FILES&version=3.0", "speaks 2.0, 1.4, 1.3 and 1.2"),
            ("kmip://h?FILES&password=x", "not password"),
            ("kmip://user:pass@h?FILES", "no credentials"),
            ("kmip://h?ca=c&cert=/d&key=/e", "absolute path"),
            ("kmip://h/a?FILES&id=7", "not by both"),
            ("kmip://h/a?FILES#b", "'#'"),
            ("kmip://h/%ff?FILES", "not UTF-8"),
        ] {
            let said = parse(uri).unwrap_err();
            assert!(said.contains(why), "{uri}: {said}");
        }
    }
}
