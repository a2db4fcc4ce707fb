//! `exec:/program`: whatever prints a value, run for each secret that is needed.

mod program;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use uuid::Uuid;

use crate::secret::{SecretDefinition, SecretLookup, SecretValue, UsageKind};

use super::kinds::Opened;
use super::query::Parts;
use super::{Keystore, KeystoreError, Listing, StoreOptions, ValueObject, find_by_name, unsupported};
use program::{Program, RunError};

/// A program that is asked for secrets: `PROGRAM ARG... uuid UUID` or `PROGRAM ARG... usage KIND ID`.
pub(super) struct ExecStore {
    uri: String,
    program: Program,
    timeout: Duration,
    /// What it has printed and nobody has taken yet. It only shows that a secret is there by printing it, and running it
    /// twice would be two touches of a token.
    printed: Mutex<HashMap<Uuid, SecretValue>>,
}

impl ExecStore {
    /// `exec:/program?arg=...`.
    pub(super) fn from_uri(uri: &str, options: &StoreOptions) -> Opened<dyn Keystore> {
        let program = parse(uri)?;
        Ok(Box::new(Self {
            uri: uri.to_owned(),
            program,
            timeout: options.timeout,
            printed: Mutex::default(),
        }))
    }

    fn printed(&self) -> MutexGuard<'_, HashMap<Uuid, SecretValue>> {
        self.printed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, secret: &SecretDefinition) -> Result<Option<SecretValue>, KeystoreError> {
        let uuid = secret.uuid.to_string();
        let question = match &secret.usage {
            Some(usage) => vec!["usage", usage.kind.as_str(), &usage.id],
            None => vec!["uuid", &uuid],
        };
        run(&self.program, &question, self.timeout, &self.uri, &question.join(" "))
    }

    /// The definition, if the program has the value to it.
    fn probe(&self, secret: SecretDefinition) -> Result<Option<SecretDefinition>, KeystoreError> {
        let Some(value) = self.ask(&secret)? else { return Ok(None) };
        self.printed().insert(secret.uuid, value);
        Ok(Some(secret))
    }
}

impl Keystore for ExecStore {
    fn uri(&self) -> &str {
        &self.uri
    }

    fn is_writable(&self) -> bool {
        false
    }

    fn find(
        &self,
        lookup: &SecretLookup,
        kind: Option<UsageKind>,
    ) -> Result<Option<SecretDefinition>, KeystoreError> {
        find_by_name(lookup, kind, |secret| self.probe(secret))
    }

    fn value(&self, secret: &SecretDefinition) -> Result<Option<SecretValue>, KeystoreError> {
        let printed = self.printed().remove(&secret.uuid);
        printed.map_or_else(|| self.ask(secret), |value| Ok(Some(value)))
    }

    fn has_value(&self, secret: &SecretDefinition) -> Result<bool, KeystoreError> {
        Ok(self.printed().contains_key(&secret.uuid) || self.ask(secret)?.is_some())
    }

    fn list(&self) -> Result<Listing, KeystoreError> {
        self.program.check()?;
        Err(unsupported(&self.uri, "list its secrets: a program is asked for one at a time"))
    }
}

/// A program that prints one value: `PROGRAM ARG...`.
pub(super) struct ExecValue {
    uri: String,
    program: Program,
    timeout: Duration,
}

impl ExecValue {
    /// `exec:/program?arg=...`.
    pub(super) fn from_uri(uri: &str, options: &StoreOptions) -> Opened<dyn ValueObject> {
        Ok(Box::new(Self { uri: uri.to_owned(), program: parse(uri)?, timeout: options.timeout }))
    }
}

impl ValueObject for ExecValue {
    fn uri(&self) -> &str {
        &self.uri
    }

    fn value(&self) -> Result<Option<SecretValue>, KeystoreError> {
        run(&self.program, &[], self.timeout, &self.uri, "")
    }

    fn exists(&self) -> Result<bool, KeystoreError> {
        Ok(self.value()?.is_some())
    }
}

fn run(
    program: &Program,
    question: &[&str],
    timeout: Duration,
    uri: &str,
    asked_for: &str,
) -> Result<Option<SecretValue>, KeystoreError> {
    let object = Some(asked_for).filter(|asked_for| !asked_for.is_empty());
    program.run(question, timeout).map_err(|error| match error {
        RunError::Program(error) => error,
        RunError::Failed(failure, None) => failure.of(uri, object),
        RunError::Failed(failure, Some(said)) => failure.of(uri, object).because(said),
    })
}

/// The program of a URI, or what is wrong with the URI.
fn parse(uri: &str) -> Result<Program, String> {
    let Parts { path, query } = Parts::of(uri, "exec")?;
    if !path.starts_with('/') {
        return Err(
            "the program must be an absolute path, as in exec:/usr/bin/pass?arg=show&arg=web1".to_owned()
        );
    }
    let (mut arguments, mut environment, mut strip_newline) = (Vec::new(), Vec::new(), false);
    for (name, value) in query {
        match (name.as_str(), value.as_str()) {
            ("arg", _) => arguments.push(value),
            ("env", "") => return Err("?env= needs the name of a variable".to_owned()),
            ("env", name) if name.contains('=') => {
                return Err("?env= takes the name of a variable, never its value".to_owned());
            }
            ("env", _) => environment.push(value),
            ("strip-newline", "yes") => strip_newline = true,
            ("strip-newline", "no") => strip_newline = false,
            ("strip-newline", _) => return Err("strip-newline is yes or no".to_owned()),
            _ => return Err(format!("'{name}' is not one of arg, env and strip-newline")),
        }
    }
    Ok(Program { path: PathBuf::from(path), arguments, environment, strip_newline })
}

#[cfg(test)]
mod tests;
