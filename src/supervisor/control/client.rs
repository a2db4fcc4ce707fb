//! The client's side of the control socket.

use std::os::fd::OwnedFd;

use zlink::futures_util::Stream;

use super::api::{
    Attached, ControlError, DiskKeySlots, GuestEvent, LiveXml, MediaChanged, QmpReply, SnapshotCreated,
    SnapshotDeleted, SnapshotDisk, Snapshots, Status, TlsReloaded,
};

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
    /// Changes the medium of a drive.
    async fn change_media(
        &mut self,
        target: &str,
        xml: Option<&str>,
        image: Option<&str>,
        force: Option<bool>,
        unsupported: Option<bool>,
    ) -> zlink::Result<Result<MediaChanged, ControlError>>;
    /// Makes a snapshot of disks.
    async fn create_snapshot(
        &mut self,
        name: &str,
        disks: &[SnapshotDisk],
        secret: Option<&str>,
    ) -> zlink::Result<Result<SnapshotCreated, ControlError>>;
    /// The snapshots that there are.
    async fn list_snapshots(&mut self) -> zlink::Result<Result<Snapshots, ControlError>>;
    /// Merges a snapshot's overlays into what is below them.
    async fn delete_snapshot(&mut self, name: &str) -> zlink::Result<Result<SnapshotDeleted, ControlError>>;
    /// Sets the password of a display: that of a secret, or what is in the descriptor that comes with the call.
    async fn set_password(
        &mut self,
        protocol: &str,
        secret: Option<&str>,
        expires: Option<i64>,
        #[zlink(fds)] value: Vec<OwnedFd>,
    ) -> zlink::Result<Result<(), ControlError>>;
    /// Takes the password of a display away.
    async fn remove_password(&mut self, protocol: &str) -> zlink::Result<Result<(), ControlError>>;
    /// Has certificates read again.
    #[zlink(rename = "ReloadTLS")]
    async fn reload_tls(&mut self) -> zlink::Result<Result<TlsReloaded, ControlError>>;
    /// Makes a disk larger.
    async fn resize_disk(&mut self, target: &str, size: u64) -> zlink::Result<Result<(), ControlError>>;
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
