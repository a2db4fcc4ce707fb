//! The client's side of the control socket.

use zlink::futures_util::Stream;

use super::api::{Attached, ControlError, DiskKeySlots, GuestEvent, LiveXml, QmpReply, Status};

/// The methods of `org.vmward.Domain`, called over a [`zlink::tokio::unix::Connection`].
#[zlink::proxy("org.vmward.Domain")]
pub trait DomainProxy {
    /// How the guest is.
    async fn status(&mut self) -> zlink::Result<Result<Status, ControlError>>;
    /// The live XML.
    #[zlink(rename = "DumpXML")]
    async fn dump_xml(&mut self) -> zlink::Result<Result<LiveXml, ControlError>>;
    /// Presses the power button.
    async fn shutdown(&mut self) -> zlink::Result<Result<(), ControlError>>;
    /// Ends the guest at once.
    async fn destroy(&mut self) -> zlink::Result<Result<(), ControlError>>;
    /// Asks the guest to shut down, and starts it again.
    async fn reboot(&mut self) -> zlink::Result<Result<(), ControlError>>;
    /// Presses the reset button.
    async fn reset(&mut self) -> zlink::Result<Result<(), ControlError>>;
    /// Stops the guest's processors.
    async fn suspend(&mut self) -> zlink::Result<Result<(), ControlError>>;
    /// Lets them go on.
    async fn resume(&mut self) -> zlink::Result<Result<(), ControlError>>;
    /// Plugs a disk in.
    async fn attach_device(
        &mut self,
        xml: &str,
        unsupported: Option<bool>,
    ) -> zlink::Result<Result<Attached, ControlError>>;
    /// Takes a disk out.
    async fn detach_device(
        &mut self,
        target: &str,
        timeout: Option<u32>,
    ) -> zlink::Result<Result<(), ControlError>>;
    /// The key slots that a secret opens.
    async fn disk_key_slots(
        &mut self,
        target: &str,
        secret: &str,
    ) -> zlink::Result<Result<DiskKeySlots, ControlError>>;
    /// Makes a key slot for a secret.
    async fn add_disk_key(
        &mut self,
        target: &str,
        secret: &str,
        opener: &str,
        kdf: &str,
    ) -> zlink::Result<Result<(), ControlError>>;
    /// Removes key slots.
    async fn remove_disk_keys(
        &mut self,
        target: &str,
        slots: &[&str],
        keeper: &str,
    ) -> zlink::Result<Result<(), ControlError>>;
    /// Sends QEMU a command.
    async fn qmp(
        &mut self,
        command: &str,
        arguments: Option<serde_json::Value>,
    ) -> zlink::Result<Result<QmpReply, ControlError>>;
    /// Everything that happens from now on.
    #[zlink(more)]
    async fn events(
        &mut self,
    ) -> zlink::Result<impl Stream<Item = zlink::Result<Result<GuestEvent, ControlError>>>>;
}
