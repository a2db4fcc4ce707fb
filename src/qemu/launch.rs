//! The part of the command line that is the supervisor's own. One function makes it for a real start and for
//! `vmward argv`, so that the two cannot differ.

use std::path::PathBuf;

use serde_json::json;

use crate::domain::Domain;
use crate::domain::commandline::Deprecation;
use crate::domain::lifecycle::LifecycleAction;
use crate::secret::MASTER_KEY_ID;

use super::plan::{comma_escaped, object};
use super::properties::Properties;
use super::{Capabilities, CommandLine, JsonObject};

/// The name of the master key's file in the lib dir, as libvirt has it.
pub const MASTER_KEY_FILE: &str = "master-key.aes";

/// The descriptor by which QEMU inherits its monitor socket: the first after the standard streams.
pub const MONITOR_FD: i32 = 3;

/// What the supervisor hands to QEMU.
#[derive(Debug, Clone)]
pub struct LaunchOptions {
    /// The master key's file.
    pub master_key: PathBuf,
    /// The descriptor of the listening monitor socket, as QEMU inherits it.
    pub monitor_fd: i32,
    /// Whether QEMU is to open no disk until somebody has connected to its monitor.
    pub hold: bool,
}

/// `-compat`: what QEMU does about what is deprecated.
fn compatibility(deprecation: Option<Deprecation>) -> Option<JsonObject> {
    let input = match deprecation? {
        Deprecation::None => return None,
        Deprecation::Omit => None,
        Deprecation::Reject => Some("reject"),
        Deprecation::Crash => Some("crash"),
    };
    let mut policy = object(json!({"deprecated-output": "hide"}));
    policy.put_some("deprecated-input", input);
    Some(policy)
}

const MONITOR_ID: &str = "monitor";

/// The complete command line: the supervisor's part around the domain's.
pub fn launch_arguments(
    options: &LaunchOptions,
    domain: &Domain,
    capabilities: &Capabilities,
    mut line: CommandLine,
) -> CommandLine {
    let mut all = CommandLine::default();
    all.text("-name", format!("guest={},debug-threads=on", comma_escaped(domain.name())));
    if let Some(policy) = compatibility(domain.deprecation) {
        all.json("-compat", policy);
    }
    // No instruction is run before the monitor says so.
    all.flag("-S");
    all.json(
        "-object",
        object(
            json!({"qom-type": "secret", "id": MASTER_KEY_ID, "format": "raw", "file": options.master_key}),
        ),
    );
    all.flag("-no-user-config");
    all.flag("-nodefaults");
    // QEMU makes its character devices before it opens disks, and waits for those that it is to wait for.
    let wait = if options.hold { "on" } else { "off" };
    all.text("-chardev", format!("socket,id=charmonitor,fd={},server=on,wait={wait}", options.monitor_fd));
    match capabilities.has_monitor_objects() {
        true => all.json(
            "-object",
            object(json!({"qom-type": "monitor-qmp", "id": MONITOR_ID, "chardev": "charmonitor"})),
        ),
        false => all.text("-mon", format!("chardev=charmonitor,id={MONITOR_ID},mode=control")),
    }
    // A guest that powers off waits for the supervisor, which ends it when it has seen why.
    all.flag("-no-shutdown");
    if domain.lifecycle.on_reboot != LifecycleAction::Restart {
        all.text("-action", "reboot=shutdown");
    }
    all.arguments.append(&mut line.arguments);
    if capabilities.sandbox {
        all.text("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    }
    all.text("-msg", "timestamp=on");
    CommandLine { arguments: all.arguments, ..line }
}
