//! The connection to a monitor.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use qapi::qmp::{AddfdInfo, QMPCapability};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::command::{Forget, Outgoing, Refusal, Reply, Request, Sent, Waiting};
use super::frame::{Frame, parse, read_line};
use super::{Event, Events, FdSetPaths, QemuVersion, QmpError};

/// How long an ordinary command may take. While QEMU derives a LUKS key (2-3 s each) it answers nobody, and
/// several such disks may be in line.
pub const COMMAND_DEADLINE: Duration = Duration::from_secs(120);
/// How long a command may take that derives LUKS keys itself or waits for remote storage.
pub const SLOW_COMMAND_DEADLINE: Duration = Duration::from_secs(600);

/// Events that a slow listener may be behind before it loses some. QEMU limits the rate of those that a
/// guest can cause at will.
const EVENT_BACKLOG: usize = 1024;

const ADD_FD: &str = "add-fd";

/// Commands in line for a socket that takes no more; the next caller waits, within its deadline.
const COMMAND_BACKLOG: usize = 64;

/// A client of one QEMU's monitor. Clones share the connection, which is closed with the last of them.
#[derive(Clone)]
pub struct Qmp {
    pub(super) connection: Arc<Connection>,
    version: QemuVersion,
    fd_sets: FdSetPaths,
}

pub(super) struct Connection {
    shared: Arc<Shared>,
    outgoing: mpsc::Sender<Outgoing>,
    next_id: AtomicU64,
    /// Held from a descriptor's way out to the reply: QEMU keeps one, the last that came.
    descriptor: Arc<tokio::sync::Mutex<()>>,
    tasks: [AbortHandle; 2],
}

pub(super) struct Shared {
    /// `None` once the connection has ended: nothing would ever answer.
    pub(super) waiting: Mutex<Option<HashMap<u64, Waiting>>>,
    /// `None` once the connection has ended, so that listeners learn of it.
    events: Mutex<Option<broadcast::Sender<Arc<Event>>>>,
    end: Arc<OnceLock<QmpError>>,
}

impl Qmp {
    /// Connects to the monitor at a path and negotiates. QEMU greets only once all its disks are open, so
    /// `deadline` must leave time for their keys to be derived.
    pub async fn connect(path: &Path, deadline: Duration) -> Result<Self, QmpError> {
        let stream = UnixStream::connect(path).await.map_err(|e| QmpError::Connect(e.into()))?;
        Self::over(stream, deadline).await
    }

    /// Negotiates over a connected socket.
    pub async fn over(stream: UnixStream, deadline: Duration) -> Result<Self, QmpError> {
        let (read, write) = stream.into_split();
        let mut reader = BufReader::new(read);
        let mut line = Vec::new();
        let greeting = async {
            match read_line(&mut reader, &mut line).await? {
                true => parse(&line),
                false => Err(QmpError::Closed),
            }
        };
        let greeted = tokio::time::timeout(deadline, greeting).await;
        let (version, out_of_band) = match greeted.map_err(|_| QmpError::NoGreeting(deadline))?? {
            Frame::Greeting { version, out_of_band } => (version, out_of_band),
            _ => return Err(QmpError::Protocol("it did not begin with QEMU's greeting")),
        };
        let (events, _) = broadcast::channel(EVENT_BACKLOG);
        let shared = Arc::new(Shared {
            waiting: Mutex::new(Some(HashMap::new())),
            events: Mutex::new(Some(events)),
            end: Arc::default(),
        });
        let (outgoing, queue) = mpsc::channel(COMMAND_BACKLOG);
        let tasks = [
            tokio::spawn(receive(reader, Arc::clone(&shared))).abort_handle(),
            tokio::spawn(send(write, queue, Arc::clone(&shared))).abort_handle(),
        ];
        let connection = Arc::new(Connection {
            shared,
            outgoing,
            next_id: AtomicU64::new(1),
            descriptor: Default::default(),
            tasks,
        });
        let qmp = Self { connection, version, fd_sets: FdSetPaths::default() };
        // QEMU reads its monitor byte by byte (3 µs each), and nothing of it while it carries out a command; with this it
        // reads up to seven more meanwhile. None is sent that is to overtake others.
        let enable = out_of_band.then(|| vec![QMPCapability::oob]);
        qmp.execute_within(qapi::qmp::qmp_capabilities { enable }, deadline).await?;
        Ok(qmp)
    }

