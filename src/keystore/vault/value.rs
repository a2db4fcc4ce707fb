//! A value as the fields of an entry: as text where it is text, in base64 where it is not, or wrapped by a key of the
//! server's transit engine.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use ureq::http::Method;
use zeroize::Zeroizing;

use crate::keystore::KeystoreError;
use crate::secret::{SecretValue, ValueError};

use super::reply::{Entry, SecretBase64, SecretText, to_base64, to_json};
use super::session::{Answer, Question, Session};
use super::uri::VaultUri;

/// The field of a value that is text.
const TEXT: &str = "value";
/// The field of any other value, in base64.
const BASE64: &str = "value-base64";
/// The field of a value that is wrapped by a transit key.
const WRAPPED: &str = "value-transit";

/// The most that JSON makes of a byte: `\u0000`.
const ESCAPED: usize = 6;

/// Which value of which object it is about.
pub(super) struct Place<'a> {
    pub session: &'a Session<'a>,
    pub uri: &'a VaultUri,
    /// For messages.
    pub object: &'a str,
    /// What a wrapped value is bound to, so that it is of no use in another place.
    pub bound_to: Option<&'a str>,
}

impl Place<'_> {
    fn senseless(&self, why: &str) -> KeystoreError {
        self.session.senseless(Some(self.object), why)
    }

    fn unusable(&self, source: ValueError) -> KeystoreError {
        self.session.unusable(self.object, source)
    }

    /// The value of a secret of the store.
    pub(super) fn of_secret(&self, entry: &Entry<'_>) -> Result<Option<SecretValue>, KeystoreError> {
        let Some(fields) = &entry.data else { return Ok(None) };
        let all = [TEXT, BASE64, WRAPPED].map(|name| fields.get(name).copied());
        match (all, &self.uri.options.transit) {
            ([None, None, None], _) => Ok(None),
            ([None, None, Some(wrapped)], Some(_)) => self.unwrapped(wrapped).map(Some),
            ([None, None, Some(_)], None) => {
                Err(self.senseless("the value is wrapped by transit, and the URI has no ?transit=MOUNT/KEY"))
            }
            // Who can write the entry and not use the key must not be able to choose a value.
            ([_, _, None], Some(_)) => {
                Err(self
                    .senseless("the value is not wrapped by transit; set it again, or take ?transit= away"))
            }
            ([Some(text), None, None], None) => self.text(text).map(Some),
            ([None, Some(base64), None], None) => self.base64(base64).map(Some),
            _ => Err(self.senseless("there is more than one value in it")),
        }
    }

    /// The value of one field of somebody else's entry.
    pub(super) fn of_field(
        &self,
        entry: &Entry<'_>,
        name: &str,
    ) -> Result<Option<SecretValue>, KeystoreError> {
        let Some(field) = entry.data.as_ref().and_then(|fields| fields.get(name).copied()) else {
            return Ok(None);
        };
        let options = &self.uri.options;
        match (&options.transit, options.base64) {
            (Some(_), _) => self.unwrapped(field).map(Some),
            (None, true) => self.base64(field).map(Some),
            (None, false) => self.text(field).map(Some),
        }
    }

    fn text(&self, field: &RawValue) -> Result<SecretValue, KeystoreError> {
        let SecretText(value) =
            serde_json::from_str(field.get()).map_err(|_| self.senseless("the value is not a string"))?;
        value.map_err(|e| self.unusable(e))
    }

    fn base64(&self, field: &RawValue) -> Result<SecretValue, KeystoreError> {
        let SecretBase64(value) =
            serde_json::from_str(field.get()).map_err(|_| self.senseless("the value is not base64"))?;
        value.map_err(|e| self.unusable(e))
    }

    /// The fields that a secret of the store gets, as JSON.
    pub(super) fn to_secret(&self, value: &SecretValue) -> Result<Zeroizing<Vec<u8>>, KeystoreError> {
        if self.uri.options.transit.is_some() {
            return Ok(fields(WRAPPED, &self.wrapped(value)?));
        }
        Ok(match std::str::from_utf8(value.expose()) {
            Ok(text) => fields(TEXT, text),
            Err(_) => fields(BASE64, &to_base64(value)),
        })
    }

    /// One field of somebody else's entry, as JSON.
    pub(super) fn to_field(
        &self,
        value: &SecretValue,
        name: &str,
    ) -> Result<Zeroizing<Vec<u8>>, KeystoreError> {
        let options = &self.uri.options;
        if options.transit.is_some() {
            return Ok(fields(name, &self.wrapped(value)?));
        }
        if options.base64 {
            return Ok(fields(name, &to_base64(value)));
        }
        let text = std::str::from_utf8(value.expose()).map_err(|_| self.unusable(ValueError::NotText))?;
        Ok(fields(name, text))
    }

    fn wrapped(&self, value: &SecretValue) -> Result<String, KeystoreError> {
        #[derive(Serialize)]
        struct Plain<'a> {
            plaintext: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            associated_data: Option<String>,
        }
        #[derive(Deserialize)]
        struct Wrapped {
            ciphertext: String,
        }
        let plaintext = to_base64(value);
        let json =
            to_json(&Plain { plaintext: &plaintext, associated_data: self.bound() }, plaintext.len() + 256);
        let path = self.transit("encrypt");
        let question = Question::new(Method::POST, &path).with(&json).about(self.object).hiding(value);
        match self.session.ask(&question)? {
            Answer::Done(body) => body.data::<Wrapped>().map(|wrapped| wrapped.ciphertext),
            _ => None,
        }
        .ok_or_else(|| self.senseless("there is no ciphertext in it"))
    }

    fn unwrapped(&self, field: &RawValue) -> Result<SecretValue, KeystoreError> {
        #[derive(Serialize)]
        struct Wrapped<'a> {
            ciphertext: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            associated_data: Option<String>,
        }
        #[derive(Deserialize)]
        struct Plain<'a> {
            #[serde(borrow)]
            plaintext: &'a RawValue,
        }
        let ciphertext: String = serde_json::from_str(field.get())
            .map_err(|_| self.senseless("the wrapped value is not a string"))?;
        let json = to_json(&Wrapped { ciphertext: &ciphertext, associated_data: self.bound() }, 0);
        let path = self.transit("decrypt");
        let question = Question::new(Method::POST, &path).with(&json).about(self.object);
        let answer = self.session.ask(&question)?;
        let Answer::Done(body) = &answer else { return Err(self.senseless("there is no plaintext in it")) };
        let plain: Plain<'_> = body.data().ok_or_else(|| self.senseless("there is no plaintext in it"))?;
        self.base64(plain.plaintext)
    }

    fn bound(&self) -> Option<String> {
        self.bound_to.map(|text| STANDARD.encode(text))
    }

    fn transit(&self, what: &str) -> String {
        let (mount, key) =
            self.uri.options.transit.as_ref().map_or(("", ""), |(m, k)| (m.as_str(), k.as_str()));
        format!("{mount}/{what}/{key}")
    }
}

fn fields(name: &str, text: &str) -> Zeroizing<Vec<u8>> {
    to_json(&BTreeMap::from([(name, text)]), text.len() * ESCAPED + name.len() + 16)
}

/// The body of a write: the fields, and the version that they replace.
pub(super) fn write_body(fields: &[u8], version: Option<u64>) -> Zeroizing<Vec<u8>> {
    let options = version.map_or(String::new(), |version| format!("\"options\":{{\"cas\":{version}}},"));
    let mut body = Zeroizing::new(Vec::with_capacity(fields.len() + options.len() + 16));
    for part in [b"{", options.as_bytes(), b"\"data\":", fields, b"}"] {
        body.extend_from_slice(part);
    }
    body
}
