//! What is done with one connection: one operation on a store, within its deadline.

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::keystore::{Failure, Health, KeystoreError};
use crate::secret::SecretValue;

use super::address::Address;
use super::connection::{Connection, Deadline, Trouble};
use super::message::{self, Answer, Attribute, Object, ObjectType, Refusal, Request, Version};
use super::tls;
use super::ttlv;

/// How many objects are described by one message.
const DESCRIBED_AT_ONCE: usize = 100;

/// Result reasons (KMIP 2.0 section 11.44) that mean something here.
mod reason {
    pub const ITEM_NOT_FOUND: u32 = 0x01;
    pub const AUTHENTICATION_NOT_SUCCESSFUL: u32 = 0x03;
    pub const INVALID_FIELD: u32 = 0x07;
    pub const PERMISSION_DENIED: u32 = 0x0c;
    pub const OBJECT_DESTROYED: u32 = 0x36;
    pub const OBJECT_NOT_FOUND: u32 = 0x37;
    pub const NOT_AUTHORISED: u32 = 0x39;
}

/// A server, and the version that was found to be spoken with it.
pub(super) struct Server {
    pub address: Address,
    /// `$CREDENTIALS_DIRECTORY`.
    credentials: Option<std::path::PathBuf>,
    timeout: Duration,
    version: OnceLock<Version>,
}

impl Server {
    pub(super) fn new(address: Address, credentials: Option<&Path>, timeout: Duration) -> Self {
        let version = address.version.map(OnceLock::from).unwrap_or_default();
        Self { address, credentials: credentials.map(Path::to_owned), timeout, version }
    }

    /// Connects, for something that has to do with an object, as the server names it.
    pub(super) fn session<'a>(&'a self, object: Option<&'a str>) -> Result<Session<'a>, KeystoreError> {
        let deadline = Deadline::after(self.timeout);
        let tls = tls::config(&self.address, self.credentials.as_deref())?;
        let connection = Connection::open(&self.address, tls, deadline)
            .map_err(|trouble| error(&self.address.uri, object, trouble))?;
        let mut session = Session { server: self, object, connection };
        if self.version.get().is_none() {
            let version = session.newest_version()?;
            // Two may find it at the same time.
            let _ = self.version.set(version);
        }
        Ok(session)
    }
}

/// A connection to a server.
pub(super) struct Session<'a> {
    server: &'a Server,
    object: Option<&'a str>,
    connection: Connection,
}

/// A reply, and what it answers.
struct Reply<'r> {
    bytes: Zeroizing<Vec<u8>>,
    requests: &'r [Request<'r>],
}

