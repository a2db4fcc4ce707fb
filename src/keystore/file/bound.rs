//! Values that belong to one secret.
//!
//! Who may add secrets to a store of several users could take another one's value, which he cannot read, as that of a
//! secret of his own, and have somebody use it who can. So a value there says which secret it is of: in a stanza of the
//! age file's header, which nobody can change without the key to the value. age and rage skip the stanza.

use std::cell::Cell;
use std::collections::HashSet;

use age::x25519::Identity;
use age::{DecryptError, EncryptError};
use age_core::format::{FileKey, Stanza};
use uuid::Uuid;

const TAG: &str = "vmward-secret";

/// Says in the header whose value it is.
pub(super) struct Binding(pub(super) Uuid);

impl age::Recipient for Binding {
    fn wrap_file_key(&self, _: &FileKey) -> Result<(Vec<Stanza>, HashSet<String>), EncryptError> {
        let stanza = Stanza { tag: TAG.to_owned(), args: vec![self.0.to_string()], body: Vec::new() };
        Ok((vec![stanza], HashSet::new()))
    }
}

/// Opens the values of one secret only.
pub(super) struct BoundIdentity<'a> {
    identity: &'a Identity,
    uuid: String,
    refused: &'a Cell<bool>,
}

impl<'a> BoundIdentity<'a> {
    /// `refused` is set if it was given another secret's value.
    pub(super) fn new(identity: &'a Identity, uuid: Uuid, refused: &'a Cell<bool>) -> Self {
        Self { identity, uuid: uuid.to_string(), refused }
    }
}

impl age::Identity for BoundIdentity<'_> {
    fn unwrap_stanza(&self, stanza: &Stanza) -> Option<Result<FileKey, DecryptError>> {
        self.identity.unwrap_stanza(stanza)
    }

    fn unwrap_stanzas(&self, stanzas: &[Stanza]) -> Option<Result<FileKey, DecryptError>> {
        if stanzas.iter().any(|s| s.tag == TAG && s.args == [self.uuid.as_str()]) {
            return self.identity.unwrap_stanzas(stanzas);
        }
        self.refused.set(true);
        None
    }
}
