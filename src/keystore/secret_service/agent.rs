//! The agent: reached over the user's bus within the deadline, unlocked if need be, and what its refusals mean.

use std::cell::Cell;
use std::collections::HashMap;
use std::env;
use std::io;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::thread;
use std::time::Instant;

use nix::unistd::geteuid;
use secret_service::{Collection, EncryptionType, Error, Item, SecretService};
use tokio::runtime::Builder;
use tokio::time::timeout;
use zbus::{DBusError, connection, fdo};
use zeroize::Zeroizing;

use crate::keystore::{Failure, KeystoreError};
use crate::secret::SecretValue;

use super::{Place, socket};

/// A keyring that is locked, for `Failure::Locked`.
const LOCKED: Failure = Failure::Locked("locked");

/// An agent, spoken to.
pub(super) struct Agent<'a> {
    place: &'a Place,
    service: &'a SecretService<'a>,
    /// Whether somebody is being asked for the keyring's password.
    prompting: &'a Cell<bool>,
}

impl Place {
    /// Asks the agent for something. The deadline is for all of it: bus, agent, prompt, answer.
    pub(super) fn ask<R: Send>(
        &self,
        work: impl AsyncFnOnce(Agent<'_>) -> Result<R, KeystoreError> + Send,
    ) -> Result<R, KeystoreError> {
        // On a thread of its own: the calling one may be driving a runtime already.
        let answer = thread::scope(|scope| scope.spawn(|| self.converse(work)).join());
        answer.unwrap_or_else(|panic| resume_unwind(panic))
    }

    fn converse<R>(
        &self,
        work: impl AsyncFnOnce(Agent<'_>) -> Result<R, KeystoreError>,
    ) -> Result<R, KeystoreError> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| self.failed(Failure::Other("there is no runtime for it".to_owned())).because(e))?;
        let prompting = Cell::new(false);
        let deadline = Instant::now() + self.timeout;
        let conversation = async {
            let service = self.connect(deadline).await?;
            work(Agent { place: self, service: &service, prompting: &prompting }).await
        };
        let answer = runtime.block_on(async { timeout(self.timeout, conversation).await });
        // What still waits for the agent is left alone.
        runtime.shutdown_background();
        answer.unwrap_or_else(|_| {
            Err(match prompting.get() {
                true => self.failed(LOCKED).because("nobody has answered its prompt in time"),
                false => self.failed(Failure::TimedOut(self.timeout)),
            })
        })
    }

    async fn connect(&self, deadline: Instant) -> Result<SecretService<'static>, KeystoreError> {
        let unreachable = |cause: String| self.failed(Failure::Unreachable).because(cause);
        let address = bus_address().ok_or_else(|| unreachable(no_bus()))?;
        let connected = async {
            let socket = socket::connect(&address, deadline).await?;
            connection::Builder::socket(socket).build().await
        };
        let bus = connected.await.map_err(|e| match is_timeout(&e) {
            true => self.failed(Failure::TimedOut(self.timeout)),
            false => unreachable(format!("the session bus at {address}: {e}")),
        })?;
        SecretService::connect_with_existing(EncryptionType::Dh, bus).await.map_err(|e| self.error(e))
    }

    /// What an agent's or the bus's refusal means.
    fn error(&self, error: Error) -> KeystoreError {
        let cause = error.to_string();
        let error = match error {
            Error::Locked => return self.failed(LOCKED),
            Error::Prompt | Error::PromptDisconnected => {
                return self.failed(LOCKED).because("it could not ask for its password, or nobody gave it");
            }
            Error::Zbus(e) => e,
            Error::ZbusFdo(e) => zbus::Error::FDO(Box::new(e)),
            _ => return self.failed(Failure::BadAnswer(cause)),
        };
        let name = error_name(&error);
        let failure = match name.rsplit('.').next().unwrap_or_default() {
            "IsLocked" => LOCKED,
            "ServiceUnknown" | "NameHasNoOwner" => {
                return self.failed(Failure::Unreachable).because("no agent is on the session bus");
            }
            _ if name.contains(".Spawn.") => Failure::Unreachable,
            "NoReply" | "Timeout" | "TimedOut" | "Disconnected" => {
                Failure::NotReady("the agent went away".to_owned())
            }
            "AccessDenied" | "AuthFailed" => Failure::Denied,
            "NoSuchObject" | "UnknownObject" => {
                Failure::NotReady("what was there is not there any more".to_owned())
            }
            _ => Failure::Other("the agent gave up".to_owned()),
        };
        self.failed(failure).because(cause)
    }
}

fn is_timeout(error: &zbus::Error) -> bool {
    matches!(error, zbus::Error::InputOutput(e) if e.kind() == io::ErrorKind::TimedOut)
}

/// The name of a D-Bus error; empty for what is none.
fn error_name(error: &zbus::Error) -> String {
    match error {
        zbus::Error::MethodError(name, _, _) => name.to_string(),
        zbus::Error::FDO(e) => match e.as_ref() {
            fdo::Error::ZBus(inner) => error_name(inner),
            e => e.name().to_string(),
        },
        // The bus hung up.
        zbus::Error::InputOutput(_) => "Disconnected".to_owned(),
        _ => String::new(),
    }
}

