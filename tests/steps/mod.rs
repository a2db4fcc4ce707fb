//! The steps at which supervisors and their QEMUs are killed, by what is done.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod scene;

use vmward::supervisor::Checkpoint::{self, *};

pub use scene::*;

/// Steps, with how often each is passed in the operation.
pub type Steps = &'static [(Checkpoint, usize)];

/// Before these QEMU is no process.
pub const WITHOUT_QEMU: [Checkpoint; 2] = [LibDirClaimed, KeyWritten];
/// QEMU, which has never run the guest, is ended after these.
pub const HALF_STARTED: Steps = &[
    (LibDirClaimed, 1),
    (KeyWritten, 1),
    (Spawned, 1),
    (StartSaved, 1),
    (Derived, 1),
    (Greeted, 1),
    (SecretsDropped, 1),
];
pub const STARTED: Steps = &[(RunSaved, 1), (Continued, 1), (Ready, 1)];
/// The secrets of two images, two descriptors, the image and its header and what is decrypted.
pub const ATTACH: Steps = &[
    (Unlocked, 1),
    (BackendSent, 1),
    (ObjectAdded, 1),
    (DescriptorAdded, 2),
    (NodeAdded, 2),
    (Undone, 1),
    (DeviceAdded, 1),
    (AttachSaved, 1),
];
/// The same with an image on a server, whose header QEMU shows.
pub const ATTACH_SERVED: Steps = &[(HeaderShown, 1)];
/// The same with one that a helper serves, of which QEMU has not heard.
pub const ATTACH_WITH_HELPER: Steps = &[(Served, 1)];
pub const DETACH: Steps = &[(Unplugged, 1), (Undone, 2), (DetachSaved, 1)];
/// The material, the activation and the proof of the new slot; the deactivation and the material of the old one.
pub const REKEY_RAW: Steps = &[(KeyArea, 5)];
/// Both slots are QEMU's.
pub const REKEY_QCOW2: Steps = &[(Lent, 1), (KeyArea, 2)];
pub const SNAPSHOT: Steps = &[
    (OverlayMade, 1),
    (DescriptorAdded, 1),
    (Lent, 1),
    (OverlaysOpened, 1),
    (SwitchSaved, 1),
    (Switched, 1),
];
/// Both nodes of the overlay go, and what they were opened through.
pub const MERGE: Steps =
    &[(MergeAnnounced, 1), (Merged, 1), (MergeSaved, 1), (Undone, 3), (OverlayRemoved, 1)];
pub const RESIZE: Steps = &[(Resized, 1)];
/// The new medium is opened as a disk is, and its secret goes; then both nodes of the old one, and what they were opened through.
pub const EXCHANGE: Steps = &[
    (BackendSent, 1),
    (NodeAdded, 1),
    (ChangeAnnounced, 1),
    (TrayOpened, 1),
    (MediumRemoved, 1),
    (MediumInserted, 1),
    (TrayClosed, 1),
    (MediumSaved, 1),
    (Undone, 4),
];
/// What is other where there is no old medium, or no new one.
pub const INSERT: Steps = &[(MediumInserted, 1), (TrayClosed, 1), (MediumSaved, 1)];
pub const EJECT: Steps = &[(MediumRemoved, 1), (TrayClosed, 1), (MediumSaved, 1)];
pub const PASSWORD: Steps = &[(LockedOut, 1), (PasswordSet, 1), (ExpirySet, 1)];
/// Only with a QEMU that frees certificates under clients.
pub const CERTIFICATES: Steps = &[(DisplayClosed, 1)];
pub const STOP: Steps = &[(PowerButton, 1), (Quit, 1)];
/// QEMU is gone. The first time that the lib dir is emptied is at the start.
pub const STOPPED: Steps = &[(QemuEnded, 1), (KeyOverwritten, 2), (Cleared, 1), (Ended, 1)];

/// Everything there is to be passed, as the environment has it.
pub fn each(steps: Steps) -> impl Iterator<Item = (Checkpoint, String)> {
    steps.iter().flat_map(|&(step, times)| (1..=times).map(move |n| (step, format!("{step:?}:{n}"))))
}
