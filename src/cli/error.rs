//! How a command fails: a message, its causes, a hint, and an exit code.

use std::error::Error;
use std::process::ExitCode;

/// The documented exit codes (those of sysexits.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 64: the arguments make no sense.
    Usage = 64,
    /// 65: bad XML or data.
    Data = 65,
    /// 66: no such file.
    NoInput = 66,
    /// 69: QEMU or a keystore is unavailable.
    Unavailable = 69,
    /// 70: a fault of vmward's own.
    Internal = 70,
    /// 75: trying again may help.
    TryAgain = 75,
    /// 77: no permission, or the wrong key.
    NoPermission = 77,
    /// 78: the configuration is wrong.
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A failed command.
#[derive(Debug)]
pub struct CliError {
    /// What the process exits with.
    pub exit: Exit,
    /// One sentence, or a rendered list of diagnostics.
    pub message: String,
    /// Why, outermost first.
    pub source: Option<Box<dyn Error + Send + Sync>>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl CliError {
    /// A failure with nothing but a message.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), source: None, hint: None }
    }

    /// The same with its cause.
    pub fn caused_by(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same with advice.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Prints the failure to stderr.
    pub fn report(&self) -> ExitCode {
        if self.message.starts_with("error") || self.message.starts_with("warning") {
            eprint!("{}", self.message);
        } else {
            eprintln!("error: {}", self.message);
        }
        let mut cause = self.source.as_deref().map(|e| e as &dyn Error);
        while let Some(e) = cause {
            eprintln!("  caused by: {e}");
            cause = e.source();
        }
        if let Some(hint) = &self.hint {
            eprintln!("Hint: {hint}");
        }
        self.exit.into()
    }
}
