//! Events, known and unknown.

use std::sync::{Arc, OnceLock};

use serde_json::{Map, Value};
use tokio::sync::broadcast;

use super::QmpError;

/// Something that happened in QEMU.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its name: `SHUTDOWN`, `DEVICE_DELETED`, ...
    pub name: String,
    /// What QEMU says about it; empty if nothing.
    pub data: Map<String, Value>,
    /// When, in microseconds since 1970; `None` if QEMU could not tell.
    pub microseconds: Option<u64>,
}

impl Event {
    /// The event as a type of the `qapi` crate, if it is this one and the type takes it.
    pub fn get<E: qapi::Event>(&self) -> Option<E> {
        if self.name != E::NAME {
            return None;
        }
        serde_json::from_value(Value::Object(self.data.clone())).ok()
    }

    /// A text field of the event's data.
    pub fn text(&self, field: &str) -> Option<&str> {
        self.data.get(field)?.as_str()
    }
}

/// The events from the moment of the subscription on.
pub struct Events {
    pub(super) receiver: broadcast::Receiver<Arc<Event>>,
    pub(super) end: Arc<OnceLock<QmpError>>,
}

impl Events {
    /// The next event. [`QmpError::EventsMissed`] is no end: what follows can still be read. Every other
    /// error is the reason why no more events will come. Cancel-safe.
    pub async fn next(&mut self) -> Result<Arc<Event>, QmpError> {
        match self.receiver.recv().await {
            Ok(event) => Ok(event),
            Err(broadcast::error::RecvError::Lagged(n)) => Err(QmpError::EventsMissed(n)),
            Err(broadcast::error::RecvError::Closed) => {
                Err(self.end.get().cloned().unwrap_or(QmpError::Closed))
            }
        }
    }
}
