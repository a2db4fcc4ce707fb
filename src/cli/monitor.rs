//! `vmward qmp` and `vmward events`: QEMU's own voice.

use std::io::{self, Write};
use std::pin::pin;
use std::process::ExitCode;

use serde_json::{Value, json};
use zlink::futures_util::{Stream, StreamExt};

use crate::cli::output;
use crate::supervisor::control::DomainProxy;
use crate::supervisor::control::api::{ControlError, GuestEvent};

use super::control::{Guest, GuestArgs, block_on};
use super::{CliError, Exit};

/// Arguments of `vmward qmp`.
#[derive(clap::Args)]
pub(crate) struct QmpArgs {
    #[command(flatten)]
    guest: GuestArgs,
    /// A command's name, or `{"execute": ..., "arguments": ...}`
    #[arg(value_name = "COMMAND")]
    command: String,
}

/// Runs `vmward qmp`.
pub(crate) fn qmp(args: &QmpArgs) -> Result<ExitCode, CliError> {
    let (command, arguments) = parse(&args.command)?;
    let reply = block_on(async {
        let mut guest = Guest::connect(&args.guest.name).await?;
        let reply = guest.connection.qmp(&command, arguments).await;
        guest.result(reply, None)
    })?;
    output::line(format_args!("{:#}", reply.reply))?;
    Ok(ExitCode::SUCCESS)
}

/// A command's name and arguments.
fn parse(text: &str) -> Result<(String, Option<Value>), CliError> {
    if !text.trim_start().starts_with('{') {
        return Ok((text.to_owned(), None));
    }
    let usage = |message: &str| CliError::new(Exit::Usage, message);
    let value: Value =
        serde_json::from_str(text).map_err(|e| usage("the command is no JSON").caused_by(e))?;
    let Value::Object(mut members) = value else { return Err(usage("the command is no JSON object")) };
    let arguments = members.remove("arguments");
    let Some(Value::String(command)) = members.remove("execute") else {
        return Err(usage("the command lacks \"execute\""));
    };
    match members.keys().next() {
        Some(other) => Err(usage(&format!("vmward takes \"execute\" and \"arguments\", not \"{other}\""))),
        None => Ok((command, arguments)),
    }
}

/// Prints events until there are no more, or something other than an event comes.
async fn print(
    mut events: impl Stream<Item = zlink::Result<Result<GuestEvent, ControlError>>> + Unpin,
) -> Option<zlink::Result<Result<GuestEvent, ControlError>>> {
    loop {
        match events.next().await {
            Some(Ok(Ok(event))) => {
                let line = json!({
                    "event": event.name, "data": event.data, "microseconds": event.microseconds,
                });
                // Nobody reads on: `vmward events x | head` is no error.
                writeln!(io::stdout(), "{line}").ok()?;
            }
            // QEMU ended, or its supervisor after it.
            None | Some(Err(zlink::Error::UnexpectedEof) | Ok(Err(ControlError::QemuUnavailable(_)))) => {
                return None;
            }
            Some(other) => return Some(other),
        }
    }
}

/// Runs `vmward events`: one JSON object per line, until the guest ends.
pub(crate) fn events(args: &GuestArgs) -> Result<ExitCode, CliError> {
    block_on(async {
        let mut guest = Guest::connect(&args.name).await?;
        // The stream borrows the connection: what it says is judged after it.
        let failed = match guest.connection.events().await {
            Err(e) => Err(e),
            Ok(events) => match print(pin!(events)).await {
                None => return Ok(ExitCode::SUCCESS),
                Some(failed) => failed,
            },
        };
        guest.result(failed, None).map(|_| ExitCode::SUCCESS)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_a_name_or_an_object() {
        assert_eq!(parse("query-status").unwrap(), ("query-status".to_owned(), None));
        let (command, arguments) = parse(r#"{"execute": "device_del", "arguments": {"id": "x"}}"#).unwrap();
        assert_eq!((command.as_str(), arguments), ("device_del", Some(json!({"id": "x"}))));
        for wrong in ["{", "{}", r#"{"execute": 1}"#, r#"{"execute": "x", "id": 1}"#] {
            assert_eq!(parse(wrong).unwrap_err().exit, Exit::Usage, "{wrong}");
        }
    }
}
