//! The signals that mean something to a supervisor.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::SupervisorError;

/// A signal that ends the guest.
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

/// What somebody asks for by a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// The end.
    Stop(StopSignal),
    /// The power button, as `machinectl poweroff` presses it (SIGRTMIN+4, systemd(1)).
    PowerOff,
    /// Certificates are to be read anew (SIGHUP). A terminal that goes away says the same, which does no harm.
    Reload,
    /// The service manager's watchdog was not fed (SIGABRT, `WatchdogSignal=` in systemd.service(5)).
    Abort,
}

/// The signals from now on.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    power_off: Signal,
    hangup: Signal,
    abort: Signal,
}

impl Signals {
    /// Catches them.
    pub(super) fn catch() -> Result<Self, SupervisorError> {
        let catch = || {
            Ok::<_, io::Error>(Self {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
                power_off: signal(SignalKind::from_raw(nix::libc::SIGRTMIN() + 4))?,
                hangup: signal(SignalKind::hangup())?,
                abort: signal(SignalKind::from_raw(nix::libc::SIGABRT))?,
            })
        };
        catch().map_err(SupervisorError::Signals)
    }

    /// The next one. Cancel-safe.
    pub(super) async fn next(&mut self) -> Request {
        tokio::select! {
            Some(()) = self.terminate.recv() => Request::Stop(StopSignal::Terminate),
            Some(()) = self.interrupt.recv() => Request::Stop(StopSignal::Interrupt),
            Some(()) = self.power_off.recv() => Request::PowerOff,
            Some(()) = self.hangup.recv() => Request::Reload,
            Some(()) = self.abort.recv() => Request::Abort,
        }
    }

    /// The next one that asks for the end of a guest that does not run yet. Cancel-safe.
    pub(super) async fn stop(&mut self) -> StopSignal {
        loop {
            match self.next().await {
                Request::Stop(signal) => return signal,
                Request::PowerOff | Request::Abort => return StopSignal::Terminate,
                Request::Reload => {}
            }
        }
    }
}
