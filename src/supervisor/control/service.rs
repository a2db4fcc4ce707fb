//! The methods of `org.vmward.Domain`.

use std::cell::RefCell;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;
use zlink::Reply;
use zlink::futures_util::stream::{self, Stream};

use crate::domain::devices::password::PasswordProtocol;
use crate::qmp::{Events, QmpError, SLOW_COMMAND_DEADLINE};
use crate::secret::SecretLookup;
use crate::supervisor::hotplug::{self, DETACH_DEADLINE, Medium};
use crate::supervisor::operate::{self, NewPassword, OperationError};
use crate::supervisor::rekey::{self, RekeyTurn};
use crate::supervisor::snapshot;
use crate::supervisor::{Order, Running};
use crate::xml::Keyword;

use super::api::{
    Attached, ControlError, DiskKeySlots, DiskStatus, Failure, GuestEvent, HelperStatus, LiveXml,
    MediaChanged, Problem, QmpReply, Snapshot, SnapshotCreated, SnapshotDeleted, SnapshotDisk, Snapshots,
    Status, TlsReloaded,
};
use super::failure::problems;

/// One client's view of the domain.
pub(super) struct Service {
    pub(super) running: Rc<Running>,
    /// Held from this client's first question about keys until it goes away.
    pub(super) rekeying: RefCell<Option<RekeyTurn>>,
}

#[zlink::service(
    interface = "org.vmward.Domain",
    types = [DiskStatus, HelperStatus, Problem, Snapshot, SnapshotDisk],
    vendor = "vmward",
    product = "vmward",
    version = env!("CARGO_PKG_VERSION")
)]
impl Service {
    /// How the guest is.
    async fn status(&self) -> Result<Status, ControlError> {
        let state = self.running.qmp.execute_json("query-status", None::<&()>, STATUS_DEADLINE).await?;
        let version = self.running.qmp.version();
        let running = &self.running;
        let configuration = running.configuration();
        let disks = configuration.domain.devices.disks.iter();
        // QEMU's own, also after a recovery.
        let alias = |target: &str| {
            let parts = configuration.disks.iter().find(|parts| parts.target == target);
            parts.map(|parts| parts.alias.clone()).unwrap_or_default()
        };
        Ok(Status {
            name: running.name(),
            uuid: running.uuid().to_string(),
            // As text: a later QEMU may have states that this program has no name for.
            state: state.get("status").and_then(Value::as_str).unwrap_or("unknown").to_owned(),
            supervisor: std::process::id(),
            qemu: running.qemu_pid,
            version: format!("{}.{}.{}", version.major, version.minor, version.micro),
            started: running.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            disks: disks
                .map(|disk| DiskStatus {
                    target: disk.target.clone(),
                    alias: alias(&disk.target),
                    encrypted: disk.is_encrypted(),
                    unlocked_outside: running.is_unlocked_outside(&disk.target),
                })
                .collect(),
            helpers: running
                .helpers()
                .into_iter()
                .map(|helper| HelperStatus {
                    program: helper.program.to_owned(),
                    device: helper.device,
                    process: helper.process.as_ref().ok().copied(),
                    ended: helper.process.err(),
                })
                .collect(),
        })
    }

    /// The live XML: what was assigned is filled in, passwords are not shown.
    #[zlink(rename = "DumpXML")]
    async fn dump_xml(&self) -> LiveXml {
        LiveXml { xml: self.running.configuration().xml.to_string() }
    }

    /// Presses the power button. Returns at once: what the guest does about it shows later.
    async fn shutdown(&self) -> Result<(), ControlError> {
        self.running.order(Order::Shutdown);
        Ok(())
    }

    /// Ends the guest at once. Returns when that has begun.
    async fn destroy(&self) -> Result<(), ControlError> {
        self.running.order(Order::Destroy);
        Ok(())
    }

    /// Presses the power button, and starts the guest again when it has powered off.
    async fn reboot(&self) -> Result<(), ControlError> {
        self.running.order(Order::Reboot);
        Ok(())
    }

    /// Presses the reset button.
    async fn reset(&self) -> Result<(), ControlError> {
        self.running.qmp.execute(qapi::qmp::system_reset {}).await?;
        Ok(())
    }

