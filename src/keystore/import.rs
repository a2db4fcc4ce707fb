//! Secrets of one store copied into another, as they are.

use crate::secret::{DefinitionError, SecretDefinition, SecretLookup, SecretValue};

use super::{Keystore, KeystoreError};

/// What became of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Imported {
    /// It was not there, or had no value; now it has.
    Added,
    /// It was not there; now it is, without a value as in its store, or with one that is elsewhere.
    AddedWithoutValue,
    /// It was there, and is another one now.
    Replaced,
    /// It was there, just like this.
    Unchanged,
}

/// Why a secret was not copied.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It is there and is not to be overwritten.
    #[error("the secret {} is in {store} already, {difference}", secret.uuid)]
    Exists {
        /// Which secret.
        secret: Box<SecretDefinition>,
        /// Where it was to go.
        store: String,
        /// In what it is another one.
        difference: &'static str,
    },
    /// One of the stores does not do its part.
    #[error(transparent)]
    Keystore(#[from] KeystoreError),
}

/// How secrets are copied.
#[derive(Debug, Clone, Copy, Default)]
pub struct ImportOptions {
    /// Overwrite what is there.
    pub force: bool,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// Copies a secret of one store into another, with its UUID, its usage and what else is known of it.
pub fn import(
    secret: &SecretDefinition,
    from: &dyn Keystore,
    to: &dyn Keystore,
    options: ImportOptions,
) -> Result<Imported, ImportError> {
    secret.check_text().map_err(KeystoreError::Definition)?;
    let value = match secret.value_uri {
        None => from.value(secret)?,
        Some(_) => None,
    };
    let there = to.find(&SecretLookup::Uuid(secret.uuid), None)?;
    let same_usage = match &secret.usage {
        Some(usage) => to.find(&SecretLookup::Usage(usage.id.clone()), Some(usage.kind))?,
        None => None,
    };
    // With force the one of the same UUID may be any other, but no second one is removed for its usage.
    secret
        .check_against(same_usage.iter().filter(|s| s.uuid != secret.uuid))
        .map_err(KeystoreError::Definition)?;
    let Some(there) = there else {
        if !options.dry_run {
            add(secret, value.as_ref(), to)?;
        }
        return Ok(if value.is_some() { Imported::Added } else { Imported::AddedWithoutValue });
    };
    match difference(secret, value.as_ref(), &there, to)? {
        Difference::None => Ok(Imported::Unchanged),
        // A copy that was broken off is completed.
        Difference::NoValueYet => {
            if let (Some(value), false) = (&value, options.dry_run) {
                to.set_value(secret, value)?;
            }
            Ok(Imported::Added)
        }
        Difference::Other(difference) if !options.force => {
            let store = to.uri().to_owned();
            Err(ImportError::Exists { secret: Box::new(secret.clone()), store, difference })
        }
        Difference::Other(_) => {
            if !options.dry_run {
                replace(secret, value.as_ref(), &there, to)?;
            }
            Ok(Imported::Replaced)
        }
    }
}

enum Difference {
    None,
    NoValueYet,
    Other(&'static str),
}

fn difference(
    secret: &SecretDefinition,
    value: Option<&SecretValue>,
    there: &SecretDefinition,
    to: &dyn Keystore,
) -> Result<Difference, KeystoreError> {
    Ok(match value {
        _ if there != secret => Difference::Other("with another definition"),
        None => Difference::None,
        Some(_) if !to.has_value(there)? => Difference::NoValueYet,
        Some(value) => match to.value(there) {
            Ok(Some(its)) if its == *value => Difference::None,
            Ok(_) => Difference::Other("with another value"),
            // Who may fill a store need not be able to read it.
            Err(KeystoreError::NoIdentity { .. }) => {
                Difference::Other("with a value that cannot be compared")
            }
            Err(e) => return Err(e),
        },
    })
}

fn add(
    secret: &SecretDefinition,
    value: Option<&SecretValue>,
    to: &dyn Keystore,
) -> Result<(), KeystoreError> {
    to.define(secret)?;
    let Some(value) = value else { return Ok(()) };
    to.set_value(secret, value).inspect_err(|_| {
        // Of the two errors the first one says what is wrong.
        let _ = to.undefine(secret);
    })
}

fn replace(
    secret: &SecretDefinition,
    value: Option<&SecretValue>,
    there: &SecretDefinition,
    to: &dyn Keystore,
) -> Result<(), KeystoreError> {
    match secret.check_against([there]) {
        Ok(()) => {}
        // What may not change may be made anew.
        Err(DefinitionError::OtherUsage(_) | DefinitionError::NoLongerPrivate(_)) => {
            to.undefine(there)?;
            return add(secret, value, to);
        }
        Err(e) => return Err(KeystoreError::Definition(e)),
    }
    to.define(secret)?;
    value.map_or(Ok(()), |value| to.set_value(secret, value))
}
