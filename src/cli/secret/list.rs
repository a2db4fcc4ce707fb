//! `vmward secret list`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::cli::config::Config;
use crate::cli::keystore_failure::keystore_failure;
use crate::cli::output;
use crate::cli::{CliError, Exit};
use crate::keystore::{KeystoreError, Keystores};
use crate::secret::{SecretDefinition, UsageKind};
use crate::volume;

use super::used_by::{Guests, User};

/// Arguments of `vmward secret list`.
#[derive(clap::Args)]
pub(super) struct ListArgs {
    /// Only secrets whose usage is this volume
    #[arg(long, value_name = "PATH")]
    volume: Option<PathBuf>,
    /// Look into this guest's XML as well for what it uses (repeatable)
    #[arg(long, value_name = "GUEST.xml")]
    guest: Vec<PathBuf>,
    /// Print an array of objects
    #[arg(long)]
    json: bool,
}

/// A line of the list.
struct Row<'a> {
    definition: SecretDefinition,
    /// `None` where the store could not say.
    has_value: Option<bool>,
    store: &'a str,
}

/// Runs `vmward secret list`. What cannot be read is said, and does not hide the rest.
pub(super) fn list(config: &Config, keystores: &Keystores, args: &ListArgs) -> Result<ExitCode, CliError> {
    let guests = Guests::find(&args.guest, &config.tls)?;
    let (mut rows, mut exit) = (Vec::new(), ExitCode::SUCCESS);
    for store in &keystores.stores {
        match store.list() {
            Ok(listing) => {
                for error in listing.broken {
                    keystore_failure(error).report();
                    exit = Exit::Data.into();
                }
                rows.extend(listing.definitions.into_iter().map(|definition| {
                    let secret = keystores.secret(store.as_ref(), definition);
                    Row {
                        has_value: secret.has_value().ok(),
                        definition: secret.definition,
                        store: store.uri(),
                    }
                }));
            }
            // A program that is asked for one secret at a time, say. No failure, and the list is not all there is.
            Err(error @ KeystoreError::Unsupported { .. }) => eprintln!("note: {error}"),
            Err(error) => exit = keystore_failure(error).report(),
        }
    }
    if let Some(path) = &args.volume {
        rows.retain(|row| is_of(&row.definition, path));
    }
    if args.json {
        let object = |row: &Row<'_>| {
            let mut object = as_json(&row.definition, row.has_value, row.store);
            object["used-by"] = guests.users(&row.definition).iter().map(User::as_json).collect();
            object
        };
        let list: Vec<_> = rows.iter().map(object).collect();
        output::line(format_args!("{:#}", Value::from(list)))?;
    } else {
        output::text(table(&rows, &guests))?;
    }
    Ok(exit)
}

/// A secret as `--json` shows it.
pub(super) fn as_json(definition: &SecretDefinition, has_value: Option<bool>, store: &str) -> Value {
    json!({
        "uuid": definition.uuid.to_string(),
        "usage": definition.usage.as_ref().map(|u| json!({ "type": u.kind.as_str(), "id": u.id })),
        "description": definition.description,
        "private": definition.private,
        "ephemeral": definition.ephemeral,
        "value-uri": definition.value_uri,
        "has-value": has_value,
        "keystore": store,
    })
}

/// Whether a secret is for this volume, as its path is or as it was written.
fn is_of(definition: &SecretDefinition, path: &Path) -> bool {
    let usage = definition.usage.as_ref().filter(|usage| usage.kind == UsageKind::Volume);
    usage.is_some_and(|usage| Path::new(&usage.id) == path || Path::new(&usage.id) == volume::canonical(path))
}

fn table(rows: &[Row<'_>], guests: &Guests) -> String {
    let usage = |r: &Row<'_>| r.definition.usage.as_ref().map_or("-".to_owned(), ToString::to_string);
    let width = rows.iter().map(|r| usage(r).chars().count()).max().unwrap_or(0).max("USAGE".len());
    let store_width = rows.iter().map(|r| r.store.len()).max().unwrap_or(0).max("KEYSTORE".len());
    let mut out = format!(
        "{:36}  {:width$}  VALUE  KIND       {:store_width$}  USED BY\n",
        "UUID", "USAGE", "KEYSTORE"
    );
    for row in rows {
        let value = match row.has_value {
            Some(true) => "yes",
            Some(false) => "no",
            None => "?",
        };
        let kind = match (row.definition.ephemeral, row.definition.private) {
            (true, _) => "ephemeral",
            (false, true) => "private",
            (false, false) => "-",
        };
        let users: Vec<_> = guests.users(&row.definition).iter().map(User::as_text).collect();
        out.push_str(&format!(
            "{}  {:width$}  {value:5}  {kind:9}  {:store_width$}  {}\n",
            row.definition.uuid,
            usage(row),
            row.store,
            if users.is_empty() { "-".to_owned() } else { users.join(", ") }
        ));
    }
    out
}