    /// Stops the guest's processors.
    async fn suspend(&self) -> Result<(), ControlError> {
        self.running.qmp.execute(qapi::qmp::stop {}).await?;
        Ok(())
    }

    /// Lets them go on.
    async fn resume(&self) -> Result<(), ControlError> {
        self.running.qmp.execute(qapi::qmp::cont {}).await?;
        Ok(())
    }

    /// Plugs in the disk of a `<disk>` document. `unsupported`: what vmward does not honour is a warning.
    async fn attach_device(&self, xml: String, unsupported: Option<bool>) -> Result<Attached, ControlError> {
        let running = Rc::clone(&self.running);
        let attached =
            to_the_end(async move { hotplug::attach(&running, &xml, unsupported.unwrap_or(false)).await })
                .await??;
        Ok(Attached {
            target: attached.target,
            alias: attached.alias,
            warnings: problems(&attached.warnings),
        })
    }

    /// Takes out the disk with a target. `timeout`: how many seconds the guest may take (30).
    async fn detach_device(&self, target: String, timeout: Option<u32>) -> Result<(), ControlError> {
        let running = Rc::clone(&self.running);
        let deadline = timeout.map_or(DETACH_DEADLINE, |s| Duration::from_secs(s.into()));
        to_the_end(async move { hotplug::detach(&running, &target, deadline).await }).await??;
        Ok(())
    }

    /// The key slots of a disk's image that the value of a secret opens, as the supervisor's keystores have it. From
    /// here on the keys of this guest's disks are this client's to change, until it closes the connection.
    async fn disk_key_slots(&self, target: String, secret: String) -> Result<DiskKeySlots, ControlError> {
        self.take_turn()?;
        let running = Rc::clone(&self.running);
        let secret = rekey::parse_uuid(&secret)?;
        let slots = to_the_end(async move { rekey::key_slots(&running, &target, secret).await }).await??;
        let opened = slots.opened.iter().map(ToString::to_string).collect();
        Ok(DiskKeySlots { opened, free: u32::try_from(slots.free).unwrap_or(u32::MAX) })
    }

    /// Makes a key slot for the value of a secret in a disk's image, while the guest runs from it. `opener`: a secret whose
    /// value opens the image. `kdf`: auto, fast or slow.
    async fn add_disk_key(
        &self,
        target: String,
        secret: String,
        opener: String,
        kdf: String,
    ) -> Result<(), ControlError> {
        self.take_turn()?;
        let running = Rc::clone(&self.running);
        let (secret, opener) = (rekey::parse_uuid(&secret)?, rekey::parse_uuid(&opener)?);
        let kdf = rekey::parse_kdf(&kdf)?;
        to_the_end(async move { rekey::add_key(&running, &target, secret, opener, kdf).await }).await??;
        Ok(())
    }

    /// Removes key slots from a disk's image, while the guest runs from it. `keeper`: a secret whose value opens another
    /// slot, which stays.
    async fn remove_disk_keys(
        &self,
        target: String,
        slots: Vec<String>,
        keeper: String,
    ) -> Result<(), ControlError> {
        self.take_turn()?;
        let running = Rc::clone(&self.running);
        let (slots, keeper) = (rekey::parse_slots(&slots)?, rekey::parse_uuid(&keeper)?);
        to_the_end(async move { rekey::remove_keys(&running, &target, slots, keeper).await }).await??;
        Ok(())
    }

    /// Changes the medium of the drive with a target: to the image of a `<disk>` document, to a plain raw image at an
    /// absolute path, or, with neither, to none. `force`: even if the guest has locked the tray.
    async fn change_media(
        &self,
        target: String,
        xml: Option<String>,
        image: Option<String>,
        force: Option<bool>,
        unsupported: Option<bool>,
    ) -> Result<MediaChanged, ControlError> {
        let running = Rc::clone(&self.running);
        let medium = match (xml, image) {
            (Some(xml), _) => Medium::Xml(xml),
            (None, Some(path)) => Medium::Image(path),
            (None, None) => Medium::None,
        };
        let (force, unsupported) = (force.unwrap_or(false), unsupported.unwrap_or(false));
        let changed =
            async move { hotplug::change_media(&running, &target, medium, force, unsupported).await };
        Ok(MediaChanged { warnings: problems(&to_the_end(changed).await??) })
    }

