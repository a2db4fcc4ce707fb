//! The signals that end a guest, or do not.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::SupervisorError;

/// What was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopSignal {
    /// SIGTERM.
    Terminate,
    /// SIGINT.
    Interrupt,
}

impl StopSignal {
    /// Its number.
    pub fn number(self) -> i32 {
        match self {
            Self::Terminate => nix::libc::SIGTERM,
            Self::Interrupt => nix::libc::SIGINT,
        }
    }
}

/// The signals from now on.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Catches them.
    pub(super) fn catch() -> Result<Self, SupervisorError> {
        let catch = || {
            Ok::<_, io::Error>(Self {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
                hangup: signal(SignalKind::hangup())?,
            })
        };
        catch().map_err(SupervisorError::Signals)
    }

    /// The next one that asks for the end. Cancel-safe.
    pub(super) async fn stop(&mut self) -> StopSignal {
        loop {
            tokio::select! {
                Some(()) = self.terminate.recv() => return StopSignal::Terminate,
                Some(()) = self.interrupt.recv() => return StopSignal::Interrupt,
                // A terminal that goes away is no reason to end a guest.
                Some(()) = self.hangup.recv() => tracing::debug!("SIGHUP is ignored"),
            }
        }
    }
}
