//! A token: found among the slots, logged in to, and what its refusals mean.

use std::collections::HashSet;
use std::sync::{LazyLock, Mutex, PoisonError};

use cryptoki::context::Pkcs11;
use cryptoki::error::{Error, RvError};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::RawAuthPin;

use crate::keystore::{Failure, Health, KeystoreError};

use super::module::{self, Library};
use super::pin::{self, PinId};
use super::{Place, object_name};

/// PINs that were refused, by their tokens' labels and serial numbers: not what they are, only where they stand. A token is locked after a few
/// wrong ones, and a guest with ten disks must not use them up. Another PIN in the same place may be tried.
static REFUSED: LazyLock<Mutex<HashSet<(String, String, PinId)>>> = LazyLock::new(Mutex::default);

/// A token with an open session.
pub(super) struct Token<'a> {
    /// Where it was looked for.
    pub(super) place: &'a Place,
    /// A session that reads.
    pub(super) session: &'a Session,
    loaded: Pkcs11,
    slot: Slot,
}

/// Does something with a place's token, in its library's thread and within the deadline. Where the place names a PIN, or
/// the token has a keypad, it is logged in.
pub(super) fn with_token<R: Send + 'static>(
    place: &Place,
    work: impl FnOnce(&Token<'_>) -> Result<R, KeystoreError> + Send + 'static,
) -> Result<R, KeystoreError> {
    let inside = place.clone();
    module::run(place, move |library| {
        let place = &inside;
        let loaded = library.ready(&place.uri)?;
        let (slot, session) = open(library, &loaded, place)?;
        work(&Token { place, session, loaded, slot })
    })
}

/// What is known of a token without logging in.
pub(super) fn health(place: &Place) -> Result<Vec<Health>, KeystoreError> {
    let inside = place.clone();
    module::run(place, move |library| {
        let loaded = library.ready(&inside.uri)?;
        let (_, token) = find(&loaded, &inside)?;
        let state = if token.user_pin_locked() {
            Some("its PIN is locked: whoever has the SO PIN can set a new one")
        } else if token.user_pin_final_try() {
            Some("one more wrong PIN locks it, so vmward does not log in: log in once with another program")
        } else if token.user_pin_count_low() {
            Some("a wrong PIN was tried; after a few of them it is locked")
        } else {
            None
        };
        Ok(vec![Health {
            about: "token",
            message: format!(
                "'{}' ({} {}, serial number {}): {}",
                token.label(),
                token.manufacturer_id(),
                token.model(),
                token.serial_number(),
                state.unwrap_or("its PIN was not mistaken lately")
            ),
            warning: state.is_some(),
        }])
    })
}

/// The session of a place; a new one is logged in.
fn open<'a>(
    library: &'a mut Library,
    loaded: &Pkcs11,
    place: &Place,
) -> Result<(Slot, &'a Session), KeystoreError> {
    let key = place.token_key();
    if !library.sessions.contains_key(&key) {
        let (slot, token) = find(loaded, place)?;
        let session = loaded.open_ro_session(slot).map_err(|e| place.error(e))?;
        log_in(&session, &token, place)?;
        library.sessions.insert(key.clone(), (slot, session));
    }
    let (slot, session) = &library.sessions[&key];
    Ok((*slot, session))
}

/// The token that a URI means: exactly one.
fn find(loaded: &Pkcs11, place: &Place) -> Result<(Slot, TokenInfo), KeystoreError> {
    let meant = &place.parsed;
    let is = |wanted: &Option<String>, has: &str| wanted.as_ref().is_none_or(|w| w == has);
    let mut found = Vec::new();
    let mut refused = None;
    for slot in loaded.get_slots_with_token().map_err(|e| place.error(e))? {
        let token = match loaded.get_token_info(slot) {
            Ok(token) => token,
            // Another slot's trouble; ours, if no other slot has the token.
            Err(e) => {
                refused.get_or_insert(e);
                continue;
            }
        };
        if token.token_initialized()
            && is(&meant.token, token.label())
            && is(&meant.serial, token.serial_number())
            && is(&meant.manufacturer, token.manufacturer_id())
            && is(&meant.model, token.model())
            && meant.slot_id.is_none_or(|id| id == slot.id())
        {
            found.push((slot, token));
        }
    }
    let name = place.token_name();
    match (found.len(), refused) {
        (0, Some(e)) => Err(place.error(e)),
        (0, None) => Err(Failure::Missing(format!("{name} in any slot")).of(&place.uri, None)),
        (1, _) => Ok(found.swap_remove(0)),
        (several, _) => {
            let why = format!("{several} of its tokens are {name}: add serial=NUMBER to its URI");
            Err(Failure::Other(why).of(&place.uri, None))
        }
    }
}

