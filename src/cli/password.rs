//! What lets clients into a guest's displays: `vmward set-password` and `vmward reload-tls`.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::domain::devices::password::{PasswordProtocol, parse_valid_to};
use crate::secret::SecretValue;
use crate::supervisor;
use crate::supervisor::control::DomainProxy;
use crate::xml::Keyword;

use super::control::{Guest, GuestArgs, block_on_briefly};
use super::value_source::ValueSource;
use super::{CliError, Exit};

/// Arguments of `vmward set-password`.
#[derive(clap::Args)]
pub(crate) struct SetPasswordArgs {
    #[command(flatten)]
    guest: GuestArgs,
    /// vnc or spice
    #[arg(value_name = "vnc|spice", value_parser = protocol)]
    protocol: PasswordProtocol,
    #[command(flatten)]
    value: ValueSource,
    /// Take the value of this secret, which the guest's supervisor fetches
    #[arg(long, value_name = "UUID|USAGE", conflicts_with_all = ["file", "fd", "base64", "strip_newline", "keep_newline"])]
    secret: Option<String>,
    /// When it expires: in so many seconds (+3600), or a time in UTC (2027-01-31T18:00:00)
    #[arg(long, value_name = "WHEN", value_parser = expiry)]
    expires: Option<i64>,
    /// Take the password away: nobody gets in until another one is set
    #[arg(long, conflicts_with_all = ["file", "fd", "base64", "strip_newline", "keep_newline", "secret", "expires"])]
    remove: bool,
}

fn protocol(word: &str) -> Result<PasswordProtocol, String> {
    PasswordProtocol::from_word(word).ok_or_else(|| format!("it takes {}", PasswordProtocol::expected()))
}

/// In seconds since 1970.
fn expiry(text: &str) -> Result<i64, String> {
    let Some(seconds) = text.strip_prefix('+') else {
        return parse_valid_to(text)
            .ok_or_else(|| "it takes +SECONDS, or a time as in 2027-01-31T18:00:00".into());
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let at = seconds.parse::<u64>().ok().and_then(|s| i64::try_from(now.checked_add(s)?).ok());
    at.ok_or_else(|| "a plus is followed by a number of seconds".into())
}

/// Runs `vmward set-password`.
pub(crate) fn set(args: &SetPasswordArgs) -> Result<ExitCode, CliError> {
    supervisor::harden().map_err(|e| CliError::new(Exit::Internal, e.to_string()))?;
    let protocol = args.protocol.as_str();
    let value = match (&args.secret, args.remove) {
        (None, false) => vec![handed_over(&args.value.read()?, args.protocol)?],
        _ => Vec::new(),
    };
    block_on_briefly(async {
        let mut guest = Guest::connect(&args.guest.name).await?;
        let connection = &mut guest.connection;
        let reply = match args.remove {
            true => connection.remove_password(protocol).await,
            false => connection.set_password(protocol, args.secret.as_deref(), args.expires, value).await,
        };
        guest.result(reply, None)
    })?;
    eprintln!("the password of {} is {}", args.protocol.name(), if args.remove { "removed" } else { "set" });
    Ok(ExitCode::SUCCESS)
}

/// Runs `vmward reload-tls`.
pub(crate) fn reload_tls(args: &GuestArgs) -> Result<ExitCode, CliError> {
    let done = block_on_briefly(async {
        let mut guest = Guest::connect(&args.name).await?;
        let reply = guest.connection.reload_tls().await;
        guest.result(reply, None)
    })?;
    for what in &done.reloaded {
        eprintln!("{what} uses the new certificates for new connections");
    }
    for what in &done.kept {
        eprintln!("the old certificates stay with {what}");
    }
    if done.reloaded.is_empty() && done.kept.is_empty() {
        eprintln!("nothing of the guest uses certificates");
    }
    Ok(ExitCode::SUCCESS)
}

/// The end of a pipe that the value is in: it is in no message.
fn handed_over(value: &SecretValue, protocol: PasswordProtocol) -> Result<OwnedFd, CliError> {
    let longest = protocol.longest_password();
    if value.len() > longest {
        let message = format!("{} passwords have {longest} bytes at most", protocol.name());
        return Err(CliError::new(Exit::Data, message));
    }
    let hand_over = || {
        let (reader, mut writer) = io::pipe()?;
        // So short a value fits the pipe.
        writer.write_all(value.expose())?;
        Ok(reader.into())
    };
    hand_over().map_err(|e: io::Error| {
        CliError::new(Exit::Internal, "the password could not be handed over").caused_by(e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiries() {
        assert_eq!(expiry("2009-02-13T23:31:30"), Ok(1_234_567_890));
        let now = expiry("+0").unwrap();
        assert!((now + 60..now + 90).contains(&expiry("+60").unwrap()));
        for wrong in ["", "+", "+x", "-1", "60", "tomorrow", "2009-02-30T00:00:00", "+99999999999999999999"] {
            assert!(expiry(wrong).is_err(), "{wrong}");
        }
    }
}
