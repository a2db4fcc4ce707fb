//! The passwords of VNC and SPICE.
//!
//! The one that a guest is started with QEMU gets as an encrypted secret object. For a change of it QEMU has one
//! command, `set_password`, which takes it in the clear: it passes through the monitor's socket, which nobody but
//! the supervisor is connected to.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::Serialize;
use serde_json::json;

use crate::domain::Domain;
use crate::domain::devices::graphics::{Graphics, GraphicsKind};
use crate::domain::devices::password::{PasswordProtocol, password_secret};
use crate::keystore::ResolvedSecrets;
use crate::qmp::{COMMAND_DEADLINE, Qmp, QmpError};
use crate::secret::{SecretLookup, SecretRef, SecretValue, ValueError, os_random};
use crate::supervisor::{Checkpoint, Running, SupervisorError};
use crate::xml::Span;

use super::OperationError;

/// A password that comes with a call.
pub enum NewPassword {
    /// In something that can be read to its end at once: a pipe whose other end is closed, a file.
    Value(OwnedFd),
    /// In a keystore.
    Secret(SecretLookup),
}

/// As the monitor takes it.
#[derive(Serialize)]
struct SetPassword<'a> {
    protocol: &'a str,
    password: &'a str,
}

/// Says so before anything is started if a secret's value is too long for a password.
pub(in crate::supervisor) fn check_passwords(
    domain: &Domain,
    secrets: &ResolvedSecrets,
) -> Result<(), SupervisorError> {
    for (protocol, password) in domain.devices.graphics.iter().filter_map(Graphics::password) {
        let value = password.secret().and_then(|secret| secrets.get(secret));
        if value.is_some_and(|value| value.len() > protocol.longest_password()) {
            return Err(SupervisorError::LongPassword(protocol));
        }
    }
    Ok(())
}

/// Has the passwords that a guest is started with expire when the XML says.
pub(in crate::supervisor) async fn limit_passwords(qmp: &Qmp, domain: &Domain) -> Result<(), QmpError> {
    for (protocol, password) in domain.devices.graphics.iter().filter_map(Graphics::password) {
        if let Some(valid_to) = password.valid_to {
            expire(qmp, protocol, &valid_to.to_string()).await?;
        }
    }
    Ok(())
}

/// Sets the password of a display. `expires`: in seconds since 1970. Where it fails midway, nobody gets in.
pub async fn set_password(
    running: &Running,
    protocol: PasswordProtocol,
    password: NewPassword,
    expires: Option<i64>,
) -> Result<(), OperationError> {
    require_display(running, protocol)?;
    match password {
        NewPassword::Value(fd) => {
            let value = read(fd).map_err(OperationError::Value)?;
            put(running, protocol, &value, expires).await
        }
        NewPassword::Secret(lookup) => {
            let secret = password_secret(lookup, Span::default());
            let found = fetch(running, &secret).await?;
            let value = found.get(&secret).ok_or(OperationError::Aborted)?;
            put(running, protocol, value, expires).await
        }
    }
}

/// Fetches one secret.
pub(super) async fn fetch(running: &Running, secret: &SecretRef) -> Result<ResolvedSecrets, OperationError> {
    let keystores = Arc::clone(&running.keystores);
    let wanted = [secret.clone()];
    // A keystore may be a server that does not answer: the guest's supervision goes on meanwhile.
    let found = tokio::task::spawn_blocking(move || keystores.resolve(&wanted)).await;
    found.map_err(|_| OperationError::Aborted)?.map_err(|mut unresolved| {
        unresolved.pop().map_or(OperationError::Aborted, |u| OperationError::Secret(u.error))
    })
}

/// Takes the password of a display away: nobody gets in until another one is set.
pub async fn remove_password(running: &Running, protocol: PasswordProtocol) -> Result<(), OperationError> {
    require_display(running, protocol)?;
    let _change = running.change().await;
    lock_out(running, protocol).await?;
    // QEMU keeps a password that has expired: it gets one that nobody knows.
    let random = SecretValue::random(RANDOM_LEN, &mut os_random()).map_err(OperationError::Value)?;
    let mut text = SecretValue::zeroed(RANDOM_LEN.div_ceil(3) * 4).map_err(OperationError::Value)?;
    let encoded = STANDARD.encode_slice(random.expose(), text.expose_mut());
    encoded.map_err(|_| OperationError::Value(ValueError::TooLong))?;
    tell(&running.qmp, protocol, &text).await
}

/// As base64 these fill the longest password of VNC.
const RANDOM_LEN: usize = 6;

fn require_display(running: &Running, protocol: PasswordProtocol) -> Result<(), OperationError> {
    let is_it = |graphics: &Graphics| match protocol {
        PasswordProtocol::Vnc => matches!(graphics.kind, GraphicsKind::Vnc(_)),
        PasswordProtocol::Spice => matches!(graphics.kind, GraphicsKind::Spice(_)),
    };
    match running.configuration().domain.devices.graphics.iter().any(is_it) {
        true => Ok(()),
        false => Err(OperationError::NoDisplay(protocol)),
    }
}

/// Reads what a client has sent, and waits for no more of it.
fn read(fd: OwnedFd) -> Result<SecretValue, ValueError> {
    let system = |e: nix::Error| ValueError::Read(e.into());
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL).map_err(system)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map_err(system)?;
    SecretValue::read_from(File::from(fd))
}

async fn put(
    running: &Running,
    protocol: PasswordProtocol,
    value: &SecretValue,
    expires: Option<i64>,
) -> Result<(), OperationError> {
    value.as_passphrase().map_err(OperationError::Value)?;
    if value.len() > protocol.longest_password() {
        return Err(OperationError::LongPassword(protocol));
    }
    let _change = running.change().await;
    // First nobody gets in, so that neither the old password lives as long as the new one nor the reverse.
    lock_out(running, protocol).await?;
    tell(&running.qmp, protocol, value).await?;
    let until = expires.map_or_else(|| "never".to_owned(), |seconds| seconds.to_string());
    expire(&running.qmp, protocol, &until).await.map_err(OperationError::Password)?;
    Checkpoint::ExpirySet.passed();
    Ok(())
}

async fn lock_out(running: &Running, protocol: PasswordProtocol) -> Result<(), OperationError> {
    expire(&running.qmp, protocol, "now").await.map_err(OperationError::Password)?;
    Checkpoint::LockedOut.passed();
    Ok(())
}

async fn tell(qmp: &Qmp, protocol: PasswordProtocol, value: &SecretValue) -> Result<(), OperationError> {
    let password = value.as_passphrase().map_err(OperationError::Value)?;
    let arguments = SetPassword { protocol: protocol.as_str(), password };
    match qmp.execute_json("set_password", Some(&arguments), COMMAND_DEADLINE).await {
        Ok(_) => {
            Checkpoint::PasswordSet.passed();
            Ok(())
        }
        // monitor/qmp-cmds.c, of a display that asks for none.
        Err(e) if e.refusal().is_some_and(|(_, desc)| desc.contains("Could not set password")) => {
            Err(OperationError::NoPasswords(protocol))
        }
        Err(e) => Err(OperationError::Password(e)),
    }
}

/// `when`: `now`, `never`, or seconds since 1970.
async fn expire(qmp: &Qmp, protocol: PasswordProtocol, when: &str) -> Result<(), QmpError> {
    let arguments = json!({ "protocol": protocol.as_str(), "time": when });
    qmp.execute_json("expire_password", Some(&arguments), COMMAND_DEADLINE).await.map(drop)
}
