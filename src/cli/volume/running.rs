//! The key slots of a disk that a guest runs from: its supervisor changes them. No value goes over the control socket.

use std::path::{Path, PathBuf};

use tokio::runtime::Runtime;
use uuid::Uuid;

use crate::cli::control::{Guest, runtime};
use crate::cli::input::{Allow, Input};
use crate::cli::{CliError, Exit};
use crate::domain::Domain;
use crate::secret::SecretRef;
use crate::supervisor::control::DomainProxy;
use crate::supervisor::live_xml;
use crate::volume::{self, Kdf, KeySlots, SlotId, Step, Steps, VolumeError};

use super::failure::failure;

/// A disk of a running guest.
pub(super) struct RunningDisk {
    runtime: Runtime,
    guest: Guest,
    target: String,
    kdf: Kdf,
    /// Where its image is.
    path: PathBuf,
    /// The secret that opens it.
    pub secret: SecretRef,
    free: u32,
}

impl RunningDisk {
    /// Finds the disk.
    pub(super) fn find(name: &str, target: &str, kdf: Kdf) -> Result<Self, CliError> {
        let runtime = runtime()?;
        let (guest, xml) = runtime.block_on(async {
            let mut guest = Guest::connect(name).await?;
            let reply = guest.connection.dump_xml().await;
            let live = guest.result(reply, None)?;
            Ok::<_, CliError>((guest, live.xml))
        })?;
        let input = Input { name: name.to_owned(), source: xml };
        // A password of its displays is only hinted at, and nothing that is asked for here.
        let domain = input.understand(Allow::Unsupported, |root, diagnostics| {
            Domain::from_xml(&live_xml::without_redacted(root), diagnostics)
        })?;
        let disk = domain.devices.disks.iter().find(|disk| disk.target == target).ok_or_else(|| {
            CliError::new(Exit::NoInput, format!("the guest has no disk '{target}'"))
                .hint("`vmward status` shows the guest's disks")
        })?;
        let image = disk.image.as_ref();
        let secrets = image.and_then(|image| image.encryption.as_ref()).map(|e| e.secrets.as_slice());
        let Some([secret]) = secrets else {
            let message = format!("the disk '{target}' has no image that QEMU decrypts with one secret");
            return Err(CliError::new(Exit::Data, message));
        };
        let path = image.and_then(|image| image.source.local_path()).unwrap_or(target);
        let (path, secret) = (volume::canonical(Path::new(path)), secret.clone());
        Ok(Self { runtime, guest, target: target.to_owned(), kdf, path, secret, free: 0 })
    }
}

impl From<VolumeError> for CliError {
    fn from(error: VolumeError) -> Self {
        failure(error)
    }
}

impl KeySlots for RunningDisk {
    type Error = CliError;

    fn opened(&mut self, secret: Uuid) -> Result<Vec<SlotId>, CliError> {
        let secret = secret.to_string();
        let call = self.guest.connection.disk_key_slots(&self.target, &secret);
        let reply = self.runtime.block_on(call);
        let slots = self.guest.result(reply, None)?;
        self.free = slots.free;
        let parsed = slots.opened.iter().map(|slot| slot.parse());
        parsed.collect::<Result<_, ()>>().map_err(|()| {
            CliError::new(
                Exit::Unavailable,
                "the supervisor is another version of vmward: it names key slots otherwise",
            )
        })
    }

    fn has_room(&mut self) -> Result<bool, CliError> {
        Ok(self.free > 0)
    }

    fn add(&mut self, secret: Uuid, opener: Uuid, steps: &mut Steps<'_>) -> Result<(), CliError> {
        steps(Step::WriteMaterial);
        let (secret, opener) = (secret.to_string(), opener.to_string());
        let call = self.guest.connection.add_disk_key(&self.target, &secret, &opener, self.kdf.as_str());
        let reply = self.runtime.block_on(call);
        self.guest.result(reply, None)
    }

    fn remove(&mut self, slots: &[SlotId], keeper: Uuid, steps: &mut Steps<'_>) -> Result<(), CliError> {
        steps(Step::DeactivateSlot);
        let slots: Vec<String> = slots.iter().map(SlotId::to_string).collect();
        let slots: Vec<&str> = slots.iter().map(String::as_str).collect();
        let keeper = keeper.to_string();
        let call = self.guest.connection.remove_disk_keys(&self.target, &slots, &keeper);
        let reply = self.runtime.block_on(call);
        self.guest.result(reply, None)
    }

    fn finish(&mut self, _secret: Uuid, _steps: &mut Steps<'_>) -> Result<(), CliError> {
        Ok(())
    }

    fn path(&self) -> &Path {
        &self.path
    }
}
