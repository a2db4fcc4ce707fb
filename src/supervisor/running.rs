//! The state of one running domain, as its parts share it.

use std::cell::{Ref, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::{Mutex, MutexGuard, Notify, mpsc};
use uuid::Uuid;

use crate::domain::Domain;
use crate::keystore::Keystores;
use crate::qemu::Capabilities;
use crate::qemu::storage::NodeNumbers;
use crate::qmp::Qmp;
use crate::secret::MasterKey;
use crate::xml::Element;

use super::control::MACHINE_SOCKET;
use super::helpers::Helpers;
use super::hotplug::DiskParts;
use super::rekey::RekeyTurn;
use super::snapshot::Unfinished;
use super::state::StateFile;
use super::{HelperStatus, SupervisorError, Unlock, User, live_xml};

/// What somebody wants of the guest as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Press the power button; after the deadline, end it all the same.
    Shutdown,
    /// End it now.
    Destroy,
    /// Press the power button and start it again when it has powered off.
    Reboot,
}

/// The guest as it is now; hotplug changes it.
#[derive(Debug, Clone)]
pub struct Configuration {
    /// What vmward understood, addresses and aliases assigned.
    pub domain: Domain,
    /// The XML of it, without passwords.
    pub xml: Element,
    /// The numbers of the nodes that hotplug makes.
    pub nodes: NodeNumbers,
    /// What each disk consists of in QEMU.
    pub disks: Vec<DiskParts>,
    /// Overlays that are being made or merged.
    pub unfinished: Vec<Unfinished>,
}

impl Configuration {
    /// The configuration of a domain that is being started.
    pub fn at_start(domain: Domain, mut xml: Element, capabilities: &Capabilities) -> Self {
        if xml.child("uuid").is_none() {
            // A random one, which a supervisor that comes back has to find again.
            xml.children.push(Element::new("uuid").with_text(domain.general.uuid.to_string()));
        }
        live_xml::fill_in_all(&mut xml, &domain);
        live_xml::redact(&mut xml);
        let nodes = NodeNumbers::after_start(&domain);
        let disks = DiskParts::of_all(&domain, capabilities);
        Self { domain, xml, nodes, disks, unfinished: Vec::new() }
    }
}

/// One running domain. Everything runs on one thread: parts share it as `Rc<Running>`.
pub struct Running {
    /// The monitor.
    pub qmp: Qmp,
    /// What this QEMU can do.
    pub capabilities: Capabilities,
    /// What secrets are encrypted with for this QEMU.
    pub master_key: MasterKey,
    /// Where hotplug finds secrets. Those of the start are gone by now.
    pub keystores: Arc<Keystores>,
    /// Who derives the keys of LUKS disks that are plugged in.
    pub unlock: Unlock,
    /// QEMU's process id.
    pub qemu_pid: u32,
    /// When QEMU was started.
    pub started: SystemTime,
    configuration: RefCell<Configuration>,
    /// What runs beside QEMU.
    pub(super) helpers: Rc<Helpers>,
    /// Told when something has been done for somebody.
    pub(super) done: Notify,
    /// Held while the guest's devices are being changed.
    changing: Mutex<()>,
    /// Held while somebody is at the keys of its disks.
    rekeying: Arc<Mutex<()>>,
    state_file: StateFile,
    orders: mpsc::UnboundedSender<Order>,
}

/// What [`Running`] is made of.
pub(super) struct Parts {
    pub(super) qmp: Qmp,
    pub(super) capabilities: Capabilities,
    pub(super) master_key: MasterKey,
    pub(super) keystores: Arc<Keystores>,
    pub(super) unlock: Unlock,
    pub(super) qemu_pid: u32,
    pub(super) started: SystemTime,
    pub(super) configuration: Configuration,
    pub(super) helpers: Rc<Helpers>,
    pub(super) state_file: StateFile,
    pub(super) orders: mpsc::UnboundedSender<Order>,
}

