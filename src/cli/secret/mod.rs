//! `vmward secret`: verbs as virsh users know them.

mod definition;
mod generate;
mod import;
mod list;
pub(super) mod used_by;
mod value;

use std::process::ExitCode;

use clap::Subcommand;

use crate::keystore::{Keystores, SecretFound};
use crate::secret::SecretLookup;
use crate::supervisor;

use super::config::Config;
use super::keystore_failure::keystore_failure;
use super::{CliError, Exit, Global};

/// Arguments of `vmward secret`.
#[derive(clap::Args)]
pub(crate) struct SecretArgs {
    #[command(subcommand)]
    command: SecretCommand,
}

#[derive(Subcommand)]
enum SecretCommand {
    /// Add a secret from its XML, or change it; prints its UUID
    Define(definition::DefineArgs),
    /// Set a secret's value, read from stdin, a file or a descriptor
    SetValue(value::SetValueArgs),
    /// Print a secret's value
    GetValue(value::GetValueArgs),
    /// Make a secret with a random 256-bit value; prints its UUID
    Generate(generate::GenerateArgs),
    /// Copy secrets of libvirt or another keystore into the first one that can be written
    Import(import::ImportArgs),
    /// List the secrets of all keystores, and what uses them
    List(list::ListArgs),
    /// Print a secret's XML, without its value
    Dumpxml(SecretName),
    /// Remove a secret and its value
    Undefine(SecretName),
}

/// Which secret.
#[derive(clap::Args)]
struct SecretName {
    /// Its UUID, or the id of its usage (a volume's path, a Ceph name, ...)
    #[arg(value_name = "UUID|USAGE")]
    secret: String,
}

impl SecretName {
    fn find<'a>(&self, keystores: &'a Keystores) -> Result<SecretFound<'a>, CliError> {
        keystores.find(&SecretLookup::named(&self.secret), None).map_err(keystore_failure)
    }
}

/// Runs `vmward secret`.
pub(crate) fn run(global: &Global, args: SecretArgs) -> Result<ExitCode, CliError> {
    supervisor::harden().map_err(|e| CliError::new(Exit::Internal, e.to_string()))?;
    let config = Config::load(global)?;
    let keystores = config.open_keystores()?;
    match args.command {
        SecretCommand::Define(args) => definition::define(&keystores, &args),
        SecretCommand::SetValue(args) => value::set_value(&keystores, &args),
        SecretCommand::GetValue(args) => value::get_value(&keystores, &args),
        SecretCommand::Generate(args) => generate::generate(&keystores, args),
        SecretCommand::Import(args) => import::import_secrets(&config, &keystores, args),
        SecretCommand::List(args) => list::list(&config, &keystores, &args),
        SecretCommand::Dumpxml(name) => definition::dumpxml(&keystores, &name),
        SecretCommand::Undefine(name) => definition::undefine(&keystores, &name),
    }
}
