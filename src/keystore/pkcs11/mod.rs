//! `pkcs11:` tokens, by RFC 7512's URIs: `pkcs11:token=NAME?module-path=/module.so&pin-source=file:/pin`.
//!
//! Three things go by such a URI. With a token's name alone it is a store whose secrets are data objects
//! ([`objects`]). With an object's name it is that object's value, for a definition that is kept elsewhere. With
//! `type=private` and `wrapped=DIR` it is a directory of definitions and values, of which each is encrypted to a key that
//! never leaves the token ([`wrapped`]).

mod module;
mod objects;
mod pin;
mod token;
mod uri;
mod wrapped;

use std::time::Duration;

use super::credential_file::CredentialFile;
use super::kinds::Opened;
use super::{Keystore, StoreOptions, ValueObject};
pub(super) use module::in_each_thread;
use uri::{ObjectType, Pkcs11Uri};

/// A URI and what is needed to go there.
#[derive(Debug, Clone)]
struct Place {
    uri: String,
    parsed: Pkcs11Uri,
    timeout: Duration,
    /// Where the PIN is.
    pin: Option<CredentialFile>,
}

impl Place {
    fn new(uri: &str, options: &StoreOptions) -> Result<Self, String> {
        let parsed = Pkcs11Uri::parse(uri)?;
        let pin = parsed.pin.as_deref().map(|name| CredentialFile::named(name, options)).transpose()?;
        Ok(Self { uri: uri.to_owned(), parsed, timeout: options.timeout, pin })
    }
}

/// The object that a URI names, for messages.
fn object_name(parsed: &Pkcs11Uri) -> Option<String> {
    match (&parsed.object, &parsed.id) {
        (Some(label), _) => Some(format!("the object '{}'", label)),
        (None, Some(id)) => {
            Some(format!("the object with id {}", id.iter().map(|b| format!("{b:02x}")).collect::<String>()))
        }
        (None, None) => None,
    }
}

/// The store that a URI names.
pub(super) fn open(uri: &str, options: &StoreOptions) -> Opened<dyn Keystore> {
    let place = Place::new(uri, options)?;
    let names_object = place.parsed.object.is_some() || place.parsed.id.is_some();
    match (names_object, place.parsed.wrapped.clone()) {
        (false, None) if place.parsed.kind.is_none() => Ok(Box::new(objects::TokenStore { place })),
        (true, Some(dir)) if matches!(place.parsed.kind, None | Some(ObjectType::Private)) => {
            Ok(Box::new(wrapped::WrappedStore::new(place, dir, options)))
        }
        (_, Some(_)) => Err("wrapped=DIR takes a private key, as in pkcs11:token=NAME;object=KEY;type=private".into()),
        (_, None) => Err(
            "a keystore is a token, as in pkcs11:token=NAME; one object of it can be the value of a secret that is defined elsewhere".into(),
        ),
    }
}

/// The object that a URI names.
pub(super) fn open_object(uri: &str, options: &StoreOptions) -> Opened<dyn ValueObject> {
    let place = Place::new(uri, options)?;
    let parsed = &place.parsed;
    if parsed.wrapped.is_some() || parsed.kind == Some(ObjectType::Private) {
        return Err("a private key is no value; name the URI with wrapped=DIR as a keystore".into());
    }
    match parsed.kind {
        Some(ObjectType::SecretKey) if parsed.object.is_some() || parsed.id.is_some() => {}
        _ if parsed.object.is_some() && parsed.id.is_none() => {}
        _ => return Err("the value needs an object's name, as in pkcs11:token=NAME;object=LABEL".into()),
    }
    Ok(Box::new(objects::TokenObject { place }))
}
