//! What becomes of a guest that stops, restarts or crashes.

use crate::keywords;
use crate::xml::{Diagnostics, Element, Keyword};

keywords! {
    /// What to do when a guest ends.
    pub enum LifecycleAction {
        /// End QEMU.
        Destroy = "destroy",
        /// Start the guest anew.
        Restart = "restart",
        /// Leave it as it is, to be looked at.
        Preserve = "preserve",
    }
}

/// `<on_poweroff>`, `<on_reboot>`, `<on_crash>`.
#[derive(Debug, Clone, Copy)]
pub struct Lifecycle {
    /// When the guest powers off.
    pub on_poweroff: LifecycleAction,
    /// When it restarts.
    pub on_reboot: LifecycleAction,
    /// When it reports a panic.
    pub on_crash: LifecycleAction,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self {
            on_poweroff: LifecycleAction::Destroy,
            on_reboot: LifecycleAction::Restart,
            on_crash: LifecycleAction::Destroy,
        }
    }
}

impl Lifecycle {
    /// Reads the three elements.
    pub fn from_xml(root: &Element, diagnostics: &mut Diagnostics) -> Self {
        let default = Self::default();
        locks(root, diagnostics);
        Self {
            on_poweroff: action(root, "on_poweroff", diagnostics).unwrap_or(default.on_poweroff),
            on_reboot: action(root, "on_reboot", diagnostics).unwrap_or(default.on_reboot),
            on_crash: action(root, "on_crash", diagnostics).unwrap_or(default.on_crash),
        }
    }
}

fn action(root: &Element, name: &str, diagnostics: &mut Diagnostics) -> Option<LifecycleAction> {
    let element = root.only_child(name, diagnostics)?;
    let word = match element.text().strip_prefix("coredump-") {
        Some(then @ ("destroy" | "restart")) if name == "on_crash" => {
            diagnostics.outside_qemu(
                element.text_place(),
                "vmward writes no dump of a guest that has crashed: its memory may hold keys",
            );
            then
        }
        _ => element.text(),
    };
    let found = LifecycleAction::from_word(word);
    if found.is_none() {
        diagnostics.error(
            element.text_place(),
            format!(
                "'{}' is not an action of <{name}>; it takes {}",
                element.text(),
                LifecycleAction::expected()
            ),
        );
    }
    found
}

/// `<on_lockfailure>`: what libvirt does when its lock manager loses a disk. There is none here, QEMU locks images itself.
fn locks(root: &Element, diagnostics: &mut Diagnostics) {
    let Some(element) = root.only_child("on_lockfailure", diagnostics) else { return };
    if ["poweroff", "restart", "pause", "ignore"].contains(&element.text()) {
        diagnostics.warning(
            element.span,
            "there is no lock manager here that could fail: <on_lockfailure> changes nothing",
        );
    } else {
        diagnostics.error(
            element.text_place(),
            format!("'{}' is not an action of <on_lockfailure>", element.text()),
        );
    }
}

/// `<pm>`: whether the firmware offers to suspend.
#[derive(Debug, Clone, Copy, Default)]
pub struct PowerManagement {
    /// To memory (S3).
    pub suspend_to_mem: Option<bool>,
    /// To disk (S4).
    pub suspend_to_disk: Option<bool>,
}

impl PowerManagement {
    /// Reads `<pm>`.
    pub fn from_xml(root: &Element, diagnostics: &mut Diagnostics) -> Self {
        let Some(pm) = root.only_child("pm", diagnostics) else { return Self::default() };
        let mut enabled =
            |name: &str| pm.only_child(name, diagnostics).and_then(|e| e.yes_no("enabled", diagnostics));
        Self { suspend_to_mem: enabled("suspend-to-mem"), suspend_to_disk: enabled("suspend-to-disk") }
    }
}