    /// QEMU's version, from its greeting.
    pub fn version(&self) -> QemuVersion {
        self.version
    }

    /// The events from now on.
    pub fn events(&self) -> Events {
        let shared = &self.connection.shared;
        let receiver = match lock(&shared.events).as_ref() {
            Some(sender) => sender.subscribe(),
            // The sender is gone at once: the first `next` gives the reason.
            None => broadcast::channel(1).1,
        };
        Events { receiver, end: Arc::clone(&shared.end) }
    }

    /// Whether the connection has ended, as it does with QEMU.
    pub fn has_ended(&self) -> bool {
        lock(&self.connection.shared.waiting).is_none()
    }

    /// Whether QEMU is busy with a command that may take longer than [`COMMAND_DEADLINE`]: it may answer nobody meanwhile.
    pub fn has_slow_command(&self) -> bool {
        lock(&self.connection.shared.waiting).as_ref().is_some_and(|all| all.values().any(|w| w.slow))
    }

    /// Carries out a command within [`COMMAND_DEADLINE`].
    ///
    /// Cancel-safe: a command whose future is dropped is either not sent at all, or carried out with nobody
    /// waiting for the reply.
    pub async fn execute<C: qapi::Command>(&self, command: C) -> Result<C::Ok, QmpError> {
        self.execute_within(command, COMMAND_DEADLINE).await
    }

    /// Carries out a command within a deadline.
    pub async fn execute_within<C: qapi::Command>(
        &self,
        command: C,
        deadline: Duration,
    ) -> Result<C::Ok, QmpError> {
        let value = self.execute_json(C::NAME, Some(&command), deadline).await?;
        serde_json::from_value(value)
            .map_err(|e| QmpError::Reply { command: C::NAME.to_owned(), source: e.into() })
    }

    /// Carries out a command that is given as JSON, within a deadline.
    pub async fn execute_json(
        &self,
        command: &str,
        arguments: Option<&impl Serialize>,
        deadline: Duration,
    ) -> Result<Value, QmpError> {
        let end = Instant::now() + deadline;
        self.send(command, arguments, deadline).await?.reply_by(end).await
    }

    /// The same client, whose words name these paths instead of sets of descriptors.
    pub fn naming(self, fd_sets: FdSetPaths) -> Self {
        Self { fd_sets, ..self }
    }

    /// What its words name instead of sets of descriptors.
    pub fn fd_sets(&self) -> &FdSetPaths {
        &self.fd_sets
    }