/// The right to change the guest's devices, for one at a time.
pub struct Change<'a> {
    running: &'a Running,
    _one_at_a_time: MutexGuard<'a, ()>,
}

impl Running {
    /// A domain that has just been started, or taken back.
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { qmp, capabilities, master_key, keystores, unlock, qemu_pid, started, .. } = parts;
        Self {
            qmp,
            capabilities,
            master_key,
            keystores,
            unlock,
            qemu_pid,
            started,
            configuration: RefCell::new(parts.configuration),
            helpers: parts.helpers,
            done: Notify::new(),
            changing: Mutex::new(()),
            rekeying: Arc::default(),
            state_file: parts.state_file,
            orders: parts.orders,
        }
    }

    /// The guest's name.
    pub fn name(&self) -> String {
        self.configuration().domain.name().to_owned()
    }

    /// The guest's UUID.
    pub fn uuid(&self) -> Uuid {
        self.configuration().domain.general.uuid
    }

    /// Its private directory.
    pub(super) fn lib_dir(&self) -> PathBuf {
        self.state_file.lib_dir().to_owned()
    }

    /// Where systemd's tools connect.
    pub(super) fn machine_socket(&self) -> PathBuf {
        self.state_file.lib_dir().join(MACHINE_SOCKET)
    }

    /// The guest as it is now. Not to be held over an `await`.
    pub fn configuration(&self) -> Ref<'_, Configuration> {
        self.configuration.borrow()
    }

    /// Whether vmward has unlocked the disk with that target: QEMU does not know its key slots then, and never amends
    /// them. They are in the image's own header, which the guest cannot reach.
    pub fn is_unlocked_outside(&self, target: &str) -> bool {
        let configuration = self.configuration();
        configuration.disks.iter().any(|disk| disk.target == target && disk.unlocked_outside.is_some())
    }

    /// The user that QEMU runs as, if not as this one.
    pub(super) fn user(&self) -> Option<User> {
        self.state_file.user()
    }

    /// How the programs beside QEMU are.
    pub fn helpers(&self) -> Vec<HelperStatus> {
        self.helpers.status()
    }

    /// Saves what runs beside QEMU now.
    pub(super) fn save_helpers(&self) {
        if let Err(e) = self.state_file.save_helpers(self.helpers.state()) {
            tracing::error!("{e}");
        }
    }

    /// Ends what runs beside QEMU for a disk that is gone; what it said at last.
    pub(super) async fn end_helpers(&self, devices: &[String]) -> Vec<String> {
        if devices.is_empty() {
            return Vec::new();
        }
        let said = self.helpers.end(devices).await;
        self.save_helpers();
        said
    }

    /// Waits until nobody else changes the guest's devices, and keeps others from it.
    pub async fn change(&self) -> Change<'_> {
        Change { running: self, _one_at_a_time: self.changing.lock().await }
    }

    /// The right to change the keys of its disks, if nobody else has it.
    pub(super) fn rekey_turn(&self) -> Option<RekeyTurn> {
        Arc::clone(&self.rekeying).try_lock_owned().ok()
    }

    /// Hands an order to the main loop, which carries it out.
    pub fn order(&self, order: Order) {
        // Without a main loop the guest is ending already.
        let _ = self.orders.send(order);
    }
}

impl Change<'_> {
    /// Saves what is about to be done in one step, so that a supervisor that comes back can do it. [`commit`](Self::commit)
    /// follows, or saves what is still so.
    pub fn announce(&self, planned: &Configuration) -> Result<(), SupervisorError> {
        self.running.state_file.save_configuration(planned)
    }

    /// Changes what is known of the guest, and saves it for a supervisor that comes back.
    pub fn commit(&self, change: impl FnOnce(&mut Configuration)) -> Result<(), SupervisorError> {
        let mut configuration = self.running.configuration.borrow_mut();
        change(&mut configuration);
        self.running.state_file.save_configuration(&configuration)
    }
}