    /// Makes a snapshot of disks, all or none: of those that are named, or of all that the guest writes to. `secret`: that
    /// of the overlays, if it is not to be that of the images below.
    async fn create_snapshot(
        &self,
        name: String,
        disks: Vec<SnapshotDisk>,
        secret: Option<String>,
    ) -> Result<SnapshotCreated, ControlError> {
        let running = Rc::clone(&self.running);
        let disks = disks.into_iter().map(|disk| (disk.target, disk.overlay)).collect();
        let secret = secret.as_deref().map(SecretLookup::named);
        let request = snapshot::Request { name, disks, secret };
        let made = to_the_end(async move { snapshot::create(&running, request).await }).await??;
        Ok(SnapshotCreated { snapshot: made.into() })
    }

    /// The snapshots that there are.
    async fn list_snapshots(&self) -> Snapshots {
        Snapshots { snapshots: snapshot::list(&self.running).into_iter().map(Into::into).collect() }
    }

    /// Deletes a snapshot: what was written since goes into the images below, and the overlays go.
    async fn delete_snapshot(&self, name: String) -> Result<SnapshotDeleted, ControlError> {
        let running = Rc::clone(&self.running);
        let kept = to_the_end(async move { snapshot::delete(&running, &name).await }).await??;
        Ok(SnapshotDeleted { kept })
    }

    /// Sets the password of a display, `vnc` or `spice`: that of a secret, named by its UUID or the id of its usage, or
    /// what the descriptor gives that comes with the call. `expires`: in seconds since 1970.
    async fn set_password(
        &self,
        protocol: String,
        secret: Option<String>,
        expires: Option<i64>,
        #[zlink(fds)] value: Vec<OwnedFd>,
    ) -> Result<(), ControlError> {
        let protocol = password_protocol(protocol)?;
        let mut values = value.into_iter();
        let password = match (secret, values.next(), values.next()) {
            (Some(name), None, _) => NewPassword::Secret(SecretLookup::named(&name)),
            (None, Some(fd), None) => NewPassword::Value(fd),
            _ => return Err(OperationError::NoValue.into()),
        };
        let running = Rc::clone(&self.running);
        to_the_end(async move { operate::set_password(&running, protocol, password, expires).await })
            .await??;
        Ok(())
    }

    /// Takes the password of a display away: nobody gets in until another one is set.
    async fn remove_password(&self, protocol: String) -> Result<(), ControlError> {
        let protocol = password_protocol(protocol)?;
        let running = Rc::clone(&self.running);
        to_the_end(async move { operate::remove_password(&running, protocol).await }).await??;
        Ok(())
    }

    /// Has the guest's displays use the certificates that are there now.
    #[zlink(rename = "ReloadTLS")]
    async fn reload_tls(&self) -> Result<TlsReloaded, ControlError> {
        let running = Rc::clone(&self.running);
        let operate::Reloaded { reloaded, kept } =
            to_the_end(async move { operate::reload_tls(&running).await }).await??;
        Ok(TlsReloaded { reloaded, kept })
    }

    /// Makes a disk that large for the guest, in bytes.
    async fn resize_disk(&self, target: String, size: u64) -> Result<(), ControlError> {
        let running = Rc::clone(&self.running);
        to_the_end(async move { operate::resize(&running, &target, size).await }).await??;
        Ok(())
    }

