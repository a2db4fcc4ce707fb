//! `vmward secret import`.

use std::process::ExitCode;

use crate::cli::config::Config;
use crate::cli::keystore_failure::keystore_failure;
use crate::cli::output;
use crate::cli::{CliError, Exit};
use crate::keystore::{ImportError, ImportOptions, Imported, KeystoreError, Keystores, import};
use crate::secret::{SecretDefinition, SecretLookup};

/// Arguments of `vmward secret import`.
#[derive(clap::Args)]
pub(super) struct ImportArgs {
    /// The keystore that they are in, libvirt's if none is named
    #[arg(long, value_name = "URI", default_value = "libvirt:")]
    from: String,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Overwrite secrets that are there already and differ
    #[arg(long)]
    force: bool,
    /// The UUIDs of those that are wanted, or the ids of their usages; without any, all are
    #[arg(value_name = "UUID|USAGE")]
    secrets: Vec<String>,
}

/// Runs `vmward secret import`. One secret's trouble is said, and does not hide the others.
pub(super) fn import_secrets(
    config: &Config,
    keystores: &Keystores,
    args: ImportArgs,
) -> Result<ExitCode, CliError> {
    let source = Keystores::open(&[args.from], &config.store_options()).map_err(keystore_failure)?;
    let from = source.stores[0].as_ref();
    let into = keystores
        .stores
        .iter()
        .find(|store| store.is_writable() && !store.is_ephemeral() && store.uri() != from.uri())
        .ok_or_else(|| keystore_failure(KeystoreError::NoStore))?;
    let (mut wanted, mut exit) = (Vec::new(), ExitCode::SUCCESS);
    if args.secrets.is_empty() {
        let listing = from.list().map_err(keystore_failure)?;
        wanted = listing.definitions;
        for error in listing.broken {
            exit = keystore_failure(error).report();
        }
    }
    for secret in args.secrets {
        let lookup = SecretLookup::named(&secret);
        match from.find(&lookup, None) {
            Ok(Some(definition)) => wanted.push(definition),
            Ok(None) => exit = keystore_failure(KeystoreError::NotDefined { lookup, kind: None }).report(),
            Err(error) => exit = keystore_failure(error).report(),
        }
    }
    if wanted.is_empty() && exit == ExitCode::SUCCESS {
        eprintln!("note: there are no secrets in {}", from.uri());
    }
    let options = ImportOptions { force: args.force, dry_run: args.dry_run };
    for secret in &wanted {
        match import(secret, from, into.as_ref(), options) {
            Ok(imported) => say(secret, imported, options)?,
            Err(error) => exit = failure(error).report(),
        }
    }
    Ok(exit)
}

fn say(secret: &SecretDefinition, imported: Imported, options: ImportOptions) -> Result<(), CliError> {
    let done = match (imported, options.dry_run) {
        (Imported::Added, false) => "imported",
        (Imported::Added, true) => "would be imported",
        (Imported::AddedWithoutValue, false) => "imported, has no value",
        (Imported::AddedWithoutValue, true) => "would be imported, has no value",
        (Imported::Replaced, false) => "replaced",
        (Imported::Replaced, true) => "would be replaced",
        (Imported::Unchanged, _) => "is there already",
    };
    let usage = secret.usage.as_ref().map_or("-".to_owned(), ToString::to_string);
    output::line(format_args!("{}  {usage}: {done}", secret.uuid))
}

fn failure(error: ImportError) -> CliError {
    match error {
        ImportError::Keystore(error) => keystore_failure(error),
        ImportError::Exists { .. } => {
            CliError::new(Exit::Data, error.to_string()).hint("--force overwrites it")
        }
    }
}