impl Session<'_> {
    /// The error that a failure is, in words of the object that was asked for.
    pub(super) fn error(&self, trouble: impl Into<Trouble>) -> KeystoreError {
        error(&self.server.address.uri, self.object, trouble.into())
    }

    fn version(&self) -> Version {
        self.server.version.get().copied().unwrap_or(Version::FIRST)
    }

    fn wrong(&self, why: impl std::fmt::Display) -> KeystoreError {
        self.error(Failure::BadAnswer(why.to_string()))
    }

    fn ask<'r>(&mut self, version: Version, requests: &'r [Request<'r>]) -> Result<Reply<'r>, KeystoreError> {
        let bytes = self
            .connection
            .exchange(&message::encode(version, requests))
            .map_err(|trouble| self.error(trouble))?;
        Ok(Reply { bytes, requests })
    }

    /// What each answer of a reply says.
    fn read<T>(
        &self,
        reply: &Reply<'_>,
        each: impl FnMut(Answer<'_, '_>) -> Result<T, KeystoreError>,
    ) -> Result<Vec<T>, KeystoreError> {
        let item = ttlv::decode(&reply.bytes).map_err(|e| self.wrong(e))?;
        let answers = message::answers(&item, reply.requests).map_err(|e| self.wrong(e))?;
        answers.into_iter().map(each).collect()
    }

    /// Asks for several things in one message. The first refusal that is not taken for an answer is the error.
    fn call<T>(
        &mut self,
        requests: &[Request<'_>],
        mut each: impl FnMut(Answer<'_, '_>) -> Result<T, Refusal>,
    ) -> Result<Vec<T>, KeystoreError> {
        let reply = self.ask(self.version(), requests)?;
        self.read(&reply, |answer| each(answer).map_err(|refusal| self.refused(refusal)))
    }

    fn refused(&self, refusal: Refusal) -> KeystoreError {
        let failure = match refusal.reason {
            reason::AUTHENTICATION_NOT_SUCCESSFUL => {
                Failure::NotAuthenticated("the client certificate".to_owned())
            }
            reason::PERMISSION_DENIED | reason::NOT_AUTHORISED => Failure::Denied,
            other if refusal.message.is_empty() => Failure::Other(format!("it gives the reason {other:#x}")),
            _ => return self.error(Failure::Other(refusal.message)),
        };
        let cause = (!refusal.message.is_empty()).then(|| refusal.message.into());
        self.error(Trouble { failure, cause })
    }

    /// The newest version that both speak. A server that knows only newer ones than the first is asked in the newest.
    fn newest_version(&mut self) -> Result<Version, KeystoreError> {
        let request = [Request::DiscoverVersions];
        let mut refused = None;
        for asked_in in [Version::FIRST, Version::TWO] {
            let reply = self.ask(asked_in, &request)?;
            let versions = self.read(&reply, |answer| Ok(answer.map(message::versions)))?;
            match versions.into_iter().next() {
                Some(Ok(theirs)) => {
                    return Version::SPOKEN.iter().copied().find(|ours| theirs.contains(ours)).ok_or_else(
                        || {
                            self.error(Failure::Other(format!(
                                "it speaks KMIP {}, vmward {}",
                                Version::list(&theirs),
                                Version::list(Version::SPOKEN)
                            )))
                        },
                    );
                }
                Some(Err(refusal)) if refusal.reason == reason::AUTHENTICATION_NOT_SUCCESSFUL => {
                    return Err(self.refused(refusal));
                }
                other => refused = other.and_then(Result::err).or(refused),
            }
        }
        Err(match refused {
            Some(refusal) => self.refused(refusal),
            None => self.wrong("it does not say which versions it speaks"),
        })
    }

    /// The objects that have any of some attributes, and are not destroyed; each once.
    pub(super) fn find(&mut self, any: &[Attribute<'_>]) -> Result<Vec<Object>, KeystoreError> {
        let requests: Vec<_> = any.chunks(1).map(Request::Locate).collect();
        let found = self.call(&requests, |answer| {
            let ids = unless_missing(answer)?.map(|payload| message::identifiers(payload).map(str::to_owned));
            Ok(ids.into_iter().flatten().collect::<Vec<_>>())
        })?;
        let mut ids = found.concat();
        ids.sort_unstable();
        ids.dedup();
        self.describe(&ids)
    }

    /// What is known of objects. Those that are no more, by now, are left out.
    pub(super) fn describe(&mut self, ids: &[String]) -> Result<Vec<Object>, KeystoreError> {
        let mut objects = Vec::with_capacity(ids.len());
        for some in ids.chunks(DESCRIBED_AT_ONCE) {
            let requests: Vec<_> = some.iter().map(|id| Request::GetAttributes(id)).collect();
            let mut ids = some.iter();
            let described = self.call(&requests, |answer| {
                let id = ids.next().cloned().unwrap_or_default();
                Ok(unless_missing(answer)?.map(|payload| Object::of(id, payload)))
            })?;
            objects.extend(described.into_iter().flatten().filter(|object| !object.is_destroyed()));
        }
        Ok(objects)
    }

    /// The value of an object; `None` if it is no more.
    pub(super) fn value(&mut self, id: &str) -> Result<Option<SecretValue>, KeystoreError> {
        let request = [Request::Get(id)];
        let reply = self.ask(self.version(), &request)?;
        let values = self.read(&reply, |answer| match answer {
            Ok(payload) => {
                let material = message::key_material(payload).map_err(|why| self.wrong(why))?;
                SecretValue::copy_of(material).map(Some).map_err(|e| self.wrong(e))
            }
            Err(refusal) if is_missing(&refusal) => Ok(None),
            Err(refusal) => Err(self.refused(refusal)),
        })?;
        Ok(values.into_iter().flatten().next())
    }

    /// Makes an object: with a value, or one that only holds the place of one.
    ///
    /// Some servers take several instances of an attribute in 1.x but not in 2.0, where they have no index (PyKMIP 0.11).
    /// What is refused in 2.0 is therefore tried in the last 1.x, unless the URI insists on 2.0.
    pub(super) fn register(
        &mut self,
        attributes: &[Attribute<'_>],
        value: Option<&SecretValue>,
    ) -> Result<String, KeystoreError> {
        let request = [Request::Register(attributes, value)];
        let version = self.version();
        let older =
            (version >= Version::TWO && self.server.address.version.is_none()).then_some(Version::LAST_ONE);
        let mut refused = None;
        for version in [Some(version), older].into_iter().flatten() {
            let reply = self.ask(version, &request)?;
            let ids = self.read(&reply, |answer| {
                Ok(answer.map(|payload| message::identifiers(payload).next().map(str::to_owned)))
            })?;
            match ids.into_iter().next() {
                Some(Ok(Some(id))) => return Ok(id),
                Some(Err(refusal)) if refusal.reason == reason::INVALID_FIELD => {
                    _ = refused.get_or_insert(refusal)
                }
                Some(Err(refusal)) => return Err(self.refused(refusal)),
                _ => return Err(self.wrong("it does not name the object that it made")),
            }
        }
        Err(match refused {
            Some(refusal) => self.refused(refusal),
            None => self.wrong("it does not answer"),
        })
    }

    /// Changes one instance of an attribute of an object.
    pub(super) fn modify(
        &mut self,
        id: &str,
        old: Attribute<'_>,
        index: i32,
        new: Attribute<'_>,
    ) -> Result<(), KeystoreError> {
        self.call(&[Request::ModifyAttribute(id, old, index, new)], |answer| answer.map(drop)).map(drop)
    }

    /// Gives an object other names. They are for other programs, so that a server that does not do it may keep the old
    /// ones.
    pub(super) fn rename(&mut self, id: &str, old: &[String], new: &[String]) -> Result<(), KeystoreError> {
        let requests: Vec<_> = (0i32..)
            .zip(old.iter().zip(new))
            .map(|(n, (old, new))| {
                Request::ModifyAttribute(id, Attribute::Name(old), n, Attribute::Name(new))
            })
            .collect();
        self.call(&requests, |_| Ok(())).map(drop)
    }

    /// Destroys objects. Those that are in use are revoked first, as the standard wants it.
    pub(super) fn destroy(&mut self, objects: &[Object]) -> Result<(), KeystoreError> {
        let active: Vec<_> = objects
            .iter()
            .filter(|object| object.is_active())
            .map(|object| Request::Revoke(&object.id))
            .collect();
        if !active.is_empty() {
            self.call(&active, |answer| answer.map(drop))?;
        }
        let all: Vec<_> = objects.iter().map(|object| Request::Destroy(&object.id)).collect();
        self.call(&all, |answer| unless_missing(answer.map(drop))).map(drop)
    }

    /// What is to be said of the certificates.
    pub(super) fn health(&self) -> Result<Vec<Health>, KeystoreError> {
        let server = self.connection.server_certificate().unwrap_or_default();
        Ok(vec![tls::client_expiry(&self.server.address)?, tls::expiry("server", server)])
    }
}

fn error(store: &str, object: Option<&str>, trouble: Trouble) -> KeystoreError {
    let error = trouble.failure.of(store, object);
    match trouble.cause {
        Some(cause) => error.because(cause),
        None => error,
    }
}

/// Whether there is no such object, or none any more.
fn is_missing(refusal: &Refusal) -> bool {
    matches!(refusal.reason, reason::ITEM_NOT_FOUND | reason::OBJECT_NOT_FOUND | reason::OBJECT_DESTROYED)
}

/// An answer, with `None` for an object that is not there.
fn unless_missing<T>(answer: Result<T, Refusal>) -> Result<Option<T>, Refusal> {
    match answer {
        Err(refusal) if is_missing(&refusal) => Ok(None),
        answer => answer.map(Some),
    }
}

/// Whether an object has, or may have, a value.
pub(super) fn has_value(object: &Object) -> bool {
    matches!(object.kind, ObjectType::SecretData | ObjectType::SymmetricKey)
}
