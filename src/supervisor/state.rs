//! What a supervisor that comes back has to know. There is no secret in it.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::qemu::storage::NodeNumbers;
use crate::xml::{self, Diagnostics};

use super::helpers::HelperState;
use super::hotplug::DiskParts;
use super::lib_dir::LibDir;
use super::prepare::Made;
use super::process::ProcessId;
use super::snapshot::{self, Unfinished};
use super::{Configuration, SupervisorError, User};

/// The file's name in the lib dir.
pub(super) const STATE_FILE: &str = "state.json";

/// How far the guest has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Phase {
    /// QEMU runs, the guest never did: worth nothing to a supervisor that comes back.
    Starting,
    /// The guest was started.
    Running,
}

/// What is in the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) uuid: Uuid,
    /// The host's boot that the processes are of (`/proc/sys/kernel/random/boot_id`).
    pub(super) boot: String,
    /// QEMU.
    pub(super) process: ProcessId,
    /// When QEMU was started, in seconds since 1970.
    pub(super) started: u64,
    /// What runs beside QEMU.
    pub(super) helpers: Vec<HelperState>,
    /// What was made outside the lib dir.
    pub(super) made: Made,
    /// See [`Configuration::nodes`].
    pub(super) nodes: NodeNumbers,
    /// See [`Configuration::disks`].
    pub(super) disks: Vec<DiskParts>,
    /// See [`Configuration::unfinished`].
    #[serde(default)]
    pub(super) unfinished: Vec<Unfinished>,
    /// See [`Configuration::xml`].
    pub(super) xml: String,
}

impl State {
    /// Removes the files of overlays that nobody needs, once QEMU is gone.
    pub(super) fn remove_unfinished(&self) {
        if !self.unfinished.is_empty()
            && let Some(xml) = xml::parse(&self.xml, &mut Diagnostics::new())
        {
            snapshot::remove_unfinished(&self.unfinished, &xml);
        }
    }
}

/// The state as it is saved.
pub(super) struct StateFile {
    lib_dir: Rc<LibDir>,
    state: RefCell<State>,
}

impl StateFile {
    /// The file of a state that is not saved yet.
    pub(super) fn new(lib_dir: Rc<LibDir>, state: State) -> Self {
        Self { lib_dir, state: RefCell::new(state) }
    }

    /// The directory that it is in.
    pub(super) fn lib_dir(&self) -> &Path {
        self.lib_dir.path()
    }

    /// The user that QEMU runs as, if not as this one.
    pub(super) fn user(&self) -> Option<User> {
        self.lib_dir.user()
    }

    /// Reads the state that an earlier supervisor left.
    pub(super) fn load(lib_dir: &LibDir) -> Result<Option<State>, SupervisorError> {
        let Some(bytes) = lib_dir.read(STATE_FILE)? else { return Ok(None) };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| SupervisorError::DamagedState { path: lib_dir.path().join(STATE_FILE), source })
    }

    /// Saves that the guest has come this far.
    pub(super) fn save_phase(&self, phase: Phase) -> Result<(), SupervisorError> {
        self.state.borrow_mut().phase = phase;
        self.save()
    }

    /// Saves what runs beside QEMU now.
    pub(super) fn save_helpers(&self, helpers: Vec<HelperState>) -> Result<(), SupervisorError> {
        self.state.borrow_mut().helpers = helpers;
        self.save()
    }

    /// Saves what hotplug has changed.
    pub(super) fn save_configuration(&self, configuration: &Configuration) -> Result<(), SupervisorError> {
        {
            let mut state = self.state.borrow_mut();
            state.nodes.clone_from(&configuration.nodes);
            state.disks.clone_from(&configuration.disks);
            state.unfinished.clone_from(&configuration.unfinished);
            state.xml = configuration.xml.to_string();
        }
        self.save()
    }

    fn save(&self) -> Result<(), SupervisorError> {
        let text = serde_json::to_vec(&*self.state.borrow())
            .map_err(|e| SupervisorError::io(self.lib_dir.path().join(STATE_FILE), "written")(e.into()))?;
        self.lib_dir.replace(STATE_FILE, &text)
    }
}
