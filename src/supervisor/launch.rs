//! The start of a domain. Whatever goes wrong, and whenever its future is dropped: QEMU is killed, and nothing
//! is left in the lib dir or of it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use command_fds::FdMapping;
use qapi::qmp::{cont, object_del, query_status};
use tokio::sync::mpsc;
use zlink::futures_util::future::try_join_all;

use crate::domain::Domain;
use crate::keystore::{Keystores, ResolvedSecrets};
use crate::qemu::{
    Capabilities, CommandLine, FIRMWARE_VARIABLES, Helper, LaunchOptions, MASTER_KEY_FILE, MONITOR_FD,
    Resource, SecretObject, launch_arguments, storage,
};
use crate::qmp::{COMMAND_DEADLINE, Events, FdSetPaths, Qmp, QmpError, SLOW_COMMAND_DEADLINE};
use crate::secret::{MasterKey, SealedSecret, os_random};
use crate::xml::{Diagnostics, Element};

use super::checkpoint::Checkpoint;
use super::confinement::{Bounds, Guest, Places};
use super::control::Sockets;
use super::descriptors::open_all;
use super::helpers::{Deaths, Helpers, Place};
use super::key::{self, KeyInMemory, KeyPlace};
use super::lib_dir::{LibDir, MONITOR_SOCKET};
use super::opened::{hand_over, open_images};
use super::operate::{check_passwords, limit_passwords};
use super::pinning::pin;
use super::prepare::{Prepared, prepare};
use super::process::{Process, Program, QEMU};
use super::recovery::boot_id;
use super::running::Parts;
use super::server_header::{DEADLINE as READ_DEADLINE, Reader};
use super::state::{Phase, State, StateFile};
use super::unlock::{Deriving, derive, finish};
use super::user::User;
use super::{Configuration, Order, Running, SupervisorError, Unlock, manager, vcpus};

/// How long QEMU may take from its exec to its greeting: it derives the keys of all LUKS disks before, 2-3 s
/// each with qemu-img's default.
const GREETING_DEADLINE: Duration = SLOW_COMMAND_DEADLINE;
/// How long QEMU may take to end after it has dropped its monitor.
const LEAVE_DEADLINE: Duration = Duration::from_secs(10);

/// A domain that is to be started.
pub struct Launch {
    /// The domain, built for QEMU.
    pub domain: Domain,
    /// Its XML.
    pub xml: Element,
    /// What this QEMU can do.
    pub capabilities: Capabilities,
    /// What QEMU is told about the domain.
    pub line: CommandLine,
    /// QEMU.
    pub program: PathBuf,
    /// The values of all secrets that `line` needs.
    pub secrets: ResolvedSecrets,
    /// For secrets that hotplug will need.
    pub keystores: Keystores,
    /// Where the lib dir is made.
    pub runtime_dir: PathBuf,
    /// Who QEMU runs as, if not as this user.
    pub user: Option<User>,
    /// Who derives the keys of LUKS disks.
    pub unlock: Unlock,
    /// Where the master key is meanwhile.
    pub key_place: KeyPlace,
    /// What the supervisor and QEMU may reach beside what the domain needs; `None`: they are not confined.
    pub places: Option<Places>,
}

/// A lib dir that is wiped when this is dropped.
pub(super) struct Lease(pub(super) Rc<LibDir>);

impl Drop for Lease {
    fn drop(&mut self) {
        if let Ok(Some(state)) = StateFile::load(&self.0) {
            state.remove_unfinished();
        }
        if let Err(e) = self.0.wipe() {
            tracing::error!(
                "{e}: {}",
                std::error::Error::source(&e).map(ToString::to_string).unwrap_or_default()
            );
        }
    }
}

/// A guest that runs under this supervisor. Dropped, it is ended: QEMU first, then its helpers, then the lib dir.
pub struct Started {
    pub(super) running: Rc<Running>,
    pub(super) events: Events,
    pub(super) orders: mpsc::UnboundedReceiver<Order>,
    pub(super) process: Process,
    pub(super) helpers: Rc<Helpers>,
    pub(super) deaths: Deaths,
    /// Where clients connect.
    pub(super) control: Sockets,
    pub(super) lease: Lease,
    pub(super) key_in_memory: Option<KeyInMemory>,
    pub(super) prepared: Prepared,
}

