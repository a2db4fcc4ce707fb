//! `pkcs11:token=NAME;object=KEY;type=private?...&wrapped=DIR`: values on disk, encrypted to a key that never leaves
//! its token.
//!
//! The directory is that of a file keystore, and its values are age files. Their file key, 16 bytes, is wrapped by
//! RSA-OAEP with the token's public key, in a stanza of our own, and only the token can unwrap it; what the token sees is
//! as short for a value of a megabyte. Public keys in the directory's `recipients.txt` are recipients as well: a recovery
//! key whose identity lies in a safe opens the values when the token is lost.

use std::cell::RefCell;
use std::collections::HashSet;
use std::io;
use std::path::PathBuf;

use age::secrecy::ExposeSecret;
use age::{DecryptError, Decryptor, EncryptError};
use age_core::format::{FILE_KEY_BYTES, FileKey, Stanza};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use zeroize::Zeroizing;

use crate::keystore::file::{FileStore, encrypt};
use crate::keystore::{Failure, Health, Keystore, KeystoreError, Listing, StoreOptions};
use crate::secret::{SecretDefinition, SecretLookup, SecretValue, UsageKind};

use super::Place;
use super::token::{self, Token, with_token};

/// The stanza's tag. Its one argument is the hash of the OAEP padding.
const TAG: &str = "vmward-pkcs11-oaep";

/// The hashes that OAEP is tried with. Of SHA-1 it needs nothing that is broken, and there are tokens that do no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hash {
    Sha256,
    Sha1,
}

impl Hash {
    const ALL: [Self; 2] = [Self::Sha256, Self::Sha1];

    fn word(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha1 => "sha1",
        }
    }

    fn mechanism(self) -> Mechanism<'static> {
        let (hash, mgf) = match self {
            Self::Sha256 => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
            Self::Sha1 => (MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
        };
        Mechanism::RsaPkcsOaep(PkcsOaepParams::new(hash, mgf, PkcsOaepSource::empty()))
    }
}

/// A directory of secrets whose values only a token can decrypt.
pub(super) struct WrappedStore {
    place: Place,
    files: FileStore,
}

impl WrappedStore {
    pub(super) fn new(place: Place, dir: PathBuf, options: &StoreOptions) -> Self {
        Self { place, files: FileStore::new(dir, options.identity.clone()) }
    }
}

/// The token's key as one of age's.
struct TokenKey<'a> {
    place: &'a Place,
    /// What went wrong with the token: age's errors have no room for it.
    trouble: RefCell<Option<KeystoreError>>,
}

impl<'a> TokenKey<'a> {
    fn new(place: &'a Place) -> Self {
        Self { place, trouble: RefCell::default() }
    }
}

impl age::Recipient for TokenKey<'_> {
    fn wrap_file_key(&self, file_key: &FileKey) -> Result<(Vec<Stanza>, HashSet<String>), EncryptError> {
        let key = Zeroizing::new(*file_key.expose_secret());
        match with_token(self.place, move |token| wrap(token, &key)) {
            Ok((hash, body)) => {
                let stanza = Stanza { tag: TAG.to_owned(), args: vec![hash.word().to_owned()], body };
                Ok((vec![stanza], HashSet::new()))
            }
            Err(e) => {
                self.trouble.replace(Some(e));
                Err(EncryptError::Io(io::Error::other("the token")))
            }
        }
    }
}

impl age::Identity for TokenKey<'_> {
    fn unwrap_stanza(&self, stanza: &Stanza) -> Option<Result<FileKey, DecryptError>> {
        let hash = match (stanza.tag.as_str(), stanza.args.as_slice()) {
            (TAG, [word]) => Hash::ALL.into_iter().find(|hash| hash.word() == word)?,
            _ => return None,
        };
        let body = stanza.body.clone();
        let unwrapped = with_token(self.place, move |token| {
            token.require_login()?;
            let key = only_key(token, ObjectClass::PRIVATE_KEY)?;
            match token.session.decrypt(&hash.mechanism(), key, &body).map(Zeroizing::new) {
                Ok(plain) => Ok(Some(plain)),
                // Of another key, or changed.
                Err(Error::Pkcs11(
                    RvError::EncryptedDataInvalid
                    | RvError::EncryptedDataLenRange
                    | RvError::DataInvalid
                    | RvError::DataLenRange,
                    _,
                )) => Ok(None),
                // What SoftHSM says to the same, and others when they fail.
                Err(e @ Error::Pkcs11(RvError::GeneralError | RvError::FunctionFailed, _)) => {
                    let why = "it did not unwrap the value, which is wrapped for another key, or was changed, or the token is not well";
                    let place = token.place;
                    Err(Failure::Other(why.to_owned())
                        .of(&place.uri, place.object().as_deref())
                        .because(token::said_by(&e)))
                }
                Err(e) => Err(token.place.error(e)),
            }
        });
        match unwrapped {
            Ok(plain) => {
                let key: [u8; FILE_KEY_BYTES] = plain?.as_slice().try_into().ok()?;
                Some(Ok(FileKey::new(Box::new(key))))
            }
            Err(e) => {
                self.trouble.replace(Some(e));
                Some(Err(DecryptError::KeyDecryptionFailed))
            }
        }
    }
}

