//! A command on its way to QEMU, and its reply.

use std::os::fd::OwnedFd;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tokio::sync::{OwnedMutexGuard, oneshot};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::client::{Shared, lock};
use super::{Qmp, QmpError};

/// What QEMU answers.
pub(super) type Reply = Result<Value, Refusal>;

/// QEMU's class and words.
pub(super) struct Refusal {
    pub(super) class: String,
    pub(super) desc: String,
}

/// A line of the protocol.
#[derive(Serialize)]
pub(super) struct Request<'a, A> {
    pub(super) execute: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) arguments: Option<A>,
    pub(super) id: u64,
}

/// A command on its way.
pub(super) struct Outgoing {
    pub(super) line: Zeroizing<Vec<u8>>,
    pub(super) descriptor: Option<OwnedFd>,
}

/// Who waits for a reply.
pub(super) struct Waiting {
    pub(super) reply: oneshot::Sender<Reply>,
    /// Whether it may take longer than an ordinary command.
    pub(super) slow: bool,
    /// Of a command with a descriptor: the right to send one.
    pub(super) _turn: Option<OwnedMutexGuard<()>>,
}

/// A command on its way, or in QEMU. One that is dropped is carried out with nobody waiting for the reply.
pub struct Sent<'a> {
    pub(super) qmp: &'a Qmp,
    pub(super) command: String,
    pub(super) deadline: Duration,
    pub(super) reply: oneshot::Receiver<Reply>,
    pub(super) forget: Forget<'a>,
}

impl Sent<'_> {
    /// What QEMU answers. The deadline counts from here: what was sent before has its own.
    pub async fn reply(self) -> Result<Value, QmpError> {
        let end = Instant::now() + self.deadline;
        self.reply_by(end).await
    }

    /// What QEMU answers until then.
    pub async fn reply_by(self, end: Instant) -> Result<Value, QmpError> {
        let Self { qmp, command, deadline, reply, forget: _forget } = self;
        match tokio::time::timeout_at(end, reply).await {
            Err(_) => Err(QmpError::Timeout { command, deadline }),
            Ok(Err(_)) => Err(qmp.connection.end()),
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err(Refusal { class, desc }))) => {
                let desc = qmp.fd_sets().put_into(&desc).into_owned();
                Err(QmpError::Refused { command, class, desc })
            }
        }
    }
}

/// Takes a command that nobody waits for any more off the list.
pub(super) struct Forget<'a> {
    pub(super) shared: &'a Shared,
    pub(super) id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = lock(&self.shared.waiting).as_mut() {
            waiting.remove(&self.id);
        }
    }
}