/// Starts a domain, up to where its processors run.
pub(super) async fn launch(launch: Launch) -> Result<Started, SupervisorError> {
    let Launch {
        domain,
        xml,
        capabilities,
        line,
        program,
        secrets,
        keystores,
        runtime_dir,
        user,
        unlock: how,
        key_place,
        places,
    } = launch;
    check_passwords(&domain, &secrets)?;
    let lease = Lease(Rc::new(LibDir::claim(&runtime_dir, domain.name())?));
    let lib_dir = &lease.0;
    Checkpoint::LibDirClaimed.passed();
    // Left there since it was last looked at.
    lib_dir.clear()?;
    if let Some(user) = &user {
        lib_dir.hand_over(user)?;
    }
    if !lib_dir.is_in_memory() {
        tracing::warn!(
            "{} is not on a tmpfs: the master key may reach a disk before it is wiped",
            lib_dir.path().display()
        );
    }
    let master_key = MasterKey::generate(&mut os_random()).map_err(SupervisorError::MasterKey)?;
    let key_in_memory = match key_place {
        KeyPlace::File => lib_dir.write_key(&master_key, user.as_ref()).map(|()| None)?,
        KeyPlace::Memory => {
            Some(KeyInMemory::new(&master_key).map_err(SupervisorError::io("a memfd", "made"))?)
        }
    };
    Checkpoint::KeyWritten.passed();
    let control = Sockets::listen(lib_dir)?;
    let secrets = Arc::new(secrets);
    let place = Place {
        lib_dir: lib_dir.path(),
        user: user.as_ref(),
        uuid: domain.general.uuid,
        secrets: &|secret| secrets.get(secret),
    };
    // Servers may take their time to show the headers of images.
    manager::status("disks are unlocked");
    manager::more_time(GREETING_DEADLINE);
    // A firmware's variables are among the images.
    let mut prepared = prepare(&line.preparations, user.as_ref())?;
    let environment = line.environment.clone();
    let reader = Reader {
        lib_dir: lib_dir.path(),
        user: user.as_ref(),
        environment: &environment,
        qmp: None,
        deadline: READ_DEADLINE,
    };
    let opening = open_images(&line.images, &line.servers, how, &capabilities, &secrets, &reader);
    let opening = async { Ok(opening.await?) };
    let helping = Helpers::start(&line.helpers, &place);
    let ((helpers, deaths), (opened, derivations)) = match line.helpers.iter().any(Helper::is_of_one_disk) {
        // Images are behind some of them.
        true => (helping.await?, opening.await?),
        false => tokio::try_join!(helping, opening)?,
    };
    let options = LaunchOptions {
        master_key: lib_dir.path().join(MASTER_KEY_FILE),
        monitor_fd: MONITOR_FD,
        hold: !derivations.is_empty(),
    };
    let mut line = launch_arguments(&options, &domain, &capabilities, line);
    let mut configuration = Configuration::at_start(domain, xml, &capabilities);
    let mut numbers = Vec::new();
    let descriptors = hand_over(opened, &mut line, |line, node, span| {
        let (set, number) = line.add_fd_set(Resource::Open, node, span);
        numbers.push(number);
        set
    });
    let fd_sets = FdSetPaths::default();
    for (set, _) in &descriptors {
        set.name_in(&fd_sets);
        let disk = configuration.disks.iter_mut().find(|disk| disk.nodes.contains(&set.node));
        if let Some(disk) = disk {
            disk.note(set);
        }
    }
    let descriptors = descriptors.into_iter().zip(numbers);
    let mut descriptors: Vec<_> =
        descriptors.map(|((_, parent_fd), child_fd)| FdMapping { parent_fd, child_fd }).collect();
    let arguments = line.render(|secret| seal(secret, &secrets, &master_key))?;
    descriptors.extend(open_all(&line.descriptors, lib_dir, &mut prepared)?);
    let monitor = lib_dir.listen(MONITOR_SOCKET)?;
    descriptors.push(FdMapping { parent_fd: monitor.into(), child_fd: MONITOR_FD });
    if let Some(key) = &key_in_memory {
        let number = descriptors.iter().map(|d| d.child_fd).max().unwrap_or(MONITOR_FD) + 1;
        key::link(lib_dir, number)?;
        let parent_fd = key.for_reading().map_err(SupervisorError::io("a memfd", "opened"))?;
        descriptors.push(FdMapping { parent_fd, child_fd: number });
    }
    let guest = Guest {
        domain: &configuration.domain,
        line: &line,
        program: Some(&program),
        user: user.as_ref(),
        runtime_dir: &runtime_dir,
    };
    let bounds = match places.map(|places| Bounds::new(&places, &guest)) {
        Some(bounds) => Some(bounds.enforce().await.map_err(SupervisorError::Confinement)?),
        None => None,
    };
    manager::more_time(2 * GREETING_DEADLINE + LEAVE_DEADLINE);
    // While QEMU starts. Its threads are confined as this one is.
    let deriving = derive(derivations, &secrets);
    drop(secrets);
    let process = Process::spawn(Program {
        name: QEMU,
        path: &program,
        arguments,
        user: user.as_ref(),
        descriptors,
        environment: &line.environment,
        stdio: line.uses_stdio(),
        outlives_reader: true,
        ends_with_parent: false,
        lib_dir: lib_dir.path(),
        fd_sets: fd_sets.clone(),
        bounds: bounds.as_ref(),
    })?;
    Checkpoint::Spawned.passed();
    let started = SystemTime::now();
    let state_file = StateFile::new(
        Rc::clone(lib_dir),
        State {
            phase: Phase::Starting,
            uuid: configuration.domain.general.uuid,
            boot: boot_id(),
            process: process.id(),
            started: started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            helpers: helpers.state(),
            made: prepared.made(),
            nodes: configuration.nodes.clone(),
            disks: configuration.disks.clone(),
            unfinished: Vec::new(),
            xml: configuration.xml.to_string(),
        },
    );
    state_file.save_phase(Phase::Starting)?;
    Checkpoint::StartSaved.passed();
    let begun = begin(&process, &line, &configuration.domain, &state_file, deriving, &reader, fd_sets).await;
    let (qmp, events) = match begun {
        Ok(begun) => begun,
        // What ended QEMU may have been said by a helper.
        Err(e) => {
            let secrets = owned_secrets(&line, &configuration.domain, &capabilities);
            return Err(e.with_words(helpers.last_words().await).blaming(secrets));
        }
    };
    let (sender, orders) = mpsc::unbounded_channel();
    let running = Rc::new(Running::new(Parts {
        qmp,
        capabilities,
        master_key,
        keystores: Arc::new(keystores),
        unlock: how,
        qemu_pid: process.id().pid,
        started,
        configuration,
        helpers: Rc::clone(&helpers),
        state_file,
        orders: sender,
    }));
    Ok(Started { running, events, orders, process, helpers, deaths, control, lease, key_in_memory, prepared })
}

