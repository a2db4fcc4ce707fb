//! The password of a `<graphics>`.

use std::sync::Arc;

use jiff::civil::DateTime;

use crate::keywords;
use crate::secret::{SecretLookup, SecretRef, SecretValue, UsageKind};
use crate::xml::{Diagnostics, Element, Span};

use super::tls::passphrase_lookup;

/// What stands in the XML of a running guest where a password stood.
pub const REDACTED: &str = "[redacted]";

keywords! {
    /// The displays whose clients give a password.
    pub enum PasswordProtocol {
        /// VNC.
        Vnc = "vnc",
        /// SPICE.
        Spice = "spice",
    }
}

impl PasswordProtocol {
    /// How many bytes a password has at most: VNC's is a DES key (RFC 6143, 7.2.2), SPICE's has a place of that size
    /// (`SPICE_MAX_PASSWORD_LENGTH`).
    pub fn longest_password(self) -> usize {
        match self {
            Self::Vnc => 8,
            Self::Spice => 60,
        }
    }

    /// Its name as people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vnc => "VNC",
            Self::Spice => "SPICE",
        }
    }
}

/// Where a password comes from.
#[derive(Debug, Clone)]
pub enum PasswordSource {
    /// There is none yet: nobody gets in until one is set.
    Nowhere,
    /// The XML itself.
    Xml(Arc<SecretValue>),
    /// A keystore.
    Secret(SecretRef),
}

/// The password that clients need.
#[derive(Debug, Clone)]
pub struct Password {
    /// Where it comes from.
    pub source: PasswordSource,
    /// When it expires, in seconds since 1970.
    pub valid_to: Option<i64>,
    /// Where it stands.
    pub span: Span,
}

impl Password {
    /// Reads the `<secret>` of a `<graphics>`, or its `passwd=`.
    pub(super) fn from_xml(
        graphics: &Element,
        protocol: PasswordProtocol,
        diagnostics: &mut Diagnostics,
    ) -> Option<Self> {
        let (source, span) = match (graphics.only_child("secret", diagnostics), graphics.attribute("passwd"))
        {
            (None, None) => return None,
            (Some(secret), None) => (PasswordSource::Secret(secret_ref(secret, diagnostics)?), secret.span),
            (None, Some(passwd)) => (in_xml(&passwd.value, passwd.span, protocol, diagnostics)?, passwd.span),
            (Some(secret), Some(passwd)) => {
                secret.mark_read();
                diagnostics
                    .error(passwd.span, "the password is given twice, here and by a <secret>")
                    .related(secret.span, "the <secret>")
                    .hint("leave out passwd=");
                return None;
            }
        };
        let valid_to = graphics.attribute("passwdValidTo").and_then(|valid| {
            let seconds = parse_valid_to(&valid.value);
            if seconds.is_none() {
                diagnostics.error(valid.span, "this is no time in UTC of the form 2027-01-31T18:00:00");
            }
            seconds
        });
        if let Some(connected) = graphics.attribute("connected") {
            diagnostics.outside_qemu(
                connected.name_span,
                "vmward does not say what becomes of connected clients when a password changes",
            );
        }
        Some(Self { source, valid_to, span })
    }

    /// The secret with it.
    pub fn secret(&self) -> Option<&SecretRef> {
        match &self.source {
            PasswordSource::Secret(secret) => Some(secret),
            PasswordSource::Nowhere | PasswordSource::Xml(_) => None,
        }
    }
}

/// A secret of a usage that libvirt has for passwords: there is none for those of displays.
pub fn password_secret(lookup: SecretLookup, span: Span) -> SecretRef {
    SecretRef { lookup, kind: UsageKind::Iscsi, text: true, span }
}

fn secret_ref(secret: &Element, diagnostics: &mut Diagnostics) -> Option<SecretRef> {
    passphrase_lookup(secret, diagnostics).map(|lookup| password_secret(lookup, secret.span))
}

fn in_xml(
    value: &str,
    span: Span,
    protocol: PasswordProtocol,
    diagnostics: &mut Diagnostics,
) -> Option<PasswordSource> {
    if value.is_empty() {
        return Some(PasswordSource::Nowhere);
    }
    if value == REDACTED {
        diagnostics
            .error(span, "this is the XML of a guest that ran: it does not show the password")
            .hint("name its secret, with <secret type='passphrase' uuid='...'/> in <graphics>");
        return None;
    }
    let longest = protocol.longest_password();
    if value.len() > longest {
        diagnostics.error(span, format!("{} passwords have {longest} bytes at most", protocol.name()));
        return None;
    }
    diagnostics.warning(span, "who can read this XML can read the password").hint(
        "it belongs in a keystore: `vmward secret define` and `set-value`, and in <graphics> \
         <secret type='passphrase' uuid='...'/> instead of passwd=",
    );
    match SecretValue::copy_of(value.as_bytes()) {
        Ok(value) => Some(PasswordSource::Xml(Arc::new(value))),
        Err(e) => {
            diagnostics.error(span, format!("the password cannot be kept: {e}"));
            None
        }
    }
}

/// A time in UTC as `passwdValidTo` has it, `2027-01-31T18:00:00`, in seconds since 1970.
pub fn parse_valid_to(text: &str) -> Option<i64> {
    let time: DateTime = text.parse().ok()?;
    Some(time.duration_since(DateTime::constant(1970, 1, 1, 0, 0, 0, 0)).as_secs())
}

#[cfg(test)]
mod tests {
    use crate::xml;

    use super::*;

    fn read(text: &str) -> (Option<Password>, Diagnostics) {
        let mut diagnostics = Diagnostics::new();
        let element = xml::parse(text, &mut diagnostics).unwrap();
        let password = Password::from_xml(&element, PasswordProtocol::Vnc, &mut diagnostics);
        (password, diagnostics)
    }

    #[test]
    fn passwords_are_secrets_or_warned_of() {
        let uuid = "5c8a3f2e-0b1d-4c6e-8f90-a1b2c3d4e5f6";
        let (password, diagnostics) = read(&format!(
            "<graphics passwdValidTo='2009-02-13T23:31:30'><secret type='passphrase' uuid='{uuid}'/></graphics>"
        ));
        let password = password.unwrap();
        assert_eq!(password.secret().unwrap().lookup.to_string(), format!("UUID {uuid}"));
        assert_eq!(password.valid_to, Some(1_234_567_890));
        assert!(diagnostics.is_empty());

        let text = "<graphics passwd='hunter2'/>";
        let (password, diagnostics) = read(text);
        assert!(matches!(password.unwrap().source, PasswordSource::Xml(_)));
        let said = diagnostics.render("x", "");
        assert!(!diagnostics.has_errors() && said.contains("warning") && said.contains("<secret"), "{said}");

        let (password, diagnostics) = read("<graphics passwd=''/>");
        assert!(matches!(password.unwrap().source, PasswordSource::Nowhere));
        assert!(diagnostics.is_empty());
    }

    #[test]
    fn what_is_no_password() {
        for (text, why) in [
            ("<graphics passwd='[redacted]'/>", "does not show the password"),
            ("<graphics passwd='123456789'/>", "8 bytes at most"),
            ("<graphics passwd='x' passwdValidTo='tomorrow'/>", "no time in UTC"),
            ("<graphics passwd='x'><secret type='passphrase' usage='x'/></graphics>", "given twice"),
            ("<graphics><secret type='volume' usage='x'/></graphics>", "of type 'passphrase'"),
            ("<graphics><secret type='passphrase'/></graphics>", "names no secret"),
        ] {
            let said = read(text).1.render("x", "");
            assert!(said.contains(why), "{said}");
        }
    }
}
