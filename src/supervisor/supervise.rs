//! The main loop of a running domain, and every way to its end.

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use qapi::qmp::{
    GUEST_PANICKED, GuestPanicAction, RESUME, SHUTDOWN, STOP, ShutdownCause, cont, quit, system_powerdown,
    system_reset,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::domain::lifecycle::LifecycleAction;
use crate::qmp::{Event, QmpError};

use super::checkpoint::Checkpoint;
use super::launch::Started;
use super::process::{Ending, Process};
use super::signals::{Request, Signals, StopSignal};
use super::{Ended, Order, Running, control, footprint, machined, manager, operate, watchdog};

/// How long QEMU may take to write out its caches and end once it is told to quit.
const QUIT_DEADLINE: Duration = Duration::from_secs(15);
/// What remains to be done then: QEMU and its helpers killed, the lib dir wiped.
const WIPE_DEADLINE: Duration = Duration::from_secs(45);
/// The guest runs, and nothing is wrong with it.
const RUNNING: &str = "runs";

/// How a domain that ran has ended.
#[derive(Debug)]
pub struct Outcome {
    /// What became of QEMU.
    pub ending: Ending,
    /// Whether the guest said that it had crashed.
    pub crashed: bool,
    /// Whether this supervisor had QEMU end, after the guest's end or instead of it.
    pub intended: bool,
    /// The last lines of what QEMU said, if it died by itself.
    pub last_words: Vec<String>,
}

/// How far the end has been asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Not at all.
    Running,
    /// The guest was asked.
    PowerButton,
    /// QEMU was told.
    Quit,
    /// QEMU is killed.
    Kill,
}

struct Supervision<'a> {
    running: &'a Rc<Running>,
    process: &'a Process,
    stop_timeout: Duration,
    stage: Stage,
    /// When the next stage comes.
    deadline: Option<Instant>,
    /// The guest is to start again when it has powered off.
    reboot: bool,
    crashed: bool,
    /// Whether the end has begun.
    ending: Rc<Cell<bool>>,
    /// Whether the host's register of machines has it.
    registered: Rc<Cell<bool>>,
    /// What goes on beside the main loop. Each task has the guest, and with it the master key.
    tasks: RefCell<JoinSet<()>>,
}

/// Stays with a guest until its end. `over`: the guest has ended already, and QEMU waits to be told.
pub(super) async fn supervise(
    started: Started,
    mut signals: Signals,
    stop_timeout: Duration,
    over: Option<ShutdownCause>,
) -> Ended {
    let Started {
        running,
        mut events,
        mut orders,
        process,
        helpers,
        mut deaths,
        control,
        lease,
        key_in_memory,
        prepared: _prepared,
    } = started;
    let mut control = pin!(control::serve(control, Rc::clone(&running)));
    let mut control_open = true;
    let mut supervision = Supervision {
        running: &running,
        process: &process,
        stop_timeout,
        stage: Stage::Running,
        deadline: None,
        reboot: false,
        crashed: false,
        ending: Rc::default(),
        registered: Rc::default(),
        tasks: RefCell::default(),
    };
    manager::ready(RUNNING);
    Checkpoint::Ready.passed();
    supervision.register();
    supervision.watch();
    if let Some(reason) = over {
        supervision.guest_ended(reason);
    }
    let mut monitor_open = true;
    let ending = loop {
        let deadline = supervision.deadline;
        let mut deadline = pin!(async move {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => pending().await,
            }
        });
        tokio::select! {
            ending = process.ended() => break ending,
            request = signals.next() => supervision.request(request),
            Some(order) = orders.recv() => supervision.order(order),
            // Of a QEMU that is told to quit they are gone first.
            Some(death) = deaths.recv() => if supervision.stage < Stage::Quit {
                helpers.died(&death);
                running.save_helpers();
            },
            event = events.next(), if monitor_open => match event {
                Ok(event) => supervision.event(&event),
                Err(QmpError::EventsMissed(n)) => tracing::warn!("{n} events of QEMU were missed"),
                Err(e) => {
                    tracing::debug!("{e}");
                    monitor_open = false;
                }
            },
            served = &mut control, if control_open => {
                control_open = false;
                if let Err(e) = served {
                    tracing::error!("the control socket is closed: {e}");
                }
            }
            () = &mut deadline => supervision.escalate(),
        }
    };
    Checkpoint::QemuEnded.passed();
    let intended = supervision.stage > Stage::PowerButton;
    let crashed = supervision.crashed;
    let last_words = if intended { Vec::new() } else { process.last_words().await };
    supervision.tasks.take().shutdown().await;
    helpers.end_all();
    drop(lease);
    drop(key_in_memory);
    Ended::Ran(Outcome { ending, crashed, intended, last_words })
}

