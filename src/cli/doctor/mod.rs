//! `vmward doctor`: whether this machine can keep vmward's promises.

mod exposure;
mod keystores;
mod qemu;
mod runtime;

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::cli::output;
use crate::supervisor;

use super::config::{Config, Paths};
use super::{CliError, Exit, Global};

/// Arguments of `vmward doctor`.
#[derive(clap::Args)]
pub(crate) struct DoctorArgs {
    /// Print an array of objects
    #[arg(long)]
    json: bool,
    /// Wipe what guests have left whose supervisor and QEMU are gone, and check nothing else
    #[arg(long)]
    fix: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Ok,
    Warning,
    Error,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

struct Finding {
    /// What was looked at.
    about: &'static str,
    state: State,
    message: String,
    hint: Option<String>,
}

impl Finding {
    fn new(about: &'static str, state: State, message: impl Into<String>) -> Self {
        Self { about, state, message: message.into(), hint: None }
    }

    fn ok(about: &'static str, message: impl Into<String>) -> Self {
        Self::new(about, State::Ok, message)
    }

    fn warning(about: &'static str, message: impl Into<String>) -> Self {
        Self::new(about, State::Warning, message)
    }

    fn error(about: &'static str, message: impl Into<String>) -> Self {
        Self::new(about, State::Error, message)
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    fn as_json(&self) -> Value {
        json!({
            "about": self.about,
            "state": self.state.as_str(),
            "message": self.message,
            "hint": self.hint,
        })
    }
}

fn findings(config: &Config) -> Result<Vec<Finding>, CliError> {
    let mut findings = keystores::findings(config.open_keystores()?, config.keystore_timeout);
    findings.extend(runtime::findings(&config.paths));
    findings.extend(exposure::findings());
    findings.extend(qemu::findings(&config.paths));
    Ok(findings)
}

/// Runs `vmward doctor`.
pub(crate) fn run(global: &Global, args: &DoctorArgs) -> Result<ExitCode, CliError> {
    // A value of each keystore is read.
    supervisor::harden().map_err(|e| CliError::new(Exit::Internal, e.to_string()))?;
    let findings = match args.fix {
        true => runtime::fix(&Paths::from_environment()?)?,
        false => findings(&Config::load(global)?)?,
    };
    if args.json {
        let list: Vec<Value> = findings.iter().map(Finding::as_json).collect();
        output::line(format_args!("{:#}", Value::Array(list)))?;
    } else {
        for finding in &findings {
            output::line(format_args!(
                "{:7}  {}: {}",
                finding.state.as_str(),
                finding.about,
                finding.message
            ))?;
            if let Some(hint) = &finding.hint {
                output::line(format_args!("         Hint: {hint}"))?;
            }
        }
    }
    let failed = findings.iter().any(|f| f.state == State::Error);
    Ok(if failed { Exit::Unavailable.into() } else { ExitCode::SUCCESS })
}
