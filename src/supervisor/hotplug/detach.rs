//! Taking a disk out.

use std::rc::Rc;
use std::time::Duration;

use crate::qmp::QmpError;
use crate::supervisor::{Change, Checkpoint, Running, live_xml};

use super::steps::{self, Unplug};
use super::{DiskParts, HotplugError};

/// How long a guest may take to let go of a disk when nobody says otherwise. Linux takes 5-6 s for a PCIe
/// slot: its attention button has a 5 s delay, for a person to press it again.
pub const DETACH_DEADLINE: Duration = Duration::from_secs(30);

/// Takes a disk out and waits until the guest has let go of it; then everything behind it goes too.
///
/// The future is to be run to its end, as that of [`super::attach`].
pub async fn detach(running: &Running, target: &str, deadline: Duration) -> Result<(), HotplugError> {
    let change = running.change().await;
    let Some(alias) = alias(running, target) else {
        return Err(HotplugError::NoSuchDisk(target.to_owned()));
    };
    let owned = || target.to_owned();
    match steps::unplug(&running.qmp, &alias, deadline).await {
        Err(source) => Err(HotplugError::Unplug { target: owned(), source }),
        Ok(Unplug::GuestRefused) => Err(HotplugError::GuestRefused(owned())),
        Ok(Unplug::StillThere(waited)) => Err(HotplugError::StillThere { target: owned(), waited }),
        Ok(Unplug::Gone) => {
            Checkpoint::Unplugged.passed();
            forget(running, &change, &alias).await
        }
    }
}

/// Tidies up after disks that go when nobody waits for them (any more): the guest let go late, or somebody
/// removed the device past vmward. Runs until QEMU ends.
pub async fn watch(running: Rc<Running>) {
    let mut events = running.qmp.events();
    // While a guest had no supervisor nobody waited.
    let mut gone = missing(&running).await;
    loop {
        for alias in gone.iter().filter(|alias| parts(&running, alias).is_some()) {
            // Whoever is waiting for this very event finishes first, and leaves nothing to do here.
            let change = running.change().await;
            if let Err(e) = forget(&running, &change, alias).await {
                tracing::warn!("{alias} is gone: {e}");
            }
        }
        gone = match events.next().await {
            Ok(event) if event.name == "DEVICE_DELETED" => {
                event.text("device").map(str::to_owned).into_iter().collect()
            }
            Ok(_) => Vec::new(),
            Err(QmpError::EventsMissed(_)) => missing(&running).await,
            Err(_) => return,
        };
    }
}

/// The aliases of disks that are no longer in QEMU.
async fn missing(running: &Running) -> Vec<String> {
    let aliases: Vec<String> = running.configuration().disks.iter().map(|d| d.alias.clone()).collect();
    let mut missing = Vec::new();
    for alias in aliases {
        if matches!(steps::is_there(&running.qmp, &alias).await, Ok(false)) {
            missing.push(alias);
        }
    }
    missing
}

fn alias(running: &Running, target: &str) -> Option<String> {
    running.configuration().disks.iter().find(|d| d.target == target).map(|d| d.alias.clone())
}

fn parts(running: &Running, alias: &str) -> Option<DiskParts> {
    running.configuration().disks.iter().find(|d| d.alias == alias).cloned()
}

/// Removes what is behind a frontend that is gone, and the disk from what is known of the guest.
async fn forget(running: &Running, change: &Change<'_>, alias: &str) -> Result<(), HotplugError> {
    let Some(parts) = parts(running, alias) else { return Ok(()) };
    let others = running.configuration().disks.clone();
    let keep = |id: &str| others.iter().any(|d| d.alias != alias && d.objects.iter().any(|o| o == id));
    let undone = steps::clean_up(&running.qmp, &parts, keep).await;
    let target = parts.target.clone();
    if !undone.left.is_empty() {
        // The disk stays known, so that the rest can be tried again.
        return Err(HotplugError::LeftOver { target, undone });
    }
    let saved = change.commit(|configuration| {
        configuration.disks.retain(|d| d.alias != alias);
        configuration.domain.devices.disks.retain(|d| d.target != target);
        if let Some(devices) = live_xml::devices(&mut configuration.xml) {
            devices.children.retain(|e| e.name != "disk" || live_xml::target(e) != Some(&target));
        }
    });
    // A supervisor that comes back ends what no disk needs.
    running.end_helpers(&parts.all_helpers()).await;
    saved.map_err(|e| HotplugError::Save(Box::new(e)))?;
    Checkpoint::DetachSaved.passed();
    Ok(())
}
