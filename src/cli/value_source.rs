//! A secret's value from stdin, a file or a descriptor, never from an argument.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

use crate::secret::{SecretValue, ValueError};

use super::{CliError, Exit};

/// Where a value comes from, and what of it counts.
#[derive(clap::Args)]
pub(crate) struct ValueSource {
    /// Read the value from this file instead of stdin
    #[arg(long, value_name = "FILE", group = "source")]
    file: Option<PathBuf>,
    /// Read the value from this open file descriptor
    #[arg(long, value_name = "N", group = "source")]
    fd: Option<u32>,
    /// The value is given in base64
    #[arg(long, group = "newline")]
    base64: bool,
    /// Leave off the newline at the end of the value, as `echo` adds one
    #[arg(long, group = "newline")]
    strip_newline: bool,
    /// The newline at the end belongs to the value
    #[arg(long, group = "newline")]
    keep_newline: bool,
}

impl ValueSource {
    /// Whether a file or a descriptor was named.
    pub(crate) fn is_named(&self) -> bool {
        self.file.is_some() || self.fd.is_some()
    }

    /// Reads the value. On a terminal it is asked for, twice, without echo.
    pub(crate) fn read(&self) -> Result<SecretValue, CliError> {
        let stdin = io::stdin();
        let value = match (&self.file, self.fd) {
            (Some(path), _) => self.read_file(path),
            (None, Some(fd)) => self.read_file(&PathBuf::from(format!("/proc/self/fd/{fd}"))),
            (None, None) if stdin.is_terminal() => prompt_twice(stdin.as_fd()),
            // Around the standard library's buffer, which nobody zeroizes.
            (None, None) => match stdin.as_fd().try_clone_to_owned() {
                Ok(fd) => self.take(File::from(fd)),
                Err(e) => Err(failed(ValueError::Read(e))),
            },
        }?;
        if value.is_empty() {
            return Err(CliError::new(Exit::Data, "the value is empty"));
        }
        Ok(value)
    }

    fn read_file(&self, path: &PathBuf) -> Result<SecretValue, CliError> {
        let file = File::open(path).map_err(|e| {
            let exit = match e.kind() {
                io::ErrorKind::PermissionDenied => Exit::NoPermission,
                _ => Exit::NoInput,
            };
            let failure = CliError::new(exit, format!("{} could not be opened", path.display())).caused_by(e);
            match self.fd {
                Some(_) if exit == Exit::NoPermission => {
                    failure.hint("what another user has opened can be read as stdin only: leave out --fd")
                }
                _ => failure,
            }
        })?;
        self.take(file)
    }

    /// A newline at the end is nobody's intention or the last byte of a key: it takes a word to say which. A
    /// passphrase that is silently one byte longer or shorter opens no disk.
    fn take(&self, source: impl Read) -> Result<SecretValue, CliError> {
        let mut value = SecretValue::read_from(source).map_err(failed)?;
        if self.base64 {
            return decode_base64(&value);
        }
        if value.expose().ends_with(b"\n") && !self.keep_newline {
            if !self.strip_newline {
                return Err(CliError::new(Exit::Data, "the value ends in a newline")
                    .hint("say --strip-newline to leave it off (as after `echo`), --keep-newline if it belongs to the value"));
            }
            value.truncate(value.len() - 1);
        }
        Ok(value)
    }
}

fn failed(error: ValueError) -> CliError {
    match error {
        ValueError::Read(e) => CliError::new(Exit::NoInput, "the value could not be read").caused_by(e),
        ValueError::Memory(_) => {
            CliError::new(Exit::Unavailable, "the value cannot be used").caused_by(error)
        }
        other => CliError::new(Exit::Data, other.to_string()),
    }
}

/// Decodes base64 as tools print it, in lines or not.
fn decode_base64(text: &SecretValue) -> Result<SecretValue, CliError> {
    let wrong = || CliError::new(Exit::Data, "the value is not base64");
    let mut compact = SecretValue::zeroed(text.len()).map_err(failed)?;
    let mut len = 0;
    for byte in text.expose().iter().filter(|b| !b.is_ascii_whitespace()) {
        compact.expose_mut()[len] = *byte;
        len += 1;
    }
    compact.truncate(len);
    let mut value = SecretValue::zeroed(base64::decoded_len_estimate(len)).map_err(failed)?;
    // Without the cause, which would show a byte of the value.
    let decoded = STANDARD.decode_slice(compact.expose(), value.expose_mut()).map_err(|_| wrong())?;
    value.truncate(decoded);
    Ok(value)
}

fn prompt_twice(terminal: BorrowedFd<'_>) -> Result<SecretValue, CliError> {
    let ask = |question: &str| {
        prompt(terminal, question).map_err(|e| {
            CliError::new(Exit::NoInput, "the value could not be read from the terminal").caused_by(e)
        })
    };
    let value = ask("Value: ")?;
    if ask("Again: ")? != value {
        return Err(CliError::new(Exit::Data, "the two values are not the same"));
    }
    Ok(value)
}

/// A line from the terminal, without its end.
fn prompt(terminal: BorrowedFd<'_>, question: &str) -> io::Result<SecretValue> {
    // The longest line that a terminal gives (N_TTY_BUF_SIZE of Linux).
    const LINE: usize = 4096;
    let mut value = SecretValue::zeroed(LINE).map_err(io::Error::other)?;
    // First of all, so that nothing is shown of what somebody types as soon as the question is there.
    let silent = NoEcho::new(terminal)?;
    eprint!("{question}");
    let len = nix::unistd::read(terminal, value.expose_mut())?;
    drop(silent);
    eprintln!();
    let line = &value.expose()[..len];
    let len = line.strip_suffix(b"\n").map_or(len, <[u8]>::len);
    value.truncate(len);
    Ok(value)
}

/// A terminal that does not show what is typed, as long as this lives.
struct NoEcho<'a> {
    terminal: BorrowedFd<'a>,
    before: Termios,
}

impl<'a> NoEcho<'a> {
    fn new(terminal: BorrowedFd<'a>) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut silent = before.clone();
        silent.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(terminal, SetArg::TCSAFLUSH, &silent)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for NoEcho<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.terminal, SetArg::TCSAFLUSH, &self.before);
    }
}
