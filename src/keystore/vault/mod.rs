//! `vault+https://host/mount/path`: a key-value engine (version 2) of HashiCorp Vault or OpenBao.
//!
//! A secret is the entry `UUID`: its fields are the value, its custom metadata the definition, so that who may not read
//! values can still list and delete. `by-usage/KIND/HASH` names the UUID that has a usage. Such an entry is claimed, by
//! check-and-set, before the definition is written, and given up before it is removed: what is left in between names
//! a secret that is not there, or lacks, and neither finds a wrong one.

mod definition;
mod health;
mod object;
mod reply;
mod session;
mod tls;
mod uri;
mod value;

pub use object::VaultObject;
pub use reply::read_reply;

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use ureq::http::Method;
use uuid::Uuid;

use crate::secret::{
    DefinitionError, SecretDefinition, SecretLookup, SecretValue, Usage, UsageKind, ValueError,
};
use crate::xml::Keyword;

use super::kinds::Opened;
use super::{Failure, Health, Keystore, KeystoreError, Listing, StoreOptions};
use definition::Notes;
use reply::{Body, Entry, Metadata, to_json};
use session::{Answer, Question, Server, Session};
use uri::VaultUri;
use value::{Place, write_body};

/// How often something is tried when others write the same entry.
const TRIES: usize = 3;

fn no_auth() -> String {
    "it has to say who asks, with ?token-file=/path, or ?role-id-file=/path&secret-id-file=/path; \
     no token is taken from the environment, which other programs see"
        .to_owned()
}

/// A folder of a key-value engine.
pub struct VaultStore {
    server: Server,
}

impl VaultStore {
    /// `vault+https://host/mount/path`.
    pub(super) fn from_uri(uri: &str, options: &StoreOptions) -> Opened<dyn Keystore> {
        let uri = VaultUri::parse(uri, options)?;
        if uri.field.is_some() || uri.options.base64 {
            return Err("a #field or ?encoding= belongs to one value, not to a keystore".to_owned());
        }
        if uri.options.auth.is_none() {
            return Err(no_auth());
        }
        Ok(Box::new(Self { server: Server::new(uri, options.timeout) }))
    }

    /// The path of an entry of this store, as one of the engine's own functions takes it.
    fn path(&self, api: &str, entry: &str) -> String {
        let uri = &self.server.uri;
        let parts = [&uri.mount, api, &uri.path, entry];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
    }

    fn uuid_uri(&self, uuid: Uuid) -> String {
        format!("{}/{uuid}", self.server.uri.shown)
    }
}

/// The entry that says which secret has a usage. Ids have slashes and any length: their hash has neither.
fn usage_entry(usage: &Usage) -> String {
    let mut name = format!("by-usage/{}/", usage.kind.as_str());
    for byte in Sha256::digest(usage.id.as_bytes()) {
        // Writing to a string does not fail.
        let _ = write!(name, "{byte:02x}");
    }
    name
}

/// Which secret has a usage, by the entry of that usage.
struct Claim {
    uuid: Option<Uuid>,
    /// Whose it was before, if somebody took it for one that was left behind. That one may have come to be meanwhile.
    before: Option<Uuid>,
    /// The version of the entry, for check-and-set.
    version: u64,
}

/// An operation of the store.
struct Operation<'a> {
    store: &'a VaultStore,
    session: Session<'a>,
}

impl<'a> Operation<'a> {
    fn begin(store: &'a VaultStore) -> Result<Self, KeystoreError> {
        Ok(Self { store, session: store.server.session()? })
    }

    fn metadata(&self, entry: &str) -> Result<Option<Metadata>, KeystoreError> {
        match self.session.ask(&Question::get(&self.store.path("metadata", entry)).about(entry))? {
            Answer::Done(body) => {
                let metadata = body.data::<Metadata>();
                metadata
                    .map(Some)
                    .ok_or_else(|| self.session.senseless(Some(entry), "it is no metadata of KV version 2"))
            }
            _ => {
                self.session.check_engine()?;
                Ok(None)
            }
        }
    }

    /// The metadata of a secret of vmward.
    fn secret(&self, uuid: Uuid) -> Result<Option<Metadata>, KeystoreError> {
        let metadata = self.metadata(&uuid.to_string())?;
        Ok(metadata.filter(|m| m.custom_metadata.as_ref().is_some_and(definition::is_marked)))
    }

