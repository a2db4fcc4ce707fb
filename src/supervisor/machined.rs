//! The host's register of machines, systemd-machined: what is in it, `machinectl` lists and controls.
//!
//! It forgets a machine when the unit of its leader ends, so that nothing is to be done then. The leader is the
//! supervisor, which gets the signals that `machinectl` sends; newer ones (systemd 261) call the control socket instead.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::time::timeout;
use uuid::Uuid;
use zlink::tokio::unix::connect;

use super::manager;

/// How long machined may take: it may have to be started first.
const DEADLINE: Duration = Duration::from_secs(20);
/// The D-Bus service, by which an older machined is started when it is called.
const BUS_SERVICE: &str = "/usr/share/dbus-1/system-services/org.freedesktop.machine1.service";
const SERVICE: &str = "vmward";
const CLASS: &str = "vm";

/// An error of machined's: its name is all that counts.
#[derive(Debug, Deserialize, Serialize)]
struct Refused {
    error: String,
}

#[zlink::proxy("io.systemd.Machine")]
trait MachineProxy {
    async fn register(
        &mut self,
        name: &str,
        id: &str,
        service: &str,
        class: &str,
        leader: u32,
        #[zlink(rename = "controlAddress")] control_address: Option<&str>,
    ) -> zlink::Result<Result<(), Refused>>;

    async fn unregister(&mut self, name: &str) -> zlink::Result<Result<(), Refused>>;
}

/// Enters this guest in the register, if there is one. Only for a supervisor that is a service: the end of a machine
/// is to be the end of its unit, and not of the session that somebody typed `vmward run` in.
pub(super) async fn register(name: &str, uuid: Uuid, control_socket: &Path) -> bool {
    if !manager::started_this() {
        return false;
    }
    let socket = varlink_socket();
    let entered = async {
        if socket.exists() {
            match over_varlink(&socket, name, uuid, control_socket).await {
                Ok(()) => return Ok(true),
                Err(e) => tracing::debug!("machined does not take the guest over varlink: {e}"),
            }
        }
        if geteuid().is_root() && Path::new(BUS_SERVICE).exists() {
            return over_bus(name, uuid).await.map(|()| true);
        }
        Ok(false)
    };
    match timeout(DEADLINE, entered).await {
        Ok(Ok(entered)) => entered,
        Ok(Err(e)) => {
            tracing::warn!("the guest is not in machinectl's list: {e}");
            false
        }
        Err(_) => {
            tracing::warn!("the guest is not in machinectl's list: machined does not answer");
            false
        }
    }
}

/// Where machined listens (systemd 256 and later).
fn varlink_socket() -> PathBuf {
    let runtime = match geteuid().is_root() {
        true => PathBuf::from("/run"),
        false => env::var_os("XDG_RUNTIME_DIR").unwrap_or_default().into(),
    };
    runtime.join("systemd/machine/io.systemd.Machine")
}

async fn over_varlink(
    socket: &Path,
    name: &str,
    uuid: Uuid,
    control_socket: &Path,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut machined = connect(socket).await?;
    // The entry of a supervisor that was killed names a process that is gone.
    let _ = machined.unregister(name).await?;
    let id = uuid.simple().to_string();
    let control = control_socket.to_str();
    let leader = std::process::id();
    // One that does not know of control sockets refuses what it does not know.
    let mut refused = None;
    for control in [control, None] {
        match machined.register(name, &id, SERVICE, CLASS, leader, control).await? {
            Ok(()) => return Ok(()),
            Err(e) => refused = Some(e.error),
        }
    }
    Err(refused.unwrap_or_default().into())
}

/// busctl comes with systemd. A connection of one's own to the bus, for one call, would be several times as much code
/// and memory as the rest of a supervisor.
async fn over_bus(name: &str, uuid: Uuid) -> Result<(), Box<dyn std::error::Error>> {
    // As above.
    let _ = busctl("UnregisterMachine", "s", &[name.to_owned()]).await;
    let id = uuid.as_bytes();
    let mut arguments = vec![name.to_owned(), id.len().to_string()];
    arguments.extend(id.map(|byte| byte.to_string()));
    arguments.extend([SERVICE.to_owned(), CLASS.to_owned(), std::process::id().to_string(), String::new()]);
    busctl("RegisterMachine", "sayssus", &arguments).await
}

async fn busctl(
    method: &str,
    signature: &str,
    arguments: &[String],
) -> Result<(), Box<dyn std::error::Error>> {
    let output = Command::new("/usr/bin/busctl")
        .args(["--system", "--quiet", "call", "org.freedesktop.machine1", "/org/freedesktop/machine1"])
        .args(["org.freedesktop.machine1.Manager", method, signature, "--"])
        .args(arguments)
        .env_clear()
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().into()),
    }
}
