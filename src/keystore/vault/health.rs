//! What is good to know of a Vault server before it matters: tokens and certificates that end.

use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use crate::keystore::{Health, KeystoreError};

use super::session::{Answer, Question, Server};
use super::tls;
use super::uri::Auth;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// When a certificate should have been renewed.
const CERTIFICATE_WARNING: Duration = Duration::from_secs(14 * 24 * 60 * 60);

#[derive(Deserialize)]
struct Token {
    /// Seconds; 0 for one that does not end.
    #[serde(default)]
    ttl: u64,
    #[serde(default)]
    policies: Option<Vec<String>>,
}

pub(super) fn of(server: &Server) -> Result<Vec<Health>, KeystoreError> {
    let session = server.session()?;
    session.check_engine_now()?;
    let mut found = Vec::new();
    let answer = session.ask(&Question::get("auth/token/lookup-self"))?;
    let Answer::Done(body) = &answer else { return Ok(found) };
    let token: Token = body.data().ok_or_else(|| session.senseless(None, "it is nothing about a token"))?;
    let options = &server.uri.options;
    let by_file = matches!(options.auth, Some(Auth::Token(_)));
    let whose = if by_file { "the token in its file" } else { "a token by AppRole" };
    let left = Duration::from_secs(token.ttl);
    let ends = if left.is_zero() { "does not end".to_owned() } else { format!("ends in {}", span(left)) };
    found.push(Health {
        about: "token",
        message: format!("{whose} {ends}"),
        // One by AppRole is followed by the next.
        warning: by_file && !left.is_zero() && left < DAY,
    });
    if token.policies.is_some_and(|policies| policies.iter().any(|p| p == "root")) {
        let message = format!("{whose} may do everything on that server (policy root)");
        found.push(Health { about: "token", message, warning: true });
    }
    if !server.uri.tls && !server.uri.is_loopback() {
        let message = "tokens and values go over the network unencrypted: use vault+https".to_owned();
        found.push(Health { about: "connection", message, warning: true });
    }
    let shown = session.certificate.lock().unwrap_or_else(PoisonError::into_inner).clone();
    found.extend(shown.and_then(|c| tls::end_of(&c)).map(|end| certificate("the server's certificate", end)));
    if let Some((file, _)) = &options.client {
        found.extend(tls::end_of_own(file)?.map(|end| certificate("the client's certificate", end)));
    }
    Ok(found)
}

fn certificate(whose: &str, end: SystemTime) -> Health {
    let left = end.duration_since(SystemTime::now()).unwrap_or_default();
    let ends = if left.is_zero() { "has expired".to_owned() } else { format!("ends in {}", span(left)) };
    Health { about: "certificate", message: format!("{whose} {ends}"), warning: left < CERTIFICATE_WARNING }
}

fn span(time: Duration) -> String {
    let minutes = time.as_secs() / 60;
    match minutes {
        0..120 => format!("{minutes} min"),
        120..2880 => format!("{} h", minutes / 60),
        _ => format!("{} days", minutes / 60 / 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_soon_is_a_warning() {
        let now = SystemTime::now();
        assert!(!certificate("it", now + 30 * DAY).warning);
        assert!(certificate("it", now + DAY).warning);
        let expired = certificate("it", now - DAY);
        assert!(expired.warning && expired.message == "it has expired");
        assert_eq!(span(Duration::from_secs(7199)), "119 min");
        assert_eq!(span(3 * DAY), "3 days");
    }
}