    fn definition(&self, uuid: Uuid) -> Result<Option<SecretDefinition>, KeystoreError> {
        let Some(metadata) = self.secret(uuid)? else { return Ok(None) };
        self.store.definition(uuid, &metadata.custom_metadata.unwrap_or_default()).map(Some)
    }

    fn claim(&self, usage: &Usage) -> Result<Claim, KeystoreError> {
        let entry = usage_entry(usage);
        let answer = self.session.ask(&Question::get(&self.store.path("data", &entry)).about(&entry))?;
        let (body, there) = match &answer {
            Answer::Done(body) => (body, true),
            Answer::Absent(body) => (body, false),
            Answer::Conflict => return Err(self.session.busy(&entry)),
        };
        let Some(found) = body.data::<Entry<'_>>() else {
            if there {
                return Err(self.session.senseless(Some(&entry), "it is no entry of KV version 2"));
            }
            self.session.check_engine()?;
            return Ok(Claim { uuid: None, before: None, version: 0 });
        };
        let named = |field| {
            let raw = found.data.as_ref().and_then(|fields| fields.get(field))?;
            serde_json::from_str(raw.get()).ok()
        };
        Ok(Claim { uuid: named("uuid"), before: named("before"), version: found.metadata.version })
    }

    /// The secret that has a usage.
    fn by_usage(&self, usage: &Usage) -> Result<Option<SecretDefinition>, KeystoreError> {
        let claim = self.claim(usage)?;
        // A claim whose secret is not there was left by somebody who was interrupted.
        for uuid in [claim.uuid, claim.before].into_iter().flatten() {
            if let Some(definition) = self.definition(uuid)?.filter(|d| d.usage.as_ref() == Some(usage)) {
                return Ok(Some(definition));
            }
        }
        Ok(None)
    }

    /// Makes the entry of a usage say this secret, if it is the one that may have it.
    fn take_usage(&self, usage: &Usage, uuid: Uuid) -> Result<(), KeystoreError> {
        #[derive(Serialize)]
        struct Fields<'a> {
            uuid: Uuid,
            usage: &'a str,
            id: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            before: Option<Uuid>,
        }
        let entry = usage_entry(usage);
        let write = |uuid, before, version| {
            let fields = to_json(&Fields { uuid, usage: usage.kind.as_str(), id: &usage.id, before }, 0);
            let body = write_body(&fields, Some(version));
            let question =
                Question::new(Method::POST, &self.store.path("data", &entry)).with(&body).about(&entry);
            match self.session.ask(&question)? {
                Answer::Done(body) => self.session.check_written(&body, &entry).map(|()| true),
                _ => Ok(false),
            }
        };
        for _ in 0..TRIES {
            let claim = self.claim(usage)?;
            let other = claim.uuid.filter(|other| *other != uuid);
            match (other, claim.before) {
                (None, _) if claim.uuid.is_some() => return Ok(()),
                (None, _) => {}
                (Some(other), before) => {
                    self.refuse_taken(usage, other)?;
                    before.map_or(Ok(()), |before| self.refuse_taken(usage, before))?;
                }
            }
            if !write(uuid, other, claim.version)? {
                continue;
            }
            // It may have come to be in between. It is named again then: of those who come now not all look further back.
            let Some(other) = other else { return Ok(()) };
            let taken = self.refuse_taken(usage, other);
            if taken.is_err() {
                write(other, None, claim.version + 1)?;
            }
            return taken;
        }
        Err(self.session.busy(&entry))
    }

    fn refuse_taken(&self, usage: &Usage, other: Uuid) -> Result<(), KeystoreError> {
        match self.definition(other)?.filter(|d| d.usage.as_ref() == Some(usage)) {
            Some(_) => Err(KeystoreError::Definition(DefinitionError::UsageTaken(other))),
            None => Ok(()),
        }
    }

    /// Removes an entry with all its versions.
    fn remove(&self, entry: &str) -> Result<(), KeystoreError> {
        let path = self.store.path("metadata", entry);
        self.session.ask(&Question::new(Method::DELETE, &path).about(entry)).map(drop)
    }
}