    /// Has a command carried out after those that were sent before, without waiting for it: a QEMU that can reads it while
    /// it carries out the others. It is carried out whether those fail or not.
    pub async fn send(
        &self,
        command: &str,
        arguments: Option<&impl Serialize>,
        deadline: Duration,
    ) -> Result<Sent<'_>, QmpError> {
        self.send_with(command, arguments, None, deadline).await
    }

    /// Gives QEMU a descriptor, in a set of that number (`/dev/fdset/N`); `name` tells people what it is. Its number in QEMU.
    pub async fn add_fd(&self, set: u32, name: &str, descriptor: OwnedFd) -> Result<i64, QmpError> {
        let added = self.send_fd(set, name, descriptor).await?.reply().await?;
        let added: AddfdInfo = serde_json::from_value(added)
            .map_err(|e| QmpError::Reply { command: ADD_FD.to_owned(), source: e.into() })?;
        Ok(added.fd)
    }

    /// The same as [`send`](Self::send) is to other commands. It waits for descriptors that were sent before.
    pub async fn send_fd(&self, set: u32, name: &str, descriptor: OwnedFd) -> Result<Sent<'_>, QmpError> {
        let arguments = json!({ "fdset-id": set, "opaque": name });
        self.send_with(ADD_FD, Some(&arguments), Some(descriptor), COMMAND_DEADLINE).await
    }

    async fn send_with(
        &self,
        command: &str,
        arguments: Option<&impl Serialize>,
        descriptor: Option<OwnedFd>,
        deadline: Duration,
    ) -> Result<Sent<'_>, QmpError> {
        let connection = &self.connection;
        let id = connection.next_id.fetch_add(1, Ordering::Relaxed);
        // Room for a line that holds a password, so that no copy of it is left behind by growing.
        let mut line = Zeroizing::new(Vec::with_capacity(4096));
        serde_json::to_writer(&mut *line, &Request { execute: command, arguments, id })
            .map_err(|e| QmpError::Arguments { command: command.to_owned(), source: e.into() })?;
        line.push(b'\n');
        let (sender, reply) = oneshot::channel();
        let slow = deadline > COMMAND_DEADLINE;
        let sent = tokio::time::timeout(deadline, async {
            let turn = match &descriptor {
                Some(_) => Some(Arc::clone(&connection.descriptor).lock_owned().await),
                None => None,
            };
            let waiting = Waiting { reply: sender, slow, _turn: turn };
            lock(&connection.shared.waiting).as_mut()?.insert(id, waiting);
            let forget = Forget { shared: &connection.shared, id };
            connection.outgoing.send(Outgoing { line, descriptor }).await.ok()?;
            Some(forget)
        })
        .await;
        let command = command.to_owned();
        match sent {
            Err(_) => Err(QmpError::Timeout { command, deadline }),
            Ok(None) => Err(connection.end()),
            Ok(Some(forget)) => Ok(Sent { qmp: self, command, deadline, reply, forget }),
        }
    }
}

