//! What a Vault server answers, taken out of its JSON without a copy that is not wiped.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use crate::secret::{SecretValue, ValueError};

/// The longest of the server's own words that are passed on.
const MAX_WORDS: usize = 200;

/// The body of a reply.
pub(super) struct Body(pub(super) Zeroizing<Vec<u8>>);

#[derive(Deserialize)]
struct Envelope<T> {
    data: Option<T>,
}

impl Body {
    /// What the reply is about; `None` if it is not what it should be. What the decoder says is left out: it quotes.
    pub(super) fn data<'a, T: Deserialize<'a>>(&'a self) -> Option<T> {
        self.json::<Envelope<T>>()?.data
    }

    /// The whole reply.
    pub(super) fn json<'a, T: Deserialize<'a>>(&'a self) -> Option<T> {
        serde_json::from_slice(&self.0).ok()
    }

    /// The errors that the server reports. `None` if it is no reply of a Vault server at all.
    pub(super) fn errors(&self) -> Option<Vec<String>> {
        #[derive(Deserialize)]
        struct Errors {
            #[serde(default)]
            errors: Option<Vec<String>>,
        }
        Some(self.json::<Errors>()?.errors.unwrap_or_default())
    }

    /// Those errors in one line that is fit to be shown. What has a secret in it is not.
    pub(super) fn words(&self, secrets: &[&SecretValue]) -> String {
        let words = self.errors().unwrap_or_default().join("; ");
        let hides = |secret: &&SecretValue| {
            let secret = secret.expose();
            !secret.is_empty() && words.as_bytes().windows(secret.len()).any(|w| w == secret)
        };
        if secrets.iter().any(hides) {
            return "it repeated a secret".to_owned();
        }
        shown(&words)
    }
}

/// Somebody else's text in a message: one line, no control characters, not too long.
pub(super) fn shown(text: &str) -> String {
    let words: Vec<_> =
        text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
    let mut line = words.join(" ");
    if let Some((at, _)) = line.char_indices().nth(MAX_WORDS) {
        line.truncate(at);
        line.push_str("...");
    }
    line
}

/// Reads a body as an answer to each thing that is ever asked for, and says how many of them it could be. Nothing of the
/// crate needs this: it is the way into the decoders for those who try them with wrong replies.
pub fn read_reply(body: &[u8]) -> usize {
    let body = Body(Zeroizing::new(body.to_vec()));
    body.words(&[]);
    let entry = body.data::<Entry<'_>>();
    for field in entry.iter().flat_map(|entry| &entry.data).flatten().map(|(_, field)| field.get()) {
        let _ = (serde_json::from_str::<SecretText>(field), serde_json::from_str::<SecretBase64>(field));
    }
    let metadata = body.data::<Metadata>();
    usize::from(entry.is_some()) + usize::from(metadata.is_some_and(|m| m.has_content()))
}

/// The reply to a read of the key-value engine.
#[derive(Deserialize)]
pub(super) struct Entry<'a> {
    /// The fields; `None` if the latest version was deleted.
    #[serde(borrow)]
    pub data: Option<BTreeMap<Cow<'a, str>, &'a RawValue>>,
    /// What the engine knows of it.
    pub metadata: Version,
}

/// The version of an entry.
#[derive(Deserialize)]
pub(super) struct Version {
    /// Its number.
    pub version: u64,
}

/// The reply to a read of an entry's metadata.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Metadata {
    /// What people and programs have noted there.
    #[serde(default)]
    pub custom_metadata: Option<BTreeMap<String, String>>,
    /// The number of the latest version; 0 if there was never any.
    #[serde(default)]
    pub current_version: u64,
    /// The versions, by number.
    #[serde(default)]
    versions: BTreeMap<String, VersionState>,
}

#[derive(Debug, Deserialize)]
struct VersionState {
    #[serde(default)]
    deletion_time: String,
    #[serde(default)]
    destroyed: bool,
}

impl Metadata {
    /// Whether the latest version has content.
    pub(super) fn has_content(&self) -> bool {
        let latest = self.versions.get(&self.current_version.to_string());
        latest.is_some_and(|v| v.deletion_time.is_empty() && !v.destroyed)
    }
}