impl VaultStore {
    fn definition(&self, uuid: Uuid, notes: &Notes) -> Result<SecretDefinition, KeystoreError> {
        definition::from_notes(uuid, notes)
            .map_err(|why| KeystoreError::Damaged { path: self.uuid_uri(uuid).into(), why })
    }
}

impl Session<'_> {
    /// What was written must be an entry of version 2, which has a version.
    fn check_written(&self, body: &Body, object: &str) -> Result<(), KeystoreError> {
        match body.data::<reply::Version>() {
            Some(_) => Ok(()),
            None => {
                Err(self
                    .senseless(Some(object), "the engine there is not KV version 2, which keeps versions"))
            }
        }
    }

    fn busy(&self, object: &str) -> KeystoreError {
        self.failed(Failure::NotReady("others write the same entry".to_owned()), Some(object))
    }

    fn unusable(&self, object: &str, source: ValueError) -> KeystoreError {
        match Uuid::try_parse(object) {
            Ok(uuid) => KeystoreError::Value { uuid, source },
            Err(_) => self
                .failed(Failure::BadAnswer("the value cannot be used".to_owned()), Some(object))
                .because(source),
        }
    }
}

impl Keystore for VaultStore {
    fn uri(&self) -> &str {
        &self.server.uri.shown
    }

    fn find(
        &self,
        lookup: &SecretLookup,
        kind: Option<UsageKind>,
    ) -> Result<Option<SecretDefinition>, KeystoreError> {
        let operation = Operation::begin(self)?;
        let id = match lookup {
            SecretLookup::Uuid(uuid) => return operation.definition(*uuid),
            SecretLookup::Usage(id) => id,
        };
        let mut found = Vec::new();
        for (_, each) in UsageKind::WORDS.iter().filter(|(_, each)| kind.is_none_or(|kind| kind == *each)) {
            found.extend(operation.by_usage(&Usage { kind: *each, id: id.clone() })?);
        }
        if found.len() > 1 {
            let uuids = found.iter().map(|d| d.uuid).collect();
            return Err(KeystoreError::Ambiguous { lookup: lookup.clone(), uuids });
        }
        Ok(found.pop())
    }

    fn value(&self, secret: &SecretDefinition) -> Result<Option<SecretValue>, KeystoreError> {
        let operation = Operation::begin(self)?;
        let (session, entry) = (&operation.session, secret.uuid.to_string());
        let Answer::Done(body) = session.ask(&Question::get(&self.path("data", &entry)).about(&entry))?
        else {
            return Ok(None);
        };
        let found: Entry<'_> =
            body.data().ok_or_else(|| session.senseless(Some(&entry), "it is no entry of KV version 2"))?;
        let place = Place { session, uri: &self.server.uri, object: &entry, bound_to: Some(&entry) };
        place.of_secret(&found)
    }

    fn has_value(&self, secret: &SecretDefinition) -> Result<bool, KeystoreError> {
        let metadata = Operation::begin(self)?.metadata(&secret.uuid.to_string())?;
        Ok(metadata.is_some_and(|m| m.has_content()))
    }

    fn list(&self) -> Result<Listing, KeystoreError> {
        #[derive(Deserialize)]
        struct Keys {
            keys: Vec<String>,
            /// What OpenBao says of each when it is asked for details.
            #[serde(default)]
            key_info: Option<BTreeMap<String, Metadata>>,
        }
        let operation = Operation::begin(self)?;
        let session = &operation.session;
        let keys = |api: &str| match session.ask(&Question::list(&self.path(api, "")))? {
            Answer::Done(body) => {
                let keys = body.data::<Keys>();
                keys.map(Some).ok_or_else(|| session.senseless(None, "there is no list in it"))
            }
            _ => Ok(None),
        };
        // HashiCorp's server knows no details, and a policy may not allow them: then each secret is asked for.
        let found = match keys("detailed-metadata") {
            Ok(Some(found)) if found.key_info.is_some() => Some(found),
            Err(e)
                if !matches!(
                    &e,
                    KeystoreError::Failed { failure: Failure::Denied | Failure::Missing(_), .. }
                ) =>
            {
                return Err(e);
            }
            _ => keys("metadata")?,
        };
        let mut listing = Listing::default();
        let Some(found) = found else {
            session.check_engine()?;
            return Ok(listing);
        };
        let mut details = found.key_info;
        let in_own_form = |key: &String| Uuid::try_parse(key).ok().filter(|uuid| uuid.to_string() == *key);
        let mut uuids: Vec<_> = found.keys.iter().filter_map(in_own_form).collect();
        uuids.sort_unstable();
        for uuid in uuids {
            let notes = match &mut details {
                Some(details) => details.remove(&uuid.to_string()).and_then(|m| m.custom_metadata),
                None => operation.metadata(&uuid.to_string())?.and_then(|m| m.custom_metadata),
            };
            match notes.filter(definition::is_marked).map(|notes| self.definition(uuid, &notes)) {
                Some(Ok(definition)) => listing.definitions.push(definition),
                Some(Err(e)) => listing.broken.push(e),
                None => {}
            }
        }
        Ok(listing)
    }

