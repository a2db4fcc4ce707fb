//! `io.systemd.MachineInstance`, by which `machinectl` controls a machine (systemd 261 and later). It has a socket of its
//! own, as some of its methods have the names of vmward's, and zlink's services cannot tell them apart.
//!
//! Of its methods those that plug storage are not served: their disks come as descriptors, without a description.

use std::rc::Rc;

use qapi::qmp::{cont, stop};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zlink::Reply;
use zlink::futures_util::stream::{self, Stream};
use zlink::introspect::{self, CustomType, Type};

use crate::qmp::{COMMAND_DEADLINE, Events, QmpError};
use crate::supervisor::{Order, Running};

/// How the machine is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Type)]
pub(super) struct Description {
    /// Whether its processors run.
    pub(super) running: bool,
    /// QEMU's run state.
    pub(super) status: String,
    /// Its memory.
    pub(super) memory: Memory,
}

/// A machine's memory, in bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, CustomType)]
#[serde(rename_all = "camelCase")]
#[zlink(rename_all = "camelCase")]
pub(super) struct Memory {
    /// What it was started with.
    pub(super) configured_bytes: u64,
    /// What the balloon was set to.
    pub(super) target_bytes: u64,
    /// What it has now, if that is known.
    pub(super) actual_bytes: Option<u64>,
}

/// Whether the machine runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Type)]
pub(super) struct RunStatus {
    /// Whether its processors run.
    pub(super) running: bool,
    /// QEMU's run state.
    pub(super) status: String,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Type)]
pub(super) struct MachineEvent {
    /// QEMU's name for it.
    pub(super) event: String,
    /// What QEMU says about it.
    pub(super) data: Option<Value>,
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, zlink::ReplyError, introspect::ReplyError)]
#[zlink(interface = "io.systemd.MachineInstance")]
pub(super) enum MachineError {
    /// QEMU does not answer, or has ended.
    NotConnected,
    /// QEMU refused.
    NotSupported,
}

impl From<QmpError> for MachineError {
    fn from(error: QmpError) -> Self {
        tracing::debug!("a call of machinectl failed: {error}");
        match error {
            QmpError::Refused { .. } => Self::NotSupported,
            _ => Self::NotConnected,
        }
    }
}

/// One client's view of the machine.
pub(super) struct Machine {
    pub(super) running: Rc<Running>,
}

#[zlink::service(
    interface = "io.systemd.MachineInstance",
    types = [Memory],
    vendor = "vmward",
    product = "vmward",
    version = env!("CARGO_PKG_VERSION")
)]
impl Machine {
    /// Ends the machine at once.
    async fn terminate(&self) -> Result<(), MachineError> {
        self.running.order(Order::Destroy);
        Ok(())
    }

    /// Presses the power button.
    async fn power_off(&self) -> Result<(), MachineError> {
        self.running.order(Order::Shutdown);
        Ok(())
    }

    /// Presses the power button, and starts the machine again when it has powered off.
    async fn reboot(&self) -> Result<(), MachineError> {
        self.running.order(Order::Reboot);
        Ok(())
    }

    /// Stops the machine's processors.
    async fn pause(&self) -> Result<(), MachineError> {
        self.running.qmp.execute(stop {}).await?;
        Ok(())
    }

    /// Lets them go on.
    async fn resume(&self) -> Result<(), MachineError> {
        self.running.qmp.execute(cont {}).await?;
        Ok(())
    }

    /// Whether the machine runs (systemd 261; later ones call Describe).
    async fn query_status(&self) -> Result<RunStatus, MachineError> {
        let state = self.running.qmp.execute_json("query-status", None::<&()>, COMMAND_DEADLINE).await?;
        Ok(RunStatus {
            running: state.get("running").and_then(Value::as_bool).unwrap_or(false),
            // As text: a later QEMU may have states that this program has no name for.
            status: state.get("status").and_then(Value::as_str).unwrap_or("unknown").to_owned(),
        })
    }

    /// How the machine is.
    async fn describe(&self) -> Result<Description, MachineError> {
        let RunStatus { running, status } = self.query_status().await?;
        let configuration = self.running.configuration();
        let memory = &configuration.domain.memory;
        let memory =
            Memory { configured_bytes: memory.total, target_bytes: memory.current, actual_bytes: None };
        Ok(Description { running, status, memory })
    }

    /// Everything that happens from now on, or what of it is in `filter`, until the machine ends.
    #[zlink(more)]
    async fn subscribe_events(
        &self,
        more: bool,
        filter: Option<Vec<String>>,
    ) -> impl Stream<Item = Result<Reply<MachineEvent>, MachineError>> + Unpin {
        let wanted = (self.running.qmp.events(), filter);
        Box::pin(stream::unfold(Some(wanted), move |wanted| async move {
            let (mut events, filter) = wanted?;
            let event = next(&mut events, filter.as_deref()).await;
            let rest = (more && event.is_ok()).then_some((events, filter));
            Some((event.map(|event| Reply::new(Some(event)).set_continues(Some(more))), rest))
        }))
    }
}

/// The next event that a client wants.
async fn next(events: &mut Events, filter: Option<&[String]>) -> Result<MachineEvent, MachineError> {
    loop {
        let (event, data) = match events.next().await {
            Ok(event) => (event.name.clone(), Some(Value::Object(event.data.clone()))),
            Err(QmpError::EventsMissed(count)) => {
                ("EVENTS_MISSED".to_owned(), Some(serde_json::json!({ "count": count })))
            }
            Err(e) => return Err(e.into()),
        };
        if filter.is_none_or(|wanted| wanted.contains(&event)) {
            return Ok(MachineEvent { event, data });
        }
    }
}