/// A string of JSON, straight into locked memory.
pub(super) struct SecretText(pub(super) Result<SecretValue, ValueError>);

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = SecretText;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_str<E>(self, text: &str) -> Result<SecretText, E> {
                Ok(SecretText(SecretValue::copy_of(text.as_bytes())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// A string of JSON that is base64, decoded into locked memory.
pub(super) struct SecretBase64(pub(super) Result<SecretValue, ValueError>);

impl<'de> Deserialize<'de> for SecretBase64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = SecretBase64;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("base64")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<SecretBase64, E> {
                let room = text.trim_end_matches('=').len() * 3 / 4;
                let mut value = match SecretValue::zeroed(room) {
                    Ok(value) => value,
                    Err(e) => return Ok(SecretBase64(Err(e))),
                };
                let len =
                    STANDARD.decode_slice(text, value.expose_mut()).map_err(|_| E::custom("not base64"))?;
                value.truncate(len);
                Ok(SecretBase64(Ok(value)))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// Something as JSON in a buffer that is wiped.
pub(super) fn to_json(content: &impl Serialize, room: usize) -> Zeroizing<Vec<u8>> {
    let mut json = Zeroizing::new(Vec::with_capacity(room));
    // Writing strings and numbers to memory does not fail.
    let _ = serde_json::to_writer(&mut *json, content);
    json
}

/// A value as base64, in a buffer that is wiped.
pub(super) fn to_base64(value: &SecretValue) -> Zeroizing<String> {
    Zeroizing::new(STANDARD.encode(value.expose()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn body(text: &str) -> Body {
        Body(Zeroizing::new(text.as_bytes().to_vec()))
    }

    #[test]
    fn a_value_is_taken_out_of_an_entry() {
        let body = body(
            r#"{"x":1,"data":{"data":{"a":"b","value":"p\u00e4ss\n\"w\"","n":1},"metadata":{"version":3}}}"#,
        );
        let entry: Entry<'_> = body.data().unwrap();
        assert_eq!(entry.metadata.version, 3);
        let fields = entry.data.unwrap();
        let text: SecretText = serde_json::from_str(fields["value"].get()).unwrap();
        assert_eq!(text.0.unwrap().expose(), "päss\n\"w\"".as_bytes());
        assert!(serde_json::from_str::<SecretText>(fields["n"].get()).is_err());
    }

    #[test]
    fn a_value_over_the_limit_is_said_to_be() {
        let long = format!("\"{}\"", "x".repeat(crate::secret::MAX_VALUE_LEN + 1));
        assert!(matches!(serde_json::from_str::<SecretText>(&long).unwrap().0, Err(ValueError::TooLong)));
        let long = format!("\"{}\"", "x".repeat(2 * crate::secret::MAX_VALUE_LEN));
        assert!(matches!(serde_json::from_str::<SecretBase64>(&long).unwrap().0, Err(ValueError::TooLong)));
        assert!(serde_json::from_str::<SecretBase64>("\"a b\"").is_err());
    }

    #[test]
    fn the_servers_words_have_no_secret_in_them() {
        let token = SecretValue::copy_of(b"s.abc").unwrap();
        assert_eq!(body(r#"{"errors":["no\u001b[31m","\n way"]}"#).words(&[&token]), "no [31m; way");
        assert_eq!(body(r#"{"errors":["you said s.abc"]}"#).words(&[&token]), "it repeated a secret");
        assert_eq!(body(&format!(r#"{{"errors":["{}"]}}"#, "ä".repeat(999))).words(&[]).chars().count(), 203);
    }

    #[test]
    fn metadata_says_whether_there_is_a_value() {
        let has = |text: &str| body(text).data::<Metadata>().unwrap().has_content();
        assert!(has(
            r#"{"data":{"current_version":1,"versions":{"1":{"deletion_time":"","destroyed":false}}}}"#
        ));
        assert!(!has(r#"{"data":{"current_version":0,"versions":{}}}"#));
        assert!(!has(r#"{"data":{"current_version":1,"versions":{"1":{"deletion_time":"2026-01-01T"}}}}"#));
        assert!(!has(r#"{"data":{"current_version":2,"versions":{"1":{},"2":{"destroyed":true}}}}"#));
    }

    #[test]
    fn the_longest_value_fits() {
        let value = SecretValue::zeroed(crate::secret::MAX_VALUE_LEN).unwrap();
        let json = to_json(&to_base64(&value).as_str(), 0);
        assert_eq!(serde_json::from_slice::<SecretBase64>(&json).unwrap().0.unwrap(), value);
    }

    proptest! {
        #[test]
        fn no_reply_is_too_strange(text in "[\\[\\]{}\":,a-z0-9\\\\]{0,60}", deep in 0usize..100_000) {
            let body = body(&text);
            let _ = (body.data::<Entry<'_>>().is_some(), body.data::<Metadata>(), body.words(&[]));
            let body = self::body(&"[".repeat(deep));
            prop_assert!(body.data::<Entry<'_>>().is_none());
        }

        #[test]
        fn any_bytes_come_back_from_base64(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let value = SecretValue::copy_of(&bytes).unwrap();
            let json = to_json(&to_base64(&value).as_str(), 0);
            let back: SecretBase64 = serde_json::from_slice(&json).unwrap();
            prop_assert_eq!(back.0.unwrap(), value);
        }
    }
}
