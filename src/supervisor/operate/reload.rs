//! Certificates that are read again while the guest runs.
//!
//! QEMU does that for VNC (`display-reload`). What else uses certificates holds those that it was opened with: a
//! character device cannot be made anew while the old one has its port, the client of a disk's server connects once,
//! and SPICE's library reads them once.

use serde_json::json;

use crate::domain::Domain;
use crate::domain::devices::graphics::{Graphics, GraphicsKind, Port};
use crate::domain::devices::tls::Tls;
use crate::domain::disk::{Protocol, Source};
use crate::qemu::VNC_SECRET;
use crate::qmp::COMMAND_DEADLINE;
use crate::secret::{SecretRef, UsageKind};
use crate::supervisor::Running;
use crate::xml::Span;

use super::OperationError;
use super::passwords::fetch;

/// What became of the certificates of a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// What uses those that are there now, for new connections.
    pub reloaded: Vec<String>,
    /// What still uses those that it was opened with, and until when.
    pub kept: Vec<String>,
}

/// Has the guest's displays use the certificates that are there now. Where they are of no use, the old ones stay.
pub async fn reload_tls(running: &Running) -> Result<Reloaded, OperationError> {
    let _change = running.change().await;
    let (tls, kept) = {
        let configuration = running.configuration();
        (vnc(&configuration.domain).cloned(), kept(&configuration.domain))
    };
    let Some(tls) = tls else { return Ok(Reloaded { reloaded: Vec::new(), kept }) };
    match running.capabilities.host.tls.of_device(&tls).secret {
        None => reload_vnc(running).await?,
        Some(lookup) => {
            let secret = SecretRef { lookup, kind: UsageKind::Tls, text: true, span: Span::default() };
            let found = fetch(running, &secret).await?;
            let value = found.get(&secret).ok_or(OperationError::Aborted)?;
            running.lend(&[(VNC_SECRET, value)], async || reload_vnc(running).await).await?;
        }
    }
    Ok(Reloaded { reloaded: vec!["VNC".to_owned()], kept })
}

async fn reload_vnc(running: &Running) -> Result<(), OperationError> {
    let arguments = json!({ "type": "vnc", "tls-certs": true });
    let done = running.qmp.execute_json("display-reload", Some(&arguments), COMMAND_DEADLINE).await;
    done.map(drop).map_err(OperationError::Certificates)
}

fn vnc(domain: &Domain) -> Option<&Tls> {
    domain.devices.graphics.iter().find_map(Graphics::tls)
}

/// What QEMU reads certificates for once.
fn kept(domain: &Domain) -> Vec<String> {
    let mut kept = Vec::new();
    let spice = |g: &Graphics| matches!(&g.kind, GraphicsKind::Spice(spice) if spice.tls_port != Port::None);
    if domain.devices.graphics.iter().any(spice) {
        kept.push("SPICE, until the guest's next start".to_owned());
    }
    let streams = domain.devices.chardevs().filter(|c| c.tls().is_some()).count();
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