fn log_in(session: &Session, token: &TokenInfo, place: &Place) -> Result<(), KeystoreError> {
    let not_accepted = |what: String| Failure::NotAuthenticated(what).of(&place.uri, None);
    let pin = match &place.pin {
        Some(file) => Some((pin::read(file)?, PinId::of(file)?, file.path().display())),
        // The keypad asks for it.
        None if token.protected_authentication_path() => None,
        // What is public can be had: a public key, to wrap a value with.
        None => return Ok(()),
    };
    if token.user_pin_locked() {
        return Err(not_accepted("any PIN: it is locked after too many wrong ones".to_owned()));
    }
    if token.user_pin_final_try() {
        return Err(not_accepted("more than one more wrong PIN, and so vmward does not try any".to_owned()));
    }
    let refused = || REFUSED.lock().unwrap_or_else(PoisonError::into_inner);
    let tried = pin
        .as_ref()
        .map(|(_, id, _)| (token.label().to_owned(), token.serial_number().to_owned(), id.clone()));
    if let (Some(tried), Some((_, _, path))) = (&tried, &pin)
        && refused().contains(tried)
    {
        return Err(not_accepted(format!("the PIN in {path}, and it is not tried a second time")));
    }
    let logged_in = match &pin {
        Some((pin, ..)) => {
            session.login_with_raw(UserType::User, &RawAuthPin::new(Box::new(pin.expose().to_vec())))
        }
        None => session.login(UserType::User, None),
    };
    let said = match logged_in {
        Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => return Ok(()),
        Err(e) => e,
    };
    let from = pin.map_or("its keypad".to_owned(), |(_, _, path)| path.to_string());
    let what = match &said {
        Error::Pkcs11(RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange, _) => {
            refused().extend(tried);
            format!("the PIN in {from}")
        }
        Error::Pkcs11(RvError::PinLocked, _) => {
            refused().extend(tried);
            "any PIN: it is locked after too many wrong ones".to_owned()
        }
        Error::Pkcs11(RvError::PinExpired, _) => format!("the PIN in {from}: it has expired"),
        Error::Pkcs11(RvError::UserPinNotInitialized, _) => "a PIN: none was set yet".to_owned(),
        _ => return Err(place.error(said)),
    };
    Err(not_accepted(what).because(said_by(&said)))
}

/// What a library says, by the names of PKCS#11: its functions and return values.
pub(super) fn said_by(error: &Error) -> String {
    match error {
        Error::Pkcs11(value, function) => format!("C_{function:?} gave {value:?}"),
        other => other.to_string(),
    }
}

impl Token<'_> {
    /// A session that may change what is on the token. It shares the login.
    pub(super) fn writable(&self) -> Result<Session, KeystoreError> {
        self.loaded.open_rw_session(self.slot).map_err(|e| self.place.error(e))
    }

    /// Private objects are invisible to who is not logged in: without a PIN there is no telling whether one is there.
    pub(super) fn require_login(&self) -> Result<(), KeystoreError> {
        let token = self.loaded.get_token_info(self.slot).map_err(|e| self.place.error(e))?;
        if self.is_logged_in() || !token.login_required() {
            return Ok(());
        }
        let what = "a session without a PIN; name the PIN's file in its URI, with pin-source=file:/path";
        Err(Failure::NotAuthenticated(what.to_owned()).of(&self.place.uri, None))
    }

    /// Whether a PIN was given, here or at a keypad.
    pub(super) fn is_logged_in(&self) -> bool {
        use cryptoki::session::SessionState;
        self.session
            .get_session_info()
            .is_ok_and(|info| matches!(info.session_state(), SessionState::RoUser | SessionState::RwUser))
    }
}

impl Place {
    /// What a library's refusal means.
    pub(super) fn error(&self, error: Error) -> KeystoreError {
        let Error::Pkcs11(rv, _) = &error else {
            return Failure::Other(error.to_string()).of(&self.uri, self.object().as_deref());
        };
        let failure = match rv {
            RvError::TokenNotPresent | RvError::DeviceRemoved | RvError::TokenNotRecognized => {
                Failure::NotReady("the token was taken out".to_owned())
            }
            RvError::SessionCount => Failure::NotReady("the token has no session to spare".to_owned()),
            RvError::UserNotLoggedIn => Failure::NotAuthenticated("a session without a PIN".to_owned()),
            RvError::TokenWriteProtected
            | RvError::SessionReadOnly
            | RvError::ActionProhibited
            | RvError::AttributeSensitive
            | RvError::AttributeReadOnly
            | RvError::KeyUnextractable
            | RvError::KeyFunctionNotPermitted => Failure::Denied,
            RvError::DeviceMemory => Failure::Other("the token is full".to_owned()),
            _ => Failure::Other("its library gave up".to_owned()),
        };
        failure.of(&self.uri, self.object().as_deref()).because(said_by(&error))
    }

    /// The object that the URI names, for messages.
    pub(super) fn object(&self) -> Option<String> {
        object_name(&self.parsed)
    }

    fn token_name(&self) -> String {
        let meant = &self.parsed;
        match (&meant.token, &meant.serial, meant.slot_id) {
            (Some(label), _, _) => format!("token '{label}'"),
            (None, Some(serial), _) => format!("token with the serial number '{serial}'"),
            (None, None, Some(slot)) => format!("token in slot {slot}"),
            (None, None, None) => "token".to_owned(),
        }
    }

    /// What decides which token is meant, and who logs in.
    fn token_key(&self) -> String {
        let p = &self.parsed;
        format!("{:?}", (&p.token, &p.serial, &p.manufacturer, &p.model, p.slot_id, &self.pin))
    }
}