    /// Sends QEMU a command, past all of vmward's checks: what it plugs in vmward does not know, and what it
    /// copies may not be encrypted. Objects that carry secrets in the clear are refused.
    async fn qmp(&self, command: String, arguments: Option<Value>) -> Result<QmpReply, ControlError> {
        let hint = if carries_plain_secret(&command, arguments.as_ref()) {
            Some("name the secret in the disk's XML, or use a secret object with a keyid")
        } else if ["set_password", "change-vnc-password"].contains(&command.as_str()) {
            Some("`vmward set-password` takes it from a keystore, a file or its standard input")
        } else {
            None
        };
        if let Some(hint) = hint {
            let message = "vmward hands no secret to QEMU in the clear".to_owned();
            let failure = Failure { message, ..Failure::default() };
            return Err(ControlError::NotAllowed(failure.with_hint(Some(hint))));
        }
        let qmp = &self.running.qmp;
        let reply = qmp.execute_json(&command, arguments.as_ref(), SLOW_COMMAND_DEADLINE).await?;
        Ok(QmpReply { reply })
    }

    /// Everything that happens from now on, until the guest ends.
    #[zlink(more)]
    async fn events(
        &self,
        more: bool,
    ) -> impl Stream<Item = Result<Reply<GuestEvent>, ControlError>> + Unpin {
        Box::pin(stream::unfold(Some(self.running.qmp.events()), move |events| next(events, more)))
    }
}

impl Service {
    /// Keys are changed by one client at a time, from its first question to its end: what one has found out about a disk
    /// must hold until it is done.
    fn take_turn(&self) -> Result<(), ControlError> {
        let mut turn = self.rekeying.borrow_mut();
        if turn.is_none() {
            *turn = Some(self.running.rekey_turn().ok_or(rekey::RekeyError::Busy)?);
        }
        Ok(())
    }
}

/// How long QEMU may take to say how it is, busy with keys or not.
const STATUS_DEADLINE: Duration = crate::qmp::COMMAND_DEADLINE;

impl From<snapshot::Snapshot> for Snapshot {
    fn from(made: snapshot::Snapshot) -> Self {
        let disk = |d: snapshot::SnapshotDisk| SnapshotDisk { target: d.target, overlay: Some(d.overlay) };
        Self { name: made.name, created: made.created, disks: made.disks.into_iter().map(disk).collect() }
    }
}

fn password_protocol(word: String) -> Result<PasswordProtocol, ControlError> {
    PasswordProtocol::from_word(&word).ok_or_else(|| OperationError::NoSuchProtocol(word).into())
}

/// Runs a change to its end even if the client that asked for it goes away meanwhile.
async fn to_the_end<T: 'static>(change: impl Future<Output = T> + 'static) -> Result<T, ControlError> {
    tokio::task::spawn_local(change).await.map_err(|e| ControlError::Failed(Failure::of(&e)))
}

/// Whether a command would put a secret into the monitor, and into `qom-get`, in the clear.
fn carries_plain_secret(command: &str, arguments: Option<&Value>) -> bool {
    let Some(arguments) = arguments.filter(|_| command == "object-add") else { return false };
    arguments.get("qom-type").and_then(Value::as_str) == Some("secret")
        && arguments.get("data").is_some()
        && arguments.get("keyid").is_none()
}

/// The next event for a client; without `more` it is the last.
async fn next(
    events: Option<Events>,
    more: bool,
) -> Option<(Result<Reply<GuestEvent>, ControlError>, Option<Events>)> {
    let mut events = events?;
    let event = match events.next().await {
        Ok(event) => GuestEvent {
            name: event.name.clone(),
            data: Value::Object(event.data.clone()),
            microseconds: event.microseconds,
        },
        Err(QmpError::EventsMissed(count)) => GuestEvent {
            name: "EVENTS_MISSED".to_owned(),
            data: serde_json::json!({ "count": count }),
            microseconds: None,
        },
        Err(e) => return Some((Err(e.into()), None)),
    };
    let reply = Reply::new(Some(event)).set_continues(Some(more));
    Some((Ok(reply), more.then_some(events)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_secrets_in_the_clear_are_refused() {
        let add = |arguments: Value| carries_plain_secret("object-add", Some(&arguments));
        assert!(add(json!({"qom-type": "secret", "id": "x", "data": "hunter2"})));
        assert!(!add(json!({"qom-type": "secret", "id": "x", "data": "zzz", "keyid": "masterKey0"})));
        assert!(!add(json!({"qom-type": "iothread", "id": "x"})));
        assert!(!carries_plain_secret("query-status", None));
    }
}