/// Where this user's session bus is.
fn bus_address() -> Option<String> {
    if let Some(address) = env::var("DBUS_SESSION_BUS_ADDRESS").ok().filter(|a| !a.is_empty()) {
        return Some(address);
    }
    // Where systemd puts it: what was not started from the session (cron, sudo) is not told so.
    let dir = env::var_os("XDG_RUNTIME_DIR")
        .map_or_else(|| PathBuf::from(format!("/run/user/{}", geteuid())), PathBuf::from);
    let socket = dir.join("bus");
    socket.exists().then(|| format!("unix:path={}", socket.display()))
}

fn no_bus() -> String {
    let mut text =
        "there is no session bus: DBUS_SESSION_BUS_ADDRESS is not set, and there is no socket in XDG_RUNTIME_DIR"
            .to_owned();
    if geteuid().is_root() {
        text.push_str("; a keyring is one user's: run vmward as that user, or set DBUS_SESSION_BUS_ADDRESS to the user's bus");
    }
    text
}

impl<'a> Agent<'a> {
    /// A failure of this agent.
    pub(super) fn failed(&self, failure: Failure, object: &str) -> KeystoreError {
        failure.of(&self.place.uri, Some(object))
    }

    /// What a refusal of it means.
    pub(super) fn error(&self, error: Error) -> KeystoreError {
        self.place.error(error)
    }

    /// The collection of the URI, unlocked.
    pub(super) async fn collection(&self) -> Result<Collection<'a>, KeystoreError> {
        let collection = self.locate().await?;
        if collection.is_locked().await.map_err(|e| self.error(e))? {
            self.unlock(collection.unlock()).await?;
        }
        Ok(collection)
    }

    /// By its alias, or by the name that its path ends in, or by what people call it.
    async fn locate(&self) -> Result<Collection<'a>, KeystoreError> {
        let name = self.place.collection.as_deref();
        match self.service.get_collection_by_alias(name.unwrap_or("default")).await {
            Err(Error::NoResult) => {}
            found => return found.map_err(|e| self.error(e)),
        }
        let Some(name) = name else {
            return Err(self.place.failed(Failure::Missing("default collection".to_owned())));
        };
        for collection in self.service.get_all_collections().await.map_err(|e| self.error(e))? {
            if collection.collection_path.as_str().rsplit('/').next() == Some(name)
                || collection.get_label().await.is_ok_and(|label| label == name)
            {
                return Ok(collection);
            }
        }
        Err(self.place.failed(Failure::Missing(format!("collection '{name}'"))))
    }

    /// Unlocks something, for which the agent may ask whoever sits there for a password.
    async fn unlock(&self, unlocking: impl Future<Output = Result<(), Error>>) -> Result<(), KeystoreError> {
        self.prompting.set(true);
        unlocking.await.map_err(|e| self.error(e))?;
        self.prompting.set(false);
        Ok(())
    }

    /// The items with these attributes, unlocked. A locked collection may say nothing of what is in it: that is not
    /// the same as nothing being there, so it is unlocked first.
    pub(super) async fn search(
        &self,
        attributes: HashMap<&str, &str>,
    ) -> Result<Vec<Item<'a>>, KeystoreError> {
        if self.place.collection.is_none() {
            // Wherever `secret-tool lookup` would find them.
            let found = self.service.search_items(attributes.clone()).await.map_err(|e| self.error(e))?;
            for item in &found.locked {
                self.unlock(item.unlock()).await?;
            }
            let found: Vec<_> = found.unlocked.into_iter().chain(found.locked).collect();
            if !found.is_empty() {
                return Ok(found);
            }
        }
        // A collection's search would give items that borrow from it, so it is only unlocked here.
        let path = format!("{}/", self.collection().await?.collection_path);
        let found = self.service.search_items(attributes).await.map_err(|e| self.error(e))?;
        let in_all = self.place.collection.is_none();
        let all = found.unlocked.into_iter().chain(found.locked);
        Ok(all.filter(|item| in_all || item.item_path.starts_with(&path)).collect())
    }

    /// The one item among these, if there is one.
    pub(super) fn only<'i>(
        &self,
        found: &'i [Item<'a>],
        name: &str,
    ) -> Result<Option<&'i Item<'a>>, KeystoreError> {
        match found {
            [] => Ok(None),
            [only] => Ok(Some(only)),
            several => {
                let why = format!("it has {} such items, and cannot say which one is meant", several.len());
                Err(self.failed(Failure::BadAnswer(why), name))
            }
        }
    }

    /// An item's value.
    pub(super) async fn value(&self, item: &Item<'a>, name: &str) -> Result<SecretValue, KeystoreError> {
        let value = Zeroizing::new(item.get_secret().await.map_err(|e| self.error(e))?);
        SecretValue::copy_of(&value).map_err(|e| {
            self.failed(Failure::BadAnswer("its value cannot be taken".to_owned()), name).because(e)
        })
    }

    /// Sets an item's value.
    pub(super) async fn set_value(&self, item: &Item<'a>, value: &SecretValue) -> Result<(), KeystoreError> {
        item.set_secret(value.expose(), content_type(value.expose())).await.map_err(|e| self.error(e))
    }

    /// Makes an item.
    pub(super) async fn create(
        &self,
        label: &str,
        attributes: HashMap<&str, &str>,
        value: &[u8],
    ) -> Result<(), KeystoreError> {
        let collection = self.collection().await?;
        let created = collection.create_item(label, attributes, value, false, content_type(value)).await;
        created.map(drop).map_err(|e| self.error(e))
    }
}

/// What an agent's window shows as text it should be told to be text.
fn content_type(value: &[u8]) -> &'static str {
    match std::str::from_utf8(value) {
        Ok(_) => "text/plain",
        Err(_) => "application/octet-stream",
    }
}
