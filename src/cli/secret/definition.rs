//! `vmward secret define`, `dumpxml` and `undefine`.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::CliError;
use crate::cli::input::{Allow, Input};
use crate::cli::keystore_failure::keystore_failure;
use crate::cli::output;
use crate::keystore::Keystores;
use crate::secret::{SecretDefinition, SecretLookup};
use crate::xml::Diagnostics;

use super::SecretName;

/// Arguments of `vmward secret define`.
#[derive(clap::Args)]
pub(super) struct DefineArgs {
    /// libvirt's secret XML; - reads it from stdin
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Runs `vmward secret define`.
pub(super) fn define(keystores: &Keystores, args: &DefineArgs) -> Result<ExitCode, CliError> {
    let input = Input::read(&args.file)?;
    let mut diagnostics = Diagnostics::new();
    let definition = SecretDefinition::parse(&input.source, &mut diagnostics);
    let definition = input.judge(definition, diagnostics, Allow::Nothing)?;
    keystores.define(&definition).map_err(keystore_failure)?;
    output::line(definition.uuid)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `vmward secret dumpxml`.
pub(super) fn dumpxml(keystores: &Keystores, name: &SecretName) -> Result<ExitCode, CliError> {
    output::text(name.find(keystores)?.definition.to_xml())?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `vmward secret undefine`.
pub(super) fn undefine(keystores: &Keystores, name: &SecretName) -> Result<ExitCode, CliError> {
    keystores.undefine(&SecretLookup::named(&name.secret)).map_err(keystore_failure)?;
    Ok(ExitCode::SUCCESS)
}