/// From QEMU's first word to where its processors run.
async fn begin(
    process: &Process,
    line: &CommandLine,
    domain: &Domain,
    state_file: &StateFile,
    deriving: Deriving,
    reader: &Reader<'_>,
    fd_sets: FdSetPaths,
) -> Result<(Qmp, Events), SupervisorError> {
    let ids = line.secrets().map(|s| s.id.clone()).collect();
    let monitor = state_file.lib_dir().join(MONITOR_SOCKET);
    // Until somebody connects, QEMU opens none of the disks whose keys are derived here.
    let openings = while_alive(process, async { Ok(deriving.done().await) }).await??;
    Checkpoint::Derived.passed();
    manager::status("QEMU opens its disks");
    manager::more_time(GREETING_DEADLINE + LEAVE_DEADLINE);
    let (qmp, events) = while_alive(process, hand_shake(&monitor, ids, fd_sets)).await?;
    while_alive(process, finish(openings, &qmp, reader)).await??;
    for limits in &line.throttles {
        let set = qmp.execute_json("block_set_io_throttle", Some(limits), COMMAND_DEADLINE);
        while_alive(process, async { set.await.map(drop) }).await?;
    }
    while_alive(process, limit_passwords(&qmp, domain)).await?;
    while_alive(process, vcpus::plug(&qmp, &domain.vcpus)).await?;
    pin(&qmp, domain, process.id().pid).await?;
    state_file.save_phase(Phase::Running)?;
    Checkpoint::RunSaved.passed();
    while_alive(process, qmp.execute(cont {})).await?;
    Checkpoint::Continued.passed();
    Ok((qmp, events))
}

