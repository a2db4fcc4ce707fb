//! `vault+https://host/mount/path#field`: one field of an entry that somebody else keeps.

use ureq::http::Method;

use crate::keystore::kinds::{Opened, StoreOptions};
use crate::keystore::{KeystoreError, ValueObject};
use crate::secret::SecretValue;

use super::no_auth;
use super::reply::Entry;
use super::session::{Answer, Question, Server, Session};
use super::uri::VaultUri;
use super::value::{Place, write_body};

/// How often a write is tried when others write the same entry.
const TRIES: usize = 3;

/// A field of an entry.
pub struct VaultObject {
    server: Server,
    field: String,
}

impl VaultObject {
    /// `vault+https://host/mount/path#field`.
    pub(in crate::keystore) fn from_uri(uri: &str, options: &StoreOptions) -> Opened<dyn ValueObject> {
        let uri = VaultUri::parse(uri, options)?.with_auth_of_configured(options);
        let field =
            uri.field.clone().ok_or("a value needs a field, as in vault+https://host/mount/path#field")?;
        if uri.path.is_empty() {
            return Err(
                "a value needs a path in the mount, as in vault+https://host/mount/path#field".to_owned()
            );
        }
        if uri.options.auth.is_none() {
            return Err(format!("{}; or a keystore of that server has to be configured", no_auth()));
        }
        Ok(Box::new(Self { server: Server::new(uri, options.timeout), field }))
    }

    fn path(&self, api: &str) -> String {
        let uri = &self.server.uri;
        format!("{}/{api}/{}", uri.mount, uri.path)
    }

    fn place<'a>(&'a self, session: &'a Session<'_>) -> Place<'a> {
        Place { session, uri: &self.server.uri, object: &self.server.uri.path, bound_to: None }
    }
}

impl ValueObject for VaultObject {
    fn uri(&self) -> &str {
        &self.server.uri.shown
    }

    fn value(&self) -> Result<Option<SecretValue>, KeystoreError> {
        let session = self.server.session()?;
        let object = &self.server.uri.path;
        match session.ask(&Question::get(&self.path("data")).about(object))? {
            Answer::Done(body) => {
                let entry: Entry<'_> = body
                    .data()
                    .ok_or_else(|| session.senseless(Some(object), "it is no entry of KV version 2"))?;
                self.place(&session).of_field(&entry, &self.field)
            }
            _ => {
                session.check_engine()?;
                Ok(None)
            }
        }
    }

    fn exists(&self) -> Result<bool, KeystoreError> {
        #[derive(serde::Deserialize)]
        struct Keys {
            #[serde(default)]
            subkeys: Option<serde_json::Map<String, serde_json::Value>>,
        }
        let session = self.server.session()?;
        let object = &self.server.uri.path;
        // The names of the fields, without what is in them.
        match session.ask(&Question::get(&self.path("subkeys")).about(object))? {
            Answer::Done(body) => {
                let keys: Keys = body
                    .data()
                    .ok_or_else(|| session.senseless(Some(object), "there are no names of fields in it"))?;
                Ok(keys.subkeys.is_some_and(|keys| keys.contains_key(&self.field)))
            }
            _ => {
                session.check_engine()?;
                Ok(false)
            }
        }
    }

    fn set_value(&self, value: &SecretValue) -> Result<(), KeystoreError> {
        let session = self.server.session()?;
        let object = self.server.uri.path.as_str();
        let fields = self.place(&session).to_field(value, &self.field)?;
        let path = self.path("data");
        for _ in 0..TRIES {
            // The other fields are not vmward's, and stay: the server puts this one among them.
            let patch = write_body(&fields, None);
            let question = Question::new(Method::PATCH, &path).with(&patch).about(object).hiding(value);
            let version = match session.ask(&question)? {
                Answer::Done(body) => return session.check_written(&body, object),
                Answer::Absent(body) => body.data::<Entry<'_>>().map_or(0, |entry| entry.metadata.version),
                Answer::Conflict => continue,
            };
            session.check_engine()?;
            let new = write_body(&fields, Some(version));
            let question = Question::new(Method::POST, &path).with(&new).about(object).hiding(value);
            if let Answer::Done(body) = session.ask(&question)? {
                return session.check_written(&body, object);
            }
        }
        Err(session.busy(object))
    }
}
