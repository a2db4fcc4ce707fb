//! What goes wrong on a monitor.

use std::sync::Arc;
use std::time::Duration;

/// What went wrong on the monitor.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QmpError {
    /// The socket is not there, or nobody listens.
    #[error("QEMU's monitor cannot be reached")]
    Connect(#[source] Arc<std::io::Error>),
    /// There was no greeting in time: QEMU serves one monitor client at a time, and opens its disks first.
    #[error("QEMU did not greet on its monitor within {} s", .0.as_secs())]
    NoGreeting(Duration),
    /// QEMU ended, or dropped the connection.
    #[error("QEMU closed its monitor")]
    Closed,
    /// The socket failed.
    #[error("the connection to QEMU's monitor broke")]
    Broken(#[source] Arc<std::io::Error>),
    /// What came over the socket is not QMP.
    #[error("the monitor does not speak QMP: {0}")]
    Protocol(&'static str),
    /// No reply in time. The command may still be carried out later.
    #[error("QEMU did not answer {command} within {} s", deadline.as_secs())]
    Timeout {
        /// The command's name.
        command: String,
        /// How long was waited.
        deadline: Duration,
    },
    /// QEMU refused the command.
    #[error("QEMU refused {command}: {desc}")]
    Refused {
        /// The command's name.
        command: String,
        /// QEMU's error class: `GenericError`, `DeviceNotFound`, ...
        class: String,
        /// QEMU's own words.
        desc: String,
    },
    /// The command could not be put into JSON.
    #[error("the arguments of {command} cannot be sent")]
    Arguments {
        /// The command's name.
        command: String,
        /// Why.
        #[source]
        source: Arc<serde_json::Error>,
    },
    /// The reply is not of the type that the command is documented to return.
    #[error("QEMU's answer to {command} is not understood")]
    Reply {
        /// The command's name.
        command: String,
        /// Why.
        #[source]
        source: Arc<serde_json::Error>,
    },
    /// The listener was too slow: events were dropped, and state must be queried anew.
    #[error("{0} events of QEMU were missed")]
    EventsMissed(u64),
}

impl QmpError {
    /// Whether nothing more will come over this connection.
    pub fn is_disconnect(&self) -> bool {
        matches!(self, Self::Connect(_) | Self::Closed | Self::Broken(_) | Self::Protocol(_))
    }

    /// QEMU's class and words, where it was QEMU that refused.
    pub fn refusal(&self) -> Option<(&str, &str)> {
        match self {
            Self::Refused { class, desc, .. } => Some((class, desc)),
            _ => None,
        }
    }
}
