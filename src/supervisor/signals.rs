//! The signals that end a guest, and the one that has it read its certificates again.

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

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// The guest's end.
    Stop(StopSignal),
    /// New certificates.
    Reload,
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

    /// The next one. Cancel-safe.
    pub(super) async fn next(&mut self) -> Wish {
        tokio::select! {
            Some(()) = self.terminate.recv() => Wish::Stop(StopSignal::Terminate),
            Some(()) = self.interrupt.recv() => Wish::Stop(StopSignal::Interrupt),
            // A terminal that goes away is no reason to end a guest.
            Some(()) = self.hangup.recv() => Wish::Reload,
            else => std::future::pending().await,
        }
    }

    /// The next one that asks for the end. Cancel-safe.
    pub(super) async fn stop(&mut self) -> StopSignal {
        loop {
            if let Wish::Stop(signal) = self.next().await {
                return signal;
            }
        }
    }
}