/// Wraps a key. Where a PIN allows it, it is unwrapped again at once: what cannot be read back is lost.
fn wrap(token: &Token<'_>, key: &[u8; FILE_KEY_BYTES]) -> Result<(Hash, Vec<u8>), KeystoreError> {
    let public = only_key(token, ObjectClass::PUBLIC_KEY)?;
    let private = match token.is_logged_in() {
        true => Some(only_key(token, ObjectClass::PRIVATE_KEY)?),
        false => None,
    };
    let mut refused = None;
    for hash in Hash::ALL {
        let wrapped = match token.session.encrypt(&hash.mechanism(), public, key) {
            Ok(wrapped) => wrapped,
            Err(e) => {
                refused = Some(token.place.error(e));
                continue;
            }
        };
        let back = private.map(|k| token.session.decrypt(&hash.mechanism(), k, &wrapped).map(Zeroizing::new));
        match back {
            None => return Ok((hash, wrapped)),
            Some(Ok(back)) if back.as_slice() == key => return Ok((hash, wrapped)),
            Some(Ok(_)) => {
                let why =
                    "what its public key encrypts its private key does not decrypt to the same".to_owned();
                return Err(Failure::BadAnswer(why).of(&token.place.uri, token.place.object().as_deref()));
            }
            Some(Err(e)) => refused = Some(token.place.error(e)),
        }
    }
    Err(refused.unwrap_or_else(|| Failure::Denied.of(&token.place.uri, token.place.object().as_deref())))
}

/// The one RSA key of that class that the URI names.
fn only_key(token: &Token<'_>, class: ObjectClass) -> Result<ObjectHandle, KeystoreError> {
    let place = token.place;
    let mut template = place.template();
    template[0] = Attribute::Class(class);
    template.push(Attribute::KeyType(KeyType::RSA));
    let which = if class == ObjectClass::PUBLIC_KEY { "public" } else { "private" };
    match token.search(&template)?.as_slice() {
        [only] => Ok(*only),
        [] => {
            let what = format!("{which} RSA key of that name");
            Err(Failure::Missing(what).of(&place.uri, place.object().as_deref()))
        }
        several => {
            let why =
                format!("{} of its {which} keys are of that name: add id=%.. to its URI", several.len());
            Err(Failure::Other(why).of(&place.uri, place.object().as_deref()))
        }
    }
}

impl Keystore for WrappedStore {
    fn uri(&self) -> &str {
        &self.place.uri
    }

    fn find(
        &self,
        lookup: &SecretLookup,
        kind: Option<UsageKind>,
    ) -> Result<Option<SecretDefinition>, KeystoreError> {
        self.files.find(lookup, kind)
    }

    fn value(&self, secret: &SecretDefinition) -> Result<Option<SecretValue>, KeystoreError> {
        let uuid = secret.uuid;
        let Some(content) = self.files.sealed_value(uuid)? else { return Ok(None) };
        let damaged = |e: DecryptError| KeystoreError::Damaged {
            path: self.files.value_path(uuid),
            why: e.to_string(),
        };
        let decryptor = Decryptor::new_buffered(&*content).map_err(damaged)?;
        let key = TokenKey::new(&self.place);
        let plain = match decryptor.decrypt([&key as &dyn age::Identity].into_iter()) {
            Ok(plain) => plain,
            Err(e) => {
                return Err(match (key.trouble.take(), e) {
                    (Some(trouble), _) => trouble,
                    (None, DecryptError::NoMatchingKeys) => {
                        KeystoreError::WrongIdentity { uuid, tried: vec![self.place.uri.clone()] }
                    }
                    (None, e) => damaged(e),
                });
            }
        };
        SecretValue::read_from(plain).map(Some).map_err(|source| KeystoreError::Value { uuid, source })
    }

    fn has_value(&self, secret: &SecretDefinition) -> Result<bool, KeystoreError> {
        self.files.has_value(secret)
    }

    fn list(&self) -> Result<Listing, KeystoreError> {
        self.files.list()
    }

    fn define(&self, definition: &SecretDefinition) -> Result<(), KeystoreError> {
        if definition.ephemeral {
            return Err(KeystoreError::Unsupported {
                store: self.place.uri.clone(),
                what: "keep an ephemeral secret, whose value must not be on disk",
            });
        }
        self.files.define_only(definition)
    }

    fn set_value(&self, secret: &SecretDefinition, value: &SecretValue) -> Result<(), KeystoreError> {
        let uuid = secret.uuid;
        // Before the writers' turn is taken: a token may be slow.
        let key = TokenKey::new(&self.place);
        let recovery = self.files.listed_recipients()?;
        let recipients = [&key as &dyn age::Recipient]
            .into_iter()
            .chain(recovery.iter().map(|r| r as &dyn age::Recipient));
        let sealed = encrypt(recipients, value).map_err(|e| {
            let failed = KeystoreError::io(self.files.value_path(uuid), "encrypted");
            key.trouble.take().unwrap_or_else(|| failed(e))
        })?;
        self.files.set_sealed_value(uuid, &sealed)
    }

    fn undefine(&self, secret: &SecretDefinition) -> Result<(), KeystoreError> {
        self.files.undefine(secret)
    }

    fn health(&self) -> Result<Vec<Health>, KeystoreError> {
        token::health(&self.place)
    }
}
