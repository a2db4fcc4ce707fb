//! The control socket: the varlink service `org.vmward.Domain`, for vmward's own commands and anything else, and
//! `io.systemd.MachineInstance`, for systemd's.
//!
//! zlink's server serves all its connections from one task and one call at a time, so a guest that takes half
//! a minute to let go of a disk would hold up everybody else's calls. Here every connection has a server of
//! its own, over a listener with that one connection, in a task of its own: a client that is slow, silent or
//! hostile holds up nobody.

pub mod api;
mod client;
pub(in crate::supervisor) mod failure;
mod machine;
mod service;

pub use client::DomainProxy;

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use nix::unistd::{Uid, geteuid};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::LocalSet;
use zlink::tokio::unix::Stream;
use zlink::{ReadyListener, Server};

use machine::Machine;
use service::Service;

use super::lib_dir::LibDir;
use super::{Running, SupervisorError};

/// The control socket's name in the lib dir.
pub const CONTROL_SOCKET: &str = "control.sock";
/// The name of the socket for systemd's tools.
pub const MACHINE_SOCKET: &str = "machine.sock";

/// Connections that are served at once. Each costs a buffer of some kilobytes; people and their tools need a
/// handful.
const MAX_CONNECTIONS: usize = 64;

/// Where clients connect.
pub struct Sockets {
    control: std::os::unix::net::UnixListener,
    machine: std::os::unix::net::UnixListener,
}

impl Sockets {
    /// Makes them.
    pub(super) fn listen(lib_dir: &LibDir) -> Result<Self, SupervisorError> {
        Ok(Self { control: lib_dir.listen(CONTROL_SOCKET)?, machine: lib_dir.listen(MACHINE_SOCKET)? })
    }
}

/// Serves clients as long as it is polled. Dropping it drops all connections, and the changes they asked for.
pub async fn serve(sockets: Sockets, running: Rc<Running>) -> io::Result<()> {
    let listeners = [sockets.control, sockets.machine].map(|listener| {
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener)
    });
    let [control, machine] = listeners;
    let (control, machine) = (control?, machine?);
    let serve = async {
        tokio::task::spawn_local(super::hotplug::watch(Rc::clone(&running)));
        tokio::try_join!(
            accept(control, &running, || Service {
                running: Rc::clone(&running),
                rekeying: RefCell::default()
            }),
            accept(machine, &running, || Machine { running: Rc::clone(&running) }),
        )
    };
    LocalSet::new().run_until(serve).await.map(drop)
}

async fn accept<S>(listener: UnixListener, running: &Rc<Running>, service: impl Fn() -> S) -> io::Result<()>
where
    S: zlink::Service<Stream> + 'static,
{
    let open = Rc::new(Cell::new(0));
    loop {
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            // Out of descriptors: some client will go.
            Err(e) if matches!(e.raw_os_error(), Some(nix::libc::EMFILE | nix::libc::ENFILE)) => {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(e) => return Err(e),
        };
        if !is_allowed(&stream) {
            tracing::warn!("a process of another user was turned away from the control socket");
            continue;
        }
        if open.get() >= MAX_CONNECTIONS {
            tracing::warn!("more than {MAX_CONNECTIONS} clients at once: one was turned away");
            continue;
        }
        let place = Place::take(&open);
        let (running, service) = (Rc::clone(running), service());
        tokio::task::spawn_local(async move {
            if let Err(e) = converse(stream, service).await {
                tracing::debug!("a client of the control socket: {e}");
            }
            drop(place);
            running.done.notify_one();
        });
    }
}

/// A connection's place among [`MAX_CONNECTIONS`].
struct Place(Rc<Cell<usize>>);

impl Place {
    fn take(open: &Rc<Cell<usize>>) -> Self {
        open.set(open.get() + 1);
        Self(Rc::clone(open))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Serves one client until it goes away.
async fn converse(stream: UnixStream, service: impl zlink::Service<Stream>) -> zlink::Result<()> {
    let stream = stream.into_std()?;
    let watch = UnixStream::from_std(stream.try_clone()?)?;
    let listener = ReadyListener::new(Stream::try_from(stream)?);
    tokio::select! {
        done = Server::new(listener, service).run() => done,
        // A client that only listens would not be missed until the next event.
        gone = hung_up(&watch) => Ok(gone?),
    }
}

/// Waits until the peer has closed its end altogether (one that only will not send any more still listens).
async fn hung_up(stream: &UnixStream) -> io::Result<()> {
    loop {
        if stream.ready(Interest::WRITABLE).await?.is_write_closed() {
            return Ok(());
        }
        // It is writable nearly always: wait for the next change of state.
        let _ = stream.try_io(Interest::WRITABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
    }
}

/// The socket's mode keeps others out already; this holds even where the lib dir's does not.
fn is_allowed(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| {
        let uid = Uid::from_raw(peer.uid());
        uid.is_root() || uid == geteuid()
    })
}
