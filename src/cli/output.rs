//! The standard output, where data goes.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use super::{CliError, Exit};

/// Prints a text as it is.
pub(crate) fn text(text: impl Display) -> Result<(), CliError> {
    written(write!(io::stdout(), "{text}").and_then(|()| io::stdout().flush()))
}

/// Prints a text and ends the line.
pub(crate) fn line(line: impl Display) -> Result<(), CliError> {
    text(format_args!("{line}\n"))
}

/// What became of data that was written. A reader that went away (`| head`) has all that it wanted.
pub(crate) fn written(result: io::Result<()>) -> Result<(), CliError> {
    match result {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(CliError::new(Exit::Internal, "the output could not be written").caused_by(e))
        }
        _ => Ok(()),
    }
}
