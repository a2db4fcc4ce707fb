//! VNC's certificates.
//!
//! Before 10.2, QEMU frees the old ones although a client may be in the middle of its handshake with them, and crashes. There
//! it is first to let nobody in: it closes the port, and opens it again.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::domain::Domain;
use crate::qemu::{Capabilities, vnc_address};
use crate::qmp::{COMMAND_DEADLINE, Qmp, QmpError};
use crate::supervisor::{Checkpoint, Running};

use super::OperationError;
use super::reload::until_free;

/// How long a client may take for its handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// How often it is looked for.
const HANDSHAKE_INTERVAL: Duration = Duration::from_millis(20);

/// VNC as QEMU has it.
struct Display {
    /// Where it listens; nothing if it does not.
    port: Option<String>,
    /// How many clients may be in the middle of their handshake.
    connecting: usize,
}

impl Display {
    /// Who is through with the handshake has the name that its certificate gave. Where none is asked for nobody has one,
    /// and everybody counts.
    async fn of(qmp: &Qmp) -> Result<Self, QmpError> {
        let known = qmp.execute_json("query-vnc-servers", None::<&()>, COMMAND_DEADLINE).await?;
        let list = |name: &str| known[0][name].as_array().into_iter().flatten();
        let port = list("server").find_map(|server| server["service"].as_str()).map(ToOwned::to_owned);
        let connecting = list("clients").filter(|client| client.get("x509_dname").is_none()).count();
        Ok(Self { port, connecting })
    }
}

/// Has VNC use the certificates that are there now, for new connections. The future is to be run to its end: dropped midway
/// it would leave a display that listens nowhere.
pub(super) async fn exchange(running: &Running) -> Result<(), OperationError> {
    let qmp = &running.qmp;
    let reload = async || {
        let arguments = json!({ "type": "vnc", "tls-certs": true });
        let done = qmp.execute_json("display-reload", Some(&arguments), COMMAND_DEADLINE).await;
        done.map(drop).map_err(OperationError::Certificates)
    };
    let capabilities = &running.capabilities;
    if capabilities.keeps_tls_credentials() {
        return reload().await;
    }
    let start = Instant::now();
    loop {
        let Display { port, mut connecting } =
            Display::of(qmp).await.map_err(OperationError::Certificates)?;
        if connecting == 0 {
            let address = vnc_address(&running.configuration().domain, capabilities, port.as_deref());
            listen(qmp, None).await.map_err(OperationError::Certificates)?;
            Checkpoint::DisplayClosed.passed();
            let done = match Display::of(qmp).await {
                // Nobody has come before it was closed, and nobody will.
                Ok(Display { connecting: 0, .. }) => Some(reload().await),
                Ok(display) => {
                    connecting = display.connecting;
                    None
                }
                Err(e) => Some(Err(OperationError::Certificates(e))),
            };
            until_free(async || listen(qmp, address.as_ref()).await)
                .await
                .map_err(|source| OperationError::NotListening { id: "VNC".to_owned(), source })?;
            if let Some(done) = done {
                return done;
            }
        }
        if start.elapsed() > HANDSHAKE_DEADLINE {
            return Err(OperationError::Connecting(connecting));
        }
        sleep(HANDSHAKE_INTERVAL).await;
    }
}

/// Has it listen again where a supervisor was killed in the middle of [`exchange`].
pub(in crate::supervisor) async fn reopen(
    qmp: &Qmp,
    domain: &Domain,
    capabilities: &Capabilities,
) -> Result<(), QmpError> {
    let uses_tls = domain.devices.graphics.iter().any(|graphics| graphics.tls().is_some());
    if !uses_tls || capabilities.keeps_tls_credentials() || Display::of(qmp).await?.port.is_some() {
        return Ok(());
    }
    match vnc_address(domain, capabilities, None) {
        Some(address) => listen(qmp, Some(&address)).await,
        None => Ok(()),
    }
}

/// Where it listens from now on: there, or nowhere.
async fn listen(qmp: &Qmp, address: Option<&Value>) -> Result<(), QmpError> {
    let addresses: Vec<_> = address.into_iter().collect();
    let arguments = json!({ "type": "vnc", "addresses": addresses });
    qmp.execute_json("display-update", Some(&arguments), COMMAND_DEADLINE).await.map(drop)
}