impl Supervision<'_> {
    /// Has the guest entered in the host's register of machines.
    fn register(&self) {
        let (running, registered) = (Rc::clone(self.running), Rc::clone(&self.registered));
        self.tasks.borrow_mut().spawn_local(async move {
            let socket = running.machine_socket();
            registered.set(machined::register(&running.name(), running.uuid(), &socket).await);
        });
    }

    /// Has the watchdog fed, and the supervisor small while nothing happens.
    fn watch(&self) {
        let mut tasks = self.tasks.borrow_mut();
        tasks.spawn_local(watchdog::feed(Rc::clone(self.running), Rc::clone(&self.ending)));
        let running = Rc::clone(self.running);
        running.done.notify_one();
        tasks.spawn_local(async move { footprint::shrink(&running.done).await });
    }

    fn request(&mut self, request: Request) {
        tracing::info!("{request:?} received");
        match request {
            // What `machinectl reboot` sends.
            Request::Stop(StopSignal::Interrupt) if self.registered.get() => self.order(Order::Reboot),
            Request::Stop(_) => self.stop(match self.stage {
                Stage::Running => Stage::PowerButton,
                _ => Stage::Quit,
            }),
            Request::PowerOff => self.order(Order::Shutdown),
            Request::Reload => self.reload(),
            Request::Abort => {
                tracing::error!("QEMU's monitor has not answered the watchdog: QEMU is killed");
                self.stop(Stage::Kill);
            }
        }
    }

    /// Has QEMU read its certificates anew.
    fn reload(&self) {
        manager::reloading();
        let running = Rc::clone(self.running);
        let status = if self.stage == Stage::Running { RUNNING } else { "ends" };
        self.tasks.borrow_mut().spawn_local(async move {
            match operate::reload_tls(&running).await {
                Ok(done) => {
                    for what in done.reloaded {
                        tracing::info!("{what} uses the new certificates for new connections");
                    }
                    for what in done.kept {
                        tracing::warn!("the old certificates stay with {what}");
                    }
                }
                Err(e) => {
                    let why = std::error::Error::source(&e).map(|e| format!(": {e}")).unwrap_or_default();
                    tracing::error!("{e}{why}");
                }
            }
            manager::ready(status);
        });
    }

    fn order(&mut self, order: Order) {
        match order {
            Order::Shutdown => {
                self.reboot = false;
                self.stop(Stage::PowerButton);
            }
            Order::Destroy => self.stop(Stage::Quit),
            Order::Reboot => {
                self.reboot = true;
                self.tell("system_powerdown", |running| async move {
                    running.qmp.execute(system_powerdown {}).await.map(drop)
                });
            }
        }
    }

    /// Asks for the end, unless it is asked for in at least that way already.
    fn stop(&mut self, stage: Stage) {
        if self.stage >= stage {
            return;
        }
        self.stage = stage;
        self.ending.set(true);
        let patience = match stage {
            Stage::Running => return,
            Stage::PowerButton => {
                manager::stopping(
                    &format!("the guest is asked to power off within {} s", self.stop_timeout.as_secs()),
                    self.stop_timeout + QUIT_DEADLINE + WIPE_DEADLINE,
                );
                self.tell("system_powerdown", |running| async move {
                    let told = running.qmp.execute(system_powerdown {}).await.map(drop);
                    Checkpoint::PowerButton.passed();
                    told
                });
                self.stop_timeout
            }
            Stage::Quit => {
                manager::stopping("QEMU is told to quit", QUIT_DEADLINE + WIPE_DEADLINE);
                self.tell("quit", |running| async move {
                    // Not afterwards: QEMU may be gone before its reply is read.
                    Checkpoint::Quit.passed();
                    running.qmp.execute(quit {}).await.map(drop)
                });
                QUIT_DEADLINE
            }
            Stage::Kill => {
                manager::stopping("QEMU is killed", WIPE_DEADLINE);
                self.process.kill();
                self.deadline = None;
                return;
            }
        };
        self.deadline = Some(Instant::now() + patience);
    }

    fn escalate(&mut self) {
        match self.stage {
            Stage::Running | Stage::Kill => self.deadline = None,
            Stage::PowerButton => {
                tracing::warn!(
                    "the guest did not power off within {} s: it is ended",
                    self.stop_timeout.as_secs()
                );
                self.stop(Stage::Quit);
            }
            Stage::Quit => {
                tracing::warn!("QEMU did not quit within {} s: it is killed", QUIT_DEADLINE.as_secs());
                self.stop(Stage::Kill);
            }
        }
    }

    fn event(&mut self, event: &Event) {
        if let Some(SHUTDOWN { reason, .. }) = event.get() {
            self.guest_ended(reason);
        } else if let Some(GUEST_PANICKED { action, .. }) = event.get() {
            self.crashed = true;
            // With `-no-shutdown` no SHUTDOWN follows.
            if action == GuestPanicAction::pause {
                self.guest_ended(ShutdownCause::guest_panic);
            }
        } else if event.get::<STOP>().is_some() && self.stage == Stage::Running {
            manager::status("is paused");
        } else if event.get::<RESUME>().is_some() && self.stage == Stage::Running {
            manager::status(RUNNING);
        } else {
            tracing::debug!("event {}", event.name);
        }
    }

    /// QEMU waits with the guest's processors stopped (`-no-shutdown`): here is decided what becomes of it.
    fn guest_ended(&mut self, reason: ShutdownCause) {
        let lifecycle = self.running.configuration().domain.lifecycle;
        let (said, action) = match reason {
            ShutdownCause::guest_reset => ("the guest restarts", lifecycle.on_reboot),
            ShutdownCause::guest_panic => ("the guest has crashed", lifecycle.on_crash),
            ShutdownCause::guest_shutdown => ("the guest has powered off", lifecycle.on_poweroff),
            // QEMU ends by itself.
            _ => return,
        };
        tracing::info!("{said}");
        let action = match self.stage {
            Stage::Running if std::mem::take(&mut self.reboot) => LifecycleAction::Restart,
            Stage::Running => action,
            // Somebody wants it to end, whatever the XML says.
            _ => LifecycleAction::Destroy,
        };
        match action {
            LifecycleAction::Destroy => self.stop(Stage::Quit),
            LifecycleAction::Preserve => tracing::info!("it is kept as it is until `vmward destroy`"),
            LifecycleAction::Restart => {
                self.crashed = false;
                self.tell("system_reset", |running| async move {
                    running.qmp.execute(system_reset {}).await?;
                    running.qmp.execute(cont {}).await.map(drop)
                });
            }
        }
    }

    /// Gives QEMU a command without waiting for it: nothing may hold up the main loop.
    fn tell<F>(&self, what: &'static str, command: impl FnOnce(Rc<Running>) -> F)
    where
        F: Future<Output = Result<(), QmpError>> + 'static,
    {
        let told = command(Rc::clone(self.running));
        self.tasks.borrow_mut().spawn_local(async move {
            match told.await {
                // QEMU that quits may close its monitor before it has answered.
                Err(e) if !e.is_disconnect() => tracing::warn!("{what} failed: {e}"),
                _ => {}
            }
        });
    }
}
