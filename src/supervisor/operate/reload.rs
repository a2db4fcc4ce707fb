//! Certificates that are read again while the guest runs.
//!
//! QEMU does that for VNC (`display-reload`). A character device that listens is made anew (`chardev-change`), which its
//! frontend has to be able to take, first nowhere and then on the port that it has left: QEMU opens the new one before it
//! closes the old. The client of a disk's server connects once, and SPICE's library reads its certificates once.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::domain::devices::graphics::{Graphics, GraphicsKind, Port};
use crate::domain::devices::tls::Tls;
use crate::domain::disk::{Protocol, Source};
use crate::domain::{DeviceInfo, Domain};
use crate::qemu::{TlsListener, VNC_SECRET};
use crate::qmp::{COMMAND_DEADLINE, QmpError};
use crate::secret::{SecretRef, UsageKind};
use crate::supervisor::Running;
use crate::supervisor::hotplug::is_absent;
use crate::xml::Span;

use super::passwords::fetch;
use super::{OperationError, vnc};

/// How long a port that was just left may still be taken.
const PORT_DEADLINE: Duration = Duration::from_secs(5);
/// How often it is tried.
const PORT_INTERVAL: Duration = Duration::from_millis(20);

/// What became of the certificates of a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// What uses those that are there now, for new connections.
    pub reloaded: Vec<String>,
    /// What still uses those that it was opened with, and until when.
    pub kept: Vec<String>,
}

/// Has what listens for connections use the certificates that are there now. Where they are of no use, the old ones stay.
///
/// The future is to be run to its end: dropping it midway would leave a character device that leads nowhere.
pub async fn reload_tls(running: &Running) -> Result<Reloaded, OperationError> {
    let _change = running.change().await;
    let (tls, listeners, kept) = {
        let configuration = running.configuration();
        let domain = &configuration.domain;
        let usual = &running.capabilities.host.tls;
        let listener = |(info, chardev): (&DeviceInfo, _)| {
            let alias = info.alias.as_deref()?;
            Some((alias.to_owned(), TlsListener::of(chardev, alias, usual)?))
        };
        let listeners: Vec<_> = domain.devices.ports().filter_map(listener).collect();
        let kept = kept(domain, listeners.len());
        (domain.devices.graphics.iter().find_map(Graphics::tls).cloned(), listeners, kept)
    };
    let mut done = Reloaded { reloaded: Vec::new(), kept };
    if let Some(tls) = tls {
        reload_display(running, &tls).await?;
        done.reloaded.push("VNC".to_owned());
    }
    for (alias, listener) in listeners {
        let what = format!("the character device {alias}");
        match reload_listener(running, &listener).await? {
            Listening::Anew => done.reloaded.push(what),
            Listening::Connected => {
                done.kept.push(format!("{what}, to which somebody is connected, until then"))
            }
            Listening::Fixed => done.kept.push(format!("{what}, until the guest's next start")),
        }
    }
    Ok(done)
}

/// How a character device listens.
enum Listening {
    /// With the certificates that are there now.
    Anew,
    /// As before, because somebody is connected, who would be thrown out.
    Connected,
    /// As before, because the guest's device cannot be given another one.
    Fixed,
}

async fn reload_listener(running: &Running, listener: &TlsListener) -> Result<Listening, OperationError> {
    let known = running.qmp.execute_json("query-chardev", None::<&()>, COMMAND_DEADLINE).await;
    let known = known.map_err(OperationError::Certificates)?;
    let text = |c: &Value, name: &str| c.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let this = known.as_array().into_iter().flatten().find(|c| text(c, "label") == listener.id);
    let filename = this.map(|c| text(c, "filename")).unwrap_or_default();
    // "disconnected:tcp:..." without a client, "null" if an earlier reload was cut off.
    if filename != "null" && !filename.starts_with("disconnected:") {
        return Ok(Listening::Connected);
    }
    match &listener.secret {
        None => renew(running, listener).await?,
        Some((id, secret)) => {
            let found = fetch(running, secret).await?;
            let value = found.get(secret).ok_or(OperationError::Aborted)?;
            running.lend(&[(id.as_str(), value)], async || renew(running, listener).await).await?;
        }
    }
    let change = async |backend: &Value| {
        let arguments = json!({ "id": listener.id, "backend": backend });
        running.qmp.execute_json("chardev-change", Some(&arguments), COMMAND_DEADLINE).await.map(drop)
    };
    match change(&json!({ "type": "null", "data": {} })).await {
        Ok(()) => {}
        // "Backend user does not support chardev hotswap" (chardev/char.c).
        Err(QmpError::Refused { .. }) => return Ok(Listening::Fixed),
        Err(e) => return Err(OperationError::Certificates(e)),
    }
    let backend = Value::Object(listener.backend.clone());
    until_free(async || change(&backend).await)
        .await
        .map(|()| Listening::Anew)
        .map_err(|source| OperationError::NotListening { id: listener.id.clone(), source })
}

/// Has QEMU listen on a port that it has just left, which may be taken for a moment.
pub(super) async fn until_free(listen: impl AsyncFn() -> Result<(), QmpError>) -> Result<(), QmpError> {
    let start = Instant::now();
    loop {
        match listen().await {
            Err(QmpError::Refused { .. }) if start.elapsed() < PORT_DEADLINE => sleep(PORT_INTERVAL).await,
            result => return result,
        }
    }
}

/// Puts the certificates that are there now into the place of the old ones, which what uses them keeps.
async fn renew(running: &Running, listener: &TlsListener) -> Result<(), OperationError> {
    let id = json!({ "id": listener.credentials.get("id") });
    match running.qmp.execute_json("object-del", Some(&id), COMMAND_DEADLINE).await {
        Err(e) if !is_absent(&e) => return Err(OperationError::Certificates(e)),
        _ => {}
    }
    let add = running.qmp.execute_json("object-add", Some(&listener.credentials), COMMAND_DEADLINE).await;
    add.map(drop).map_err(OperationError::Certificates)
}

async fn reload_display(running: &Running, tls: &Tls) -> Result<(), OperationError> {
    match running.capabilities.host.tls.of_device(tls).secret {
        None => vnc::exchange(running).await?,
        Some(lookup) => {
            let secret = SecretRef { lookup, kind: UsageKind::Tls, text: true, span: Span::default() };
            let found = fetch(running, &secret).await?;
            let value = found.get(&secret).ok_or(OperationError::Aborted)?;
            running.lend(&[(VNC_SECRET, value)], async || vnc::exchange(running).await).await?;
        }
    }
    Ok(())
}

/// What QEMU reads certificates for once, besides so many character devices.
fn kept(domain: &Domain, listeners: usize) -> Vec<String> {
    let mut kept = Vec::new();
    let spice = |g: &Graphics| matches!(&g.kind, GraphicsKind::Spice(spice) if spice.tls_port != Port::None);
    if domain.devices.graphics.iter().any(spice) {
        kept.push("SPICE, until the guest's next start".to_owned());
    }
    let streams = domain.devices.chardevs().filter(|c| c.tls().is_some()).count().saturating_sub(listeners);
    if streams > 0 {
        kept.push(format!("{streams} character device(s), until the guest's next start"));
    }
    let uses_tls = |source: &Source| match source {
        Source::Network(network) => {
            matches!(network.protocol, Protocol::Nbd { tls: true, .. } | Protocol::Vxhs { tls: true, .. })
        }
        _ => false,
    };
    for disk in domain.devices.disks.iter().filter(|d| d.chain().any(|image| uses_tls(&image.source))) {
        kept.push(format!("the disk {}, until it is plugged in again", disk.target));
    }
    kept
}
