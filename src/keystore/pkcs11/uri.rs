//! `pkcs11:` URIs (RFC 7512), as far as a store needs them.
//!
//! What a URI asks for and vmward does not look at is an error: an attribute that is left out could have been the one
//! that tells two tokens apart.

use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;

/// What kind of object is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ObjectType {
    /// A data object.
    Data,
    /// A secret key whose value may leave the token.
    SecretKey,
    /// A private key, which does not leave it.
    Private,
}

/// A URI, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Pkcs11Uri {
    /// The token's label.
    pub(super) token: Option<String>,
    /// Its maker.
    pub(super) manufacturer: Option<String>,
    /// Its serial number.
    pub(super) serial: Option<String>,
    /// Its model.
    pub(super) model: Option<String>,
    /// The number of the slot it is in.
    pub(super) slot_id: Option<u64>,
    /// The object's label.
    pub(super) object: Option<String>,
    /// The object's CKA_ID.
    pub(super) id: Option<Vec<u8>>,
    /// What kind of object it is.
    pub(super) kind: Option<ObjectType>,
    /// The library that speaks to the token.
    pub(super) module: PathBuf,
    /// The file or the credential that the PIN is in; some tokens need none, or have a keypad.
    pub(super) pin: Option<String>,
    /// The directory of a store whose values are wrapped with the object.
    pub(super) wrapped: Option<PathBuf>,
}

impl Pkcs11Uri {
    /// Takes a URI apart; what is wrong with it is said in words that follow "it is not a keystore: ".
    pub(super) fn parse(uri: &str) -> Result<Self, String> {
        let rest = uri.strip_prefix("pkcs11:").ok_or("it does not begin with pkcs11:")?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut parsed = Self::default();
        let mut seen = Vec::new();
        for part in path.split(';').filter(|p| !p.is_empty()) {
            let (name, value) = attribute(part, &mut seen)?;
            parsed.set_path_attribute(name, value)?;
        }
        for part in query.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = attribute(part, &mut seen)?;
            parsed.set_query_attribute(name, value)?;
        }
        if parsed.module.as_os_str().is_empty() {
            return Err(
                "it needs the token's library, as in ?module-path=/usr/lib/softhsm/libsofthsm2.so".into()
            );
        }
        let names_token = [&parsed.token, &parsed.serial].iter().any(|a| a.is_some());
        if !names_token && parsed.slot_id.is_none() {
            return Err("it needs the token's name, as in pkcs11:token=NAME".into());
        }
        Ok(parsed)
    }

    fn set_path_attribute(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "token" => self.token = Some(text(name, value)?),
            "manufacturer" => self.manufacturer = Some(text(name, value)?),
            "serial" => self.serial = Some(text(name, value)?),
            "model" => self.model = Some(text(name, value)?),
            "slot-id" => {
                self.slot_id = Some(value.parse().map_err(|_| format!("slot-id={value} is no number"))?);
            }
            "object" => self.object = Some(text(name, value)?),
            "id" => self.id = Some(percent_decode_str(value).collect()),
            "type" => {
                self.kind = Some(match value {
                    "data" => ObjectType::Data,
                    "secret-key" => ObjectType::SecretKey,
                    "private" => ObjectType::Private,
                    _ => return Err(format!("type={value} is none of data, secret-key and private")),
                });
            }
            "pin-value" => return Err(pin_in_uri()),
            _ => return Err(unknown(name)),
        }
        Ok(())
    }

    fn set_query_attribute(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "module-path" => self.module = absolute(name, &text(name, value)?)?,
            "wrapped" => self.wrapped = Some(absolute(name, &text(name, value)?)?),
            "pin-source" => {
                let value = text(name, value)?;
                self.pin = Some(value.strip_prefix("file:").unwrap_or(&value).to_owned());
            }
            "pin-value" => return Err(pin_in_uri()),
            "module-name" => {
                return Err("module-name is looked for in many places: name the file with module-path".into());
            }
            _ => return Err(unknown(name)),
        }
        Ok(())
    }
}

