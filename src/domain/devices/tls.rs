//! `<tls>` of a display or a character device: where its certificates are. libvirt has that in its own configuration,
//! the same for all guests; what is not said here is as it is there where nobody changed it.

use std::path::PathBuf;

use crate::secret::{SecretLookup, SecretRef, UsageKind};
use crate::xml::{Diagnostics, Element};

/// The certificates of one end of a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// The directory with `ca-cert.pem`, `server-cert.pem` and `server-key.pem`, or those of a client; `None`: the host's.
    pub directory: Option<PathBuf>,
    /// Whether the other end has to show a certificate, too; `None`: it has.
    pub verify_peer: Option<bool>,
    /// The passphrase of the key.
    pub secret: Option<SecretRef>,
}

impl Tls {
    /// Reads the `<tls>` in an element, if there is one.
    pub(super) fn from_xml(parent: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let element = parent.only_child("tls", diagnostics)?;
        let directory = element.get("directory").map(PathBuf::from);
        if directory.as_ref().is_some_and(|d| !d.is_absolute()) {
            diagnostics.error(element.span, "the directory of certificates is an absolute path");
        }
        Some(Self {
            directory,
            verify_peer: element.yes_no("verify", diagnostics),
            secret: element.only_child("secret", diagnostics).and_then(|s| passphrase(s, diagnostics)),
        })
    }
}

/// A `<secret>` with the passphrase of a key.
fn passphrase(secret: &Element, diagnostics: &mut Diagnostics) -> Option<SecretRef> {
    let lookup = passphrase_lookup(secret, diagnostics)?;
    Some(SecretRef { lookup, kind: UsageKind::Tls, text: true, span: secret.span })
}

/// A `<secret>` of type 'passphrase'.
pub(super) fn passphrase_lookup(secret: &Element, diagnostics: &mut Diagnostics) -> Option<SecretLookup> {
    let kind = secret.require("type", diagnostics);
    let lookup = SecretLookup::from_xml(secret, diagnostics);
    if kind? != "passphrase" {
        diagnostics.error(secret.span, "a secret here is of type 'passphrase'");
        return None;
    }
    lookup
}

#[cfg(test)]
mod tests {
    use crate::xml;

    use super::*;

    #[test]
    fn what_is_said_counts() {
        let read = |text: &str| {
            let mut diagnostics = Diagnostics::new();
            let element = xml::parse(text, &mut diagnostics).unwrap();
            (Tls::from_xml(&element, &mut diagnostics), diagnostics.render("x", text))
        };
        assert_eq!(read("<graphics/>"), (None, String::new()));
        assert_eq!(read("<graphics><tls/></graphics>"), (Some(Tls::default()), String::new()));
        let text = "<graphics><tls directory='/d' verify='no'><secret type='passphrase' usage='k'/></tls></graphics>";
        let (tls, said) = read(text);
        let tls = tls.unwrap();
        assert_eq!((tls.directory, tls.verify_peer, said), (Some("/d".into()), Some(false), String::new()));
        assert_eq!(tls.secret.unwrap().kind, UsageKind::Tls);
        for (text, why) in [
            ("<graphics><tls directory='d'/></graphics>", "absolute"),
            ("<graphics><tls><secret type='tls' usage='k'/></tls></graphics>", "of type 'passphrase'"),
        ] {
            assert!(read(text).1.contains(why), "{text}");
        }
    }
}
