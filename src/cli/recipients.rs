//! Who may read a new secret's value besides whoever reads all of its keystore.

use std::fs;
use std::path::PathBuf;

use super::{CliError, Exit};

/// Public keys, given or in files.
#[derive(clap::Args)]
pub(crate) struct RecipientArgs {
    /// Let whoever has the key to this age public key read the value, too (repeatable)
    #[arg(long, value_name = "AGE1...")]
    recipient: Vec<String>,
    /// The same with the public keys in a file, as `age -R` takes it (repeatable)
    #[arg(long, value_name = "FILE")]
    recipients_file: Vec<PathBuf>,
}

impl RecipientArgs {
    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.recipient.is_empty() && self.recipients_file.is_empty()
    }

    /// All of the keys, as they were given.
    pub(crate) fn keys(&self) -> Result<Vec<String>, CliError> {
        let mut keys = self.recipient.clone();
        for path in &self.recipients_file {
            let text = fs::read_to_string(path).map_err(|e| {
                CliError::new(Exit::NoInput, format!("{} could not be read", path.display())).caused_by(e)
            })?;
            let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
            let before = keys.len();
            keys.extend(lines.map(str::to_owned));
            if keys.len() == before {
                return Err(CliError::new(
                    Exit::Data,
                    format!("there is no public key in {}", path.display()),
                ));
            }
        }
        Ok(keys)
    }
}