    fn define(&self, definition: &SecretDefinition) -> Result<(), KeystoreError> {
        #[derive(Serialize)]
        struct NewMetadata<'a> {
            custom_metadata: &'a Notes,
        }
        let unsupported = |what| KeystoreError::Unsupported { store: self.uri().to_owned(), what };
        if definition.ephemeral {
            return Err(unsupported("keep an ephemeral secret, whose value must not be on a disk"));
        }
        let operation = Operation::begin(self)?;
        let uuid = definition.uuid;
        let entry = uuid.to_string();
        let notes = operation.metadata(&entry)?.and_then(|m| m.custom_metadata).unwrap_or_default();
        if definition::is_marked(&notes) {
            let old = self.definition(uuid, &notes)?;
            definition.check_against([&old]).map_err(KeystoreError::Definition)?;
        }
        let new = definition::to_notes(definition, &notes)
            .ok_or_else(|| unsupported("keep a usage, description or place of that length"))?;
        if let Some(usage) = &definition.usage {
            operation.take_usage(usage, uuid)?;
        }
        let json = to_json(&NewMetadata { custom_metadata: &new }, 0);
        let path = self.path("metadata", &entry);
        operation.session.ask(&Question::new(Method::POST, &path).with(&json).about(&entry))?;
        if let Some(usage) = &definition.usage {
            // Somebody who took the claim for one that was left behind has the usage now.
            if let Some(other) = operation.claim(usage)?.uuid.filter(|other| *other != uuid) {
                operation.remove(&entry)?;
                return Err(KeystoreError::Definition(DefinitionError::UsageTaken(other)));
            }
        }
        Ok(())
    }

    fn set_value(&self, secret: &SecretDefinition, value: &SecretValue) -> Result<(), KeystoreError> {
        let uuid = secret.uuid;
        let entry = uuid.to_string();
        let operation = Operation::begin(self)?;
        let session = &operation.session;
        let not_defined = || KeystoreError::NotDefined { lookup: SecretLookup::Uuid(uuid), kind: None };
        let mut metadata = operation.secret(uuid)?.ok_or_else(not_defined)?;
        let place = Place { session, uri: &self.server.uri, object: &entry, bound_to: Some(&entry) };
        let fields = place.to_secret(value)?;
        for _ in 0..TRIES {
            let body = write_body(&fields, Some(metadata.current_version));
            let path = self.path("data", &entry);
            let question = Question::new(Method::POST, &path).with(&body).about(&entry).hiding(value);
            if let Answer::Done(body) = session.ask(&question)? {
                return session.check_written(&body, &entry);
            }
            // One that was undefined in between must not come back as a value alone.
            metadata = operation.secret(uuid)?.ok_or_else(not_defined)?;
        }
        Err(session.busy(&entry))
    }

    fn undefine(&self, secret: &SecretDefinition) -> Result<(), KeystoreError> {
        let uuid = secret.uuid;
        let operation = Operation::begin(self)?;
        if operation.secret(uuid)?.is_none() {
            return Err(KeystoreError::NotDefined { lookup: SecretLookup::Uuid(uuid), kind: None });
        }
        // As long as the definition is there nobody else can claim the usage.
        if let Some(usage) = &secret.usage
            && operation.claim(usage)?.uuid == Some(uuid)
        {
            operation.remove(&usage_entry(usage))?;
        }
        operation.remove(&uuid.to_string())
    }

    fn health(&self) -> Result<Vec<Health>, KeystoreError> {
        health::of(&self.server)
    }
}