impl Connection {
    pub(super) fn end(&self) -> QmpError {
        self.shared.end.get().cloned().unwrap_or(QmpError::Closed)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Shared {
    /// Ends the connection for everybody, once; the first reason counts.
    fn finish(&self, why: QmpError) {
        let _ = self.end.set(why);
        lock(&self.waiting).take();
        lock(&self.events).take();
    }

    fn answer(&self, id: Option<u64>, reply: Reply) {
        let waiting = id.and_then(|id| lock(&self.waiting).as_mut()?.remove(&id));
        match waiting {
            // Nobody may wait any more: that is the meaning of a deadline.
            Some(waiting) => drop(waiting.reply.send(reply)),
            None => tracing::debug!("a reply of QEMU that nobody waits for"),
        }
    }
}

async fn receive(mut reader: BufReader<OwnedReadHalf>, shared: Arc<Shared>) {
    let mut line = Vec::new();
    loop {
        line.clear();
        let frame = match read_line(&mut reader, &mut line).await {
            Ok(true) => parse(&line),
            Ok(false) => Err(QmpError::Closed),
            Err(e) => Err(e),
        };
        match frame {
            Ok(Frame::Event(event)) => {
                if let Some(sender) = lock(&shared.events).as_ref() {
                    // Without listeners there is nobody to tell.
                    let _ = sender.send(Arc::new(event));
                }
            }
            Ok(Frame::Return { id, value }) => shared.answer(id, Ok(value)),
            Ok(Frame::Error { id, class, desc }) => shared.answer(id, Err(Refusal { class, desc })),
            Ok(Frame::Greeting { .. } | Frame::Unknown) => tracing::debug!("an unexpected message of QEMU"),
            Err(e) => return shared.finish(e),
        }
    }
}

async fn send(mut writer: OwnedWriteHalf, mut queue: mpsc::Receiver<Outgoing>, shared: Arc<Shared>) {
    while let Some(Outgoing { line, descriptor }) = queue.recv().await {
        let sent = match descriptor {
            Some(descriptor) => send_with(writer.as_ref(), &line, &descriptor).await,
            None => Ok(0),
        };
        let sent = match sent {
            Ok(sent) => writer.write_all(&line[sent..]).await,
            Err(e) => Err(e),
        };
        if let Err(e) = sent {
            // What QEMU said before it went (events of its end) is still to be read: the reader ends it,
            // unless the socket broke in another way.
            if e.kind() != io::ErrorKind::BrokenPipe {
                shared.finish(QmpError::Broken(e.into()));
            }
            return;
        }
    }
}

/// Sends the start of a line together with a descriptor; how much of the line.
async fn send_with(stream: &UnixStream, line: &[u8], descriptor: &OwnedFd) -> io::Result<usize> {
    stream
        .async_io(Interest::WRITABLE, || {
            let descriptors = [descriptor.as_fd()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
            Ok(sendmsg(stream, &[IoSlice::new(line)], &mut ancillary, SendFlags::NOSIGNAL)?)
        })
        .await
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded is changed by single statements: a panic elsewhere leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a hostile or broken monitor does. (A real QEMU is in `tests/hotplug.rs`.)
#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, AsyncReadExt};

    use super::*;

    const GREETING: &str =
        "{\"QMP\":{\"version\":{\"qemu\":{\"micro\":0,\"minor\":2,\"major\":7}},\"capabilities\":[]}}\r\n";
    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(30);

    /// A peer that greets and then lets `serve` answer each line.
    fn peer(mut serve: impl FnMut(u64, Value) -> Option<String> + Send + 'static) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let (read, mut write) = theirs.into_split();
            let mut lines = BufReader::new(read).lines();
            write.write_all(GREETING.as_bytes()).await.unwrap();
            while let Ok(Some(line)) = lines.next_line().await {
                let request: Value = serde_json::from_str(&line).unwrap();
                let id = request["id"].as_u64().unwrap();
                let answer = match request["execute"] == "qmp_capabilities" {
                    true => Some(format!("{{\"return\":{{}},\"id\":{id}}}\n")),
                    false => serve(id, request),
                };
                match answer {
                    Some(answer) => write.write_all(answer.as_bytes()).await.unwrap(),
                    None => return,
                }
            }
        });
        ours
    }

    async fn stop(qmp: &Qmp, deadline: Duration) -> Result<Value, QmpError> {
        qmp.execute_json("stop", None::<&()>, deadline).await
    }

    #[tokio::test]
    async fn replies_find_their_commands_by_id() {
        let mut first = None;
        let qmp = Qmp::over(
            peer(move |id, _| match first.take() {
                None => {
                    first = Some(id);
                    Some(String::new())
                }
                // Both at once, in the wrong order, with things between that no version knows.
                Some(before) => Some(format!(
                    "{{\"return\":{id},\"id\":{id}}}\n{{\"event\":\"NEW\"}}\n{{\"what\":1}}\n\
                     {{\"return\":0,\"id\":\"x\"}}\n{{\"return\":{before},\"id\":{before}}}\n"
                )),
            }),
            LONG,
        )
        .await
        .unwrap();
        let mut events = qmp.events();
        let (a, b) = tokio::join!(stop(&qmp, LONG), stop(&qmp, LONG));
        assert_eq!(a.unwrap().as_u64().unwrap() + 1, b.unwrap().as_u64().unwrap());
        assert_eq!(events.next().await.unwrap().name, "NEW");
    }

    #[tokio::test]
    async fn a_command_is_sent_before_the_last_is_answered_but_no_second_descriptor() {
        let mut before = None;
        let qmp = Qmp::over(
            peer(move |id, request| match (request["execute"].as_str(), before) {
                // Answered with what comes next.
                (Some("add-fd"), None) => {
                    before = Some(id);
                    Some(String::new())
                }
                (_, Some(first)) => {
                    Some(format!("{{\"return\":1,\"id\":{first}}}\n{{\"return\":2,\"id\":{id}}}\n"))
                }
                _ => None,
            }),
            LONG,
        )
        .await
        .unwrap();
        let descriptor = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let first = qmp.send_fd(1, "first", descriptor()).await.unwrap();
        let second = tokio::time::timeout(SHORT, qmp.send_fd(2, "second", descriptor())).await;
        assert!(second.is_err());
        let stop = qmp.send("stop", None::<&()>, LONG).await.unwrap();
        assert_eq!((first.reply().await.unwrap(), stop.reply().await.unwrap()), (json!(1), json!(2)));
        let second = qmp.send_fd(2, "second", descriptor()).await.unwrap();
        assert_eq!(second.reply().await.unwrap(), json!(2));
    }

    #[tokio::test]
    async fn silence_is_a_timeout_and_a_late_reply_harms_nobody() {
        let mut seen = Vec::new();
        let qmp = Qmp::over(
            peer(move |id, _| {
                seen.push(id);
                let late = seen.iter().map(|id| format!("{{\"return\":{id},\"id\":{id}}}\n"));
                Some(if seen.len() == 1 { String::new() } else { late.collect() })
            }),
            LONG,
        )
        .await
        .unwrap();
        assert!(matches!(stop(&qmp, SHORT).await, Err(QmpError::Timeout { .. })));
        assert_eq!(lock(&qmp.connection.shared.waiting).as_ref().unwrap().len(), 0);
        assert!(stop(&qmp, LONG).await.is_ok());
    }

    #[tokio::test]
    async fn a_command_that_may_take_long_is_known_while_it_does() {
        let qmp = Qmp::over(peer(|_, _| Some(String::new())), LONG).await.unwrap();
        assert!(stop(&qmp, SHORT).await.is_err());
        assert!(!qmp.has_slow_command());
        {
            let mut slow = std::pin::pin!(stop(&qmp, SLOW_COMMAND_DEADLINE));
            let waited = tokio::time::timeout(SHORT, slow.as_mut()).await;
            assert!(waited.is_err() && qmp.has_slow_command(), "{waited:?}");
        }
        assert!(!qmp.has_slow_command());
    }

    #[tokio::test]
    async fn the_end_reaches_everybody_with_its_reason() {
        let qmp = Qmp::over(peer(|_, _| None), LONG).await.unwrap();
        let mut events = qmp.events();
        let (a, b) = tokio::join!(stop(&qmp, LONG), stop(&qmp, LONG));
        assert!(matches!(a, Err(QmpError::Closed)), "{a:?}");
        assert!(b.is_err());
        assert!(matches!(events.next().await, Err(QmpError::Closed)));
        assert!(matches!(stop(&qmp, LONG).await, Err(QmpError::Closed)));
        assert!(qmp.events().next().await.is_err() && qmp.has_ended());
    }

    #[tokio::test]
    async fn garbage_ends_the_connection() {
        let qmp = Qmp::over(peer(|_, _| Some("HTTP/1.1 400\r\n".into())), LONG).await.unwrap();
        assert!(matches!(stop(&qmp, LONG).await, Err(QmpError::Protocol(_))));
    }

    #[tokio::test]
    async fn depth_endless_lines_and_half_a_line_end_the_connection() {
        let deep = || format!("{}1{}\n", "{\"a\":".repeat(100_000), "}".repeat(100_000));
        let qmp = Qmp::over(peer(move |_, _| Some(deep())), LONG).await.unwrap();
        assert!(matches!(stop(&qmp, LONG).await, Err(QmpError::Protocol(_))));

        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let endless = tokio::spawn(async move {
            theirs.write_all(GREETING.as_bytes()).await.unwrap();
            let mut sent = 0;
            // It ends when nobody reads any more.
            while theirs.write_all(&[b'x'; 1 << 16]).await.is_ok() {
                sent += 1 << 16;
            }
            sent
        });
        assert!(matches!(Qmp::over(ours, LONG).await, Err(QmpError::Protocol(_))));
        assert!(endless.await.unwrap() < 32 << 20);

        let qmp = Qmp::over(peer(|_, _| Some("{\"return\"".into())), LONG).await.unwrap();
        let waiting = stop(&qmp, SHORT).await;
        assert!(matches!(waiting, Err(QmpError::Timeout { .. })), "{waiting:?}");
    }

    #[tokio::test]
    async fn a_flood_of_events_is_missed_in_part_and_holds_up_no_command() {
        const FLOOD: usize = 100 * EVENT_BACKLOG;
        let answer = |id| {
            let event = "{\"event\":\"FLOOD\",\"data\":{}}\n".repeat(FLOOD);
            format!("{event}{{\"return\":{{}},\"id\":{id}}}\n")
        };
        let qmp = Qmp::over(peer(move |id, _| Some(answer(id))), LONG).await.unwrap();
        let mut events = qmp.events();
        stop(&qmp, LONG).await.unwrap();
        // No more are kept than those.
        let missed = events.next().await.unwrap_err();
        assert!(
            matches!(missed, QmpError::EventsMissed(n) if n as usize == FLOOD - EVENT_BACKLOG),
            "{missed}"
        );
        for _ in 0..EVENT_BACKLOG {
            assert_eq!(events.next().await.unwrap().name, "FLOOD");
        }
        assert!(tokio::time::timeout(SHORT, events.next()).await.is_err());
    }

    #[tokio::test]
    async fn replies_to_nobody_are_not_kept() {
        let stray = "{\"return\":[],\"id\":4711}\n{\"error\":5,\"id\":-1}\n{\"return\":0}\n".repeat(1000);
        let answer = move |id| format!("{stray}{{\"error\":{{}},\"id\":{id}}}\n");
        let qmp = Qmp::over(peer(move |id, _| Some(answer(id))), LONG).await.unwrap();
        // Refused, though nothing is said about it.
        assert!(matches!(stop(&qmp, LONG).await, Err(QmpError::Refused { .. })));
        assert!(lock(&qmp.connection.shared.waiting).as_ref().unwrap().is_empty());
    }

    #[tokio::test]
    async fn no_greeting_and_a_wrong_one() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert!(matches!(Qmp::over(ours, SHORT).await, Err(QmpError::NoGreeting(_))));
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"{\"return\":{}}\n").await.unwrap();
        assert!(matches!(Qmp::over(ours, LONG).await, Err(QmpError::Protocol(_))));
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(matches!(Qmp::over(ours, LONG).await, Err(QmpError::Closed)));
    }

    #[tokio::test]
    async fn a_monitor_that_reads_nothing_is_a_timeout() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let client = tokio::spawn(async move { Qmp::over(ours, LONG).await.unwrap() });
        theirs.write_all(GREETING.as_bytes()).await.unwrap();
        let mut buffer = [0; 256];
        let _ = theirs.read(&mut buffer).await.unwrap();
        theirs.write_all(b"{\"return\":{},\"id\":1}\n").await.unwrap();
        let qmp = client.await.unwrap();
        let large = "x".repeat(4 << 20);
        let sent = qmp.execute_json("x", Some(&large), SHORT).await;
        assert!(matches!(sent, Err(QmpError::Timeout { .. })), "{sent:?}");
    }

    #[tokio::test]
    async fn the_socket_closes_with_the_last_client() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let client = tokio::spawn(async move { Qmp::over(ours, LONG).await.unwrap() });
        theirs.write_all(GREETING.as_bytes()).await.unwrap();
        theirs.write_all(b"{\"return\":{},\"id\":1}\n").await.unwrap();
        let qmp = client.await.unwrap();
        drop(qmp.clone());
        drop(qmp);
        let mut rest = Vec::new();
        theirs.read_to_end(&mut rest).await.unwrap();
    }
}
