//! `<auth>`: who vmward is to a storage server.

use crate::secret::{SecretLookup, SecretRef, UsageKind};
use crate::xml::{Diagnostics, Element};

use super::encryption::Refused;

/// A user name and the secret that goes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    /// The user.
    pub username: String,
    /// Its password or key.
    pub secret: SecretRef,
}

impl Auth {
    /// Reads `<auth>` from where it may stand: in the `<source>`, or (the top image only) in the `<disk>`
    /// itself. `kind` is the usage that the source's protocol takes.
    pub(super) fn from_places(
        disk: Option<&Element>,
        source: &Element,
        kind: UsageKind,
        diagnostics: &mut Diagnostics,
    ) -> Result<Option<Self>, Refused> {
        let outer = disk.and_then(|d| d.only_child("auth", diagnostics));
        let inner = source.only_child("auth", diagnostics);
        match (outer, inner) {
            (None, None) => Ok(None),
            (Some(e), None) | (None, Some(e)) => {
                Self::from_xml(e, kind, diagnostics).ok_or(Refused).map(Some)
            }
            (Some(outer), Some(inner)) => {
                outer.mark_read();
                inner.mark_read();
                diagnostics
                    .error(inner.span, "the authentication is given twice, in the <disk> and in its <source>")
                    .related(outer.span, "the first one")
                    .hint("keep the one in <source>");
                Err(Refused)
            }
        }
    }

    /// Reads `<auth>` of an iSCSI source. `None` if it is wrong.
    pub(in crate::domain) fn of_iscsi(
        source: &Element,
        diagnostics: &mut Diagnostics,
    ) -> Option<Option<Self>> {
        Self::from_places(None, source, UsageKind::Iscsi, diagnostics).ok()
    }

    fn from_xml(e: &Element, kind: UsageKind, diagnostics: &mut Diagnostics) -> Option<Self> {
        let username = e.require("username", diagnostics).map(str::to_owned);
        let Some(secret) = e.only_child("secret", diagnostics) else {
            diagnostics
                .error(e.span, "<auth> has no <secret>")
                .hint(format!("add <secret type='{}' uuid='...'/>", kind.as_str()));
            return None;
        };
        let found = secret.require_keyword::<UsageKind>("type", diagnostics);
        let lookup = SecretLookup::from_xml(secret, diagnostics);
        if let Some(other) = found.filter(|f| *f != kind) {
            diagnostics.error(
                secret.span,
                format!(
                    "a secret for '{}' does not serve here: it takes '{}'",
                    other.as_str(),
                    kind.as_str()
                ),
            );
            return None;
        }
        found?;
        Some(Self {
            username: username?,
            secret: SecretRef { lookup: lookup?, kind, text: kind != UsageKind::Ceph, span: secret.span },
        })
    }
}