fn attribute<'a>(part: &'a str, seen: &mut Vec<&'a str>) -> Result<(&'a str, &'a str), String> {
    let (name, value) = part.split_once('=').ok_or("an attribute has no '='")?;
    if seen.contains(&name) {
        return Err(format!("it has {} twice", name.escape_debug()));
    }
    seen.push(name);
    Ok((name, value))
}

fn text(name: &str, value: &str) -> Result<String, String> {
    match percent_decode_str(value).decode_utf8() {
        Ok(text) if text.is_empty() || text.contains(char::is_control) => {
            Err(format!("its {name} is empty or has control characters in it"))
        }
        Ok(text) => Ok(text.into_owned()),
        Err(_) => Err(format!("its {name} is not UTF-8")),
    }
}

fn absolute(name: &str, value: &str) -> Result<PathBuf, String> {
    let path = Path::new(value);
    if path.is_absolute() { Ok(path.to_owned()) } else { Err(format!("{name} must be an absolute path")) }
}

fn unknown(name: &str) -> String {
    format!("vmward does not know its attribute {}", name.escape_debug())
}

fn pin_in_uri() -> String {
    "a PIN in a URI can be seen by everybody (ps, /proc): put it into a file that only you may read, and name that with pin-source=file:/path".into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MODULE: &str = "?module-path=/usr/lib/x.so";

    #[test]
    fn a_uri_is_taken_apart() {
        let uri = "pkcs11:token=The%20Token;serial=1a;object=disk%3B0;id=%01%ff;type=private\
                   ?module-path=/usr/lib/x.so&pin-source=file:/etc/pin&wrapped=/var/lib/w";
        let parsed = Pkcs11Uri::parse(uri).unwrap();
        assert_eq!(parsed.token.as_deref(), Some("The Token"));
        assert_eq!(parsed.serial.as_deref(), Some("1a"));
        assert_eq!(parsed.object.as_deref(), Some("disk;0"));
        assert_eq!(parsed.id, Some(vec![1, 0xff]));
        assert_eq!(parsed.kind, Some(ObjectType::Private));
        assert_eq!(parsed.module, Path::new("/usr/lib/x.so"));
        assert_eq!(parsed.pin.as_deref(), Some("/etc/pin"));
        assert_eq!(parsed.wrapped.as_deref(), Some(Path::new("/var/lib/w")));
    }

    #[test]
    fn what_is_wrong_with_a_uri_is_said() {
        for (uri, says) in [
            ("pkcs11:token=a", "needs the token's library"),
            (&format!("pkcs11:{MODULE}"), "needs the token's name"),
            (&format!("pkcs11:object=a{MODULE}"), "needs the token's name"),
            (&format!("pkcs11:token=a;token=b{MODULE}"), "token twice"),
            (&format!("pkcs11:token=a;colour=b{MODULE}"), "does not know its attribute colour"),
            (&format!("pkcs11:token=a;type=cert{MODULE}"), "none of data"),
            (&format!("pkcs11:token=%ff{MODULE}"), "not UTF-8"),
            (&format!("pkcs11:token=a%0ab{MODULE}"), "control characters"),
            (&format!("pkcs11:slot-id=x{MODULE}"), "no number"),
            ("pkcs11:token=a?module-path=x.so", "absolute path"),
            ("pkcs11:token=a?module-name=x", "module-path"),
        ] {
            let said = Pkcs11Uri::parse(uri).unwrap_err();
            assert!(said.contains(says), "{uri}: {said}");
        }
    }

    #[test]
    fn a_pin_in_a_uri_is_refused_and_not_repeated() {
        for uri in
            [format!("pkcs11:token=a{MODULE}&pin-value=4711"), format!("pkcs11:pin-value=4711{MODULE}")]
        {
            let said = Pkcs11Uri::parse(&uri).unwrap_err();
            assert!(said.contains("pin-source=file:/path") && !said.contains("4711"), "{said}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken_apart_or_refused(rest in "[a-z0-9%;=&?/:|\\PC]{0,80}") {
            let _ = Pkcs11Uri::parse(&format!("pkcs11:{rest}"));
        }
    }
}
