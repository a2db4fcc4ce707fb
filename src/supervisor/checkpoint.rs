//! The steps at which tests stop a supervisor, to kill it or its QEMU there. Only a debug build can be stopped.

/// The variable of the environment that says where: a checkpoint's name, and after a colon how many times it is to be
/// passed first, counted from 1 (`NodeAdded:2`). The process stops itself there (SIGSTOP), once.
pub const STOP_AT: &str = "VMWARD_TEST_STOP_AT";

/// Something has just been done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checkpoint {
    /// Start: the lib dir is there, and locked.
    LibDirClaimed,
    /// Start: the master key is where QEMU finds it.
    KeyWritten,
    /// Start: QEMU is a process, of which nothing is saved yet.
    Spawned,
    /// Start: the state file names it.
    StartSaved,
    /// Start: the keys of images are derived, QEMU has opened none.
    Derived,
    /// Start: QEMU has greeted, its disks are open.
    Greeted,
    /// Start: QEMU has no secret any more.
    SecretsDropped,
    /// Start: the state file says that the guest runs. It does not yet.
    RunSaved,
    /// Start: its processors run.
    Continued,
    /// Start, and coming back: the service manager knows.
    Ready,
    /// Attach: what serves the images runs, of which nothing is saved yet.
    Served,
    /// Attach: the images are unlocked, QEMU has not heard of them.
    Unlocked,
    /// Attach: QEMU has been sent all that is behind the device, and may have made none of it or all.
    BackendSent,
    /// Attach: an object is made.
    ObjectAdded,
    /// Attach, snapshot: QEMU has a descriptor.
    DescriptorAdded,
    /// Attach: a node is open.
    NodeAdded,
    /// Start, attach: QEMU shows the header of an image on a server, to be compared.
    HeaderShown,
    /// Attach: the guest has the device.
    DeviceAdded,
    /// Attach: the disk is saved.
    AttachSaved,
    /// Detach: the guest has let go of the device.
    Unplugged,
    /// A step in QEMU is undone: a secret that is needed no more, a disk's node.
    Undone,
    /// Detach: the disk is forgotten.
    DetachSaved,
    /// Rekey, snapshot: QEMU has secrets for a moment.
    Lent,
    /// Rekey: QEMU has changed a key slot, or the supervisor is about to take a step in the image's header.
    KeyArea,
    /// Snapshot: the file of an overlay is there.
    OverlayMade,
    /// Snapshot: all overlays are open.
    OverlaysOpened,
    /// Snapshot: it is saved that the guest is about to write to the overlays.
    SwitchSaved,
    /// Snapshot: the guest writes to them.
    Switched,
    /// Snapshot: it is saved that an overlay is about to be merged.
    MergeAnnounced,
    /// Snapshot: QEMU has merged an overlay into what is below it.
    Merged,
    /// Snapshot: it is saved that the overlay is none of the guest's.
    MergeSaved,
    /// Snapshot: the file of an overlay is gone.
    OverlayRemoved,
    /// Resize: the disk has its new size.
    Resized,
    /// Change of a medium: it is saved that the drive is about to be touched.
    ChangeAnnounced,
    /// Change of a medium: the tray is open, or the guest is asked to open it.
    TrayOpened,
    /// Change of a medium: the drive is empty.
    MediumRemoved,
    /// Change of a medium: the new one is in the drive.
    MediumInserted,
    /// Change of a medium: the tray is closed.
    TrayClosed,
    /// Change of a medium: it is saved that the guest has the new one.
    MediumSaved,
    /// Change of a password: nobody gets in.
    LockedOut,
    /// Change of a password: QEMU has the new one, with which nobody gets in yet.
    PasswordSet,
    /// Change of a password: the new one lets in for as long as it is to.
    ExpirySet,
    /// Certificates: the display lets nobody in, and has the old ones.
    DisplayClosed,
    /// Stop: the guest is asked.
    PowerButton,
    /// Stop: QEMU is about to be told to quit.
    Quit,
    /// Stop: QEMU is gone.
    QemuEnded,
    /// Stop: the master key is overwritten.
    KeyOverwritten,
    /// Stop: the lib dir is empty.
    Cleared,
    /// Stop: nothing of the guest is left in this process.
    Ended,
}

impl Checkpoint {
    /// All of them.
    pub const ALL: [Self; 49] = [
        Self::LibDirClaimed,
        Self::KeyWritten,
        Self::Spawned,
        Self::StartSaved,
        Self::Derived,
        Self::Greeted,
        Self::SecretsDropped,
        Self::RunSaved,
        Self::Continued,
        Self::Ready,
        Self::Served,
        Self::Unlocked,
        Self::BackendSent,
        Self::ObjectAdded,
        Self::DescriptorAdded,
        Self::NodeAdded,
        Self::HeaderShown,
        Self::DeviceAdded,
        Self::AttachSaved,
        Self::Unplugged,
        Self::Undone,
        Self::DetachSaved,
        Self::Lent,
        Self::KeyArea,
        Self::OverlayMade,
        Self::OverlaysOpened,
        Self::SwitchSaved,
        Self::Switched,
        Self::MergeAnnounced,
        Self::Merged,
        Self::MergeSaved,
        Self::OverlayRemoved,
        Self::Resized,
        Self::ChangeAnnounced,
        Self::TrayOpened,
        Self::MediumRemoved,
        Self::MediumInserted,
        Self::TrayClosed,
        Self::MediumSaved,
        Self::LockedOut,
        Self::PasswordSet,
        Self::ExpirySet,
        Self::DisplayClosed,
        Self::PowerButton,
        Self::Quit,
        Self::QemuEnded,
        Self::KeyOverwritten,
        Self::Cleared,
        Self::Ended,
    ];

    /// Whether QEMU is to be sent the steps of an attach one at a time, because a test wants to find it between two of them.
    pub(super) fn are_apart() -> bool {
        #[cfg(debug_assertions)]
        return [Self::ObjectAdded, Self::DescriptorAdded, Self::NodeAdded, Self::DeviceAdded]
            .into_iter()
            .any(debug::is_awaited);
        #[cfg(not(debug_assertions))]
        false
    }

    /// It has been done.
    pub(super) fn passed(self) {
        #[cfg(debug_assertions)]
        debug::stop_at(self);
    }
}

#[cfg(debug_assertions)]
mod debug {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use nix::sys::signal::{Signal, raise};

    use super::{Checkpoint, STOP_AT};

    /// Where to stop, and how often that will be passed until then.
    static AT: LazyLock<Option<(String, AtomicUsize)>> = LazyLock::new(|| {
        let told = std::env::var(STOP_AT).ok()?;
        let (name, times) = told.split_once(':').unwrap_or((&told, "1"));
        Some((name.to_owned(), AtomicUsize::new(times.parse().ok()?)))
    });

    pub(super) fn is_awaited(checkpoint: Checkpoint) -> bool {
        AT.as_ref().is_some_and(|(name, _)| *name == format!("{checkpoint:?}"))
    }

    pub(super) fn stop_at(checkpoint: Checkpoint) {
        let Some((_, left)) = &*AT else { return };
        if is_awaited(checkpoint) && left.fetch_sub(1, Ordering::Relaxed) == 1 {
            // It cannot fail for this signal.
            let _ = raise(Signal::SIGSTOP);
        }
    }
}
