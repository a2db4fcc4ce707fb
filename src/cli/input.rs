//! Reading XML files, and saying what is wrong with them.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use crate::xml::{self, Diagnostics, Element, Keyword};

use super::{CliError, Exit};

/// What is let pass with a warning.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Allow {
    /// Nothing.
    Nothing,
    /// What keeps a guest from starting and its command line from nothing, by a command that shows that.
    Shown {
        /// All that vmward does not honour as well.
        unsupported: bool,
    },
    /// All that vmward does not honour: `--allow-unsupported`.
    Unsupported,
}

impl Allow {
    /// What a command lets pass that starts a guest or checks one.
    pub fn unsupported_if(allowed: bool) -> Self {
        if allowed { Self::Unsupported } else { Self::Nothing }
    }
}

/// The value of an option that takes one of some words.
pub(crate) fn keyword<K: Keyword>(word: &str) -> Result<K, String> {
    K::from_word(word).ok_or_else(|| format!("it takes {}", K::expected()))
}

/// A text that was given to a command.
pub(crate) struct Input {
    /// Its path, or `<stdin>`.
    pub name: String,
    /// The text.
    pub source: String,
}

impl Input {
    /// Reads a file; `-` is the standard input.
    pub fn read(path: &Path) -> Result<Self, CliError> {
        let stdin = path.as_os_str() == "-";
        let name = if stdin { "<stdin>".to_owned() } else { path.display().to_string() };
        let mut bytes = Vec::new();
        let read = if stdin {
            io::stdin().read_to_end(&mut bytes).map(|_| ())
        } else {
            fs::read(path).map(|b| bytes = b)
        };
        read.map_err(|e| {
            let (exit, message) = match e.kind() {
                io::ErrorKind::NotFound => (Exit::NoInput, format!("there is no file {name}")),
                io::ErrorKind::PermissionDenied => {
                    (Exit::NoPermission, format!("{name} is not yours to read"))
                }
                _ => (Exit::NoInput, format!("{name} could not be read")),
            };
            CliError::new(exit, message).caused_by(e)
        })?;
        let source = String::from_utf8(bytes).map_err(|e| {
            CliError::new(Exit::Data, format!("{name} is not UTF-8 text")).caused_by(e.utf8_error())
        })?;
        Ok(Self { name, source })
    }

    /// Parses the text and has `understand` make something of it. Warnings go to stderr; errors, all at once,
    /// are the result.
    pub fn understand<T>(
        &self,
        allow: Allow,
        understand: impl FnOnce(&Element, &mut Diagnostics) -> Option<T>,
    ) -> Result<T, CliError> {
        let mut diagnostics = Diagnostics::new();
        let understood =
            xml::parse(&self.source, &mut diagnostics).and_then(|root| understand(&root, &mut diagnostics));
        self.judge(understood, diagnostics, allow)
    }

    /// Says what there is to say, and fails where that holds something up.
    pub fn judge<T>(
        &self,
        understood: Option<T>,
        mut diagnostics: Diagnostics,
        allow: Allow,
    ) -> Result<T, CliError> {
        match allow {
            Allow::Nothing => {}
            Allow::Shown { unsupported } => {
                if unsupported {
                    diagnostics.allow_unsupported();
                }
                diagnostics.allow_showing();
            }
            Allow::Unsupported => diagnostics.allow_unsupported(),
        }
        let rendered = diagnostics.render(&self.name, &self.source);
        match understood {
            Some(understood) if !diagnostics.has_errors() => {
                eprint!("{rendered}");
                Ok(understood)
            }
            _ => Err(CliError::new(Exit::Data, rendered)),
        }
    }
}