/// The secrets that QEMU gets, with whose they are.
fn owned_secrets<'a>(
    line: &'a CommandLine,
    domain: &Domain,
    capabilities: &Capabilities,
) -> impl Iterator<Item = (&'a SecretObject, String)> {
    let plans = storage::plan_disks(domain, capabilities, &mut Diagnostics::new());
    let mut disks = HashMap::new();
    for (disk, plan) in domain.devices.disks.iter().zip(&plans) {
        disks.extend(plan.objects.iter().map(|o| (o.id().to_owned(), format!("the disk '{}'", disk.target))));
    }
    line.secrets().map(move |secret| {
        let of =
            disks.remove(&secret.id).unwrap_or_else(|| match secret.id.starts_with(FIRMWARE_VARIABLES) {
                true => "the firmware's variables".to_owned(),
                false => "a device of the guest".to_owned(),
            });
        (secret, of)
    })
}

/// The value of a secret as QEMU gets it.
fn seal(
    secret: &SecretObject,
    secrets: &ResolvedSecrets,
    master_key: &MasterKey,
) -> Result<SealedSecret, SupervisorError> {
    let value = secret.source.value(|reference| secrets.get(reference));
    let value = value.ok_or_else(|| SupervisorError::NoSecret(secret.id.clone()))?;
    Ok(master_key.seal(value, &mut os_random()))
}

/// Greets QEMU and makes sure that it has started.
async fn hand_shake(
    monitor: &Path,
    secrets: Vec<String>,
    fd_sets: FdSetPaths,
) -> Result<(Qmp, Events), QmpError> {
    let qmp = Qmp::connect(monitor, GREETING_DEADLINE).await?.naming(fd_sets);
    let events = qmp.events();
    let greeted = async {
        // QEMU may still die after its greeting. What answers here has started.
        qmp.execute(query_status {}).await?;
        Checkpoint::Greeted.passed();
        Ok(())
    };
    // All disks are open: QEMU needs their passphrases no more.
    let dropped = try_join_all(secrets.into_iter().map(|id| qmp.execute(object_del { id })));
    tokio::try_join!(greeted, dropped)?;
    Checkpoint::SecretsDropped.passed();
    Ok((qmp, events))
}

/// Does something on the monitor for as long as QEMU lives.
pub(super) async fn while_alive<T>(
    process: &Process,
    work: impl Future<Output = Result<T, QmpError>>,
) -> Result<T, SupervisorError> {
    let failed = tokio::select! {
        result = work => match result {
            Ok(done) => return Ok(done),
            Err(e) => Some(e),
        },
        _ = process.ended() => None,
    };
    // A monitor that is gone tells less than the end of QEMU, which is the reason.
    if failed.as_ref().is_none_or(QmpError::is_disconnect)
        && let Ok(ending) = tokio::time::timeout(LEAVE_DEADLINE, process.ended()).await
    {
        return Err(SupervisorError::Died { ending, last_words: process.last_words().await });
    }
    Err(SupervisorError::Start {
        source: failed.unwrap_or(QmpError::Closed),
        last_words: process.last_words().await,
    })
}
