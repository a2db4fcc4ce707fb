//! `vmward volume rekey`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;

use crate::cli::config::Config;
use crate::cli::input::keyword;
use crate::cli::keystore_failure::keystore_failure;
use crate::cli::output;
use crate::cli::secret::used_by::Guests;
use crate::cli::value_source::ValueSource;
use crate::cli::{CliError, Exit, Global};
use crate::keystore::{Keystores, SecretFound};
use crate::secret::{SecretLookup, SecretValue, UsageKind};
use crate::supervisor;
use crate::volume::{self, AtRest, Kdf, KeySlots, Rekeyed, Step, VolumeError};

use super::failure::failure;
use super::progress::{Progress, ProgressFd};
use super::rbd::CephArgs;
use super::running::RunningDisk;
use super::secret_of;

/// Arguments of `vmward volume rekey`.
#[derive(clap::Args)]
pub(super) struct RekeyArgs {
    /// The volume, a file or rbd:POOL/IMAGE in a Ceph cluster, or with --domain the target of a disk (vda)
    #[arg(value_name = "PATH|TARGET")]
    target: PathBuf,
    /// Change the keys of a disk of this guest while it runs
    #[arg(long, value_name = "NAME")]
    domain: Option<String>,
    /// The volume's secret, if its usage is not the volume's path
    #[arg(long, value_name = "UUID|USAGE", conflicts_with = "domain")]
    secret: Option<String>,
    /// Read the new value from stdin instead of having one generated
    #[arg(long, group = "source")]
    stdin: bool,
    #[command(flatten)]
    source: ValueSource,
    /// Make the volume open as fast as can be: a generated key in the first slot, and a cheap digest
    #[arg(long, conflicts_with_all = ["source", "kdf"])]
    machine_key: bool,
    /// What opening the volume costs from now on: auto (cheap for generated keys), fast (random keys only), slow
    #[arg(long, value_parser = keyword::<Kdf>, default_value = "auto")]
    kdf: Kdf,
    /// Go on though others use the secret: what its old value opens besides this volume does not open any more
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    ceph: CephArgs,
    #[command(flatten)]
    progress_fd: ProgressFd,
    /// Print an object with the path, the secret's UUID, and whether an earlier run was completed
    #[arg(long)]
    json: bool,
}

/// Runs `vmward volume rekey`.
pub(super) fn run(global: &Global, args: &RekeyArgs) -> Result<ExitCode, CliError> {
    supervisor::harden().map_err(|e| CliError::new(Exit::Internal, e.to_string()))?;
    let config = Config::load(global)?;
    let keystores = config.open_keystores()?;
    match &args.domain {
        Some(name) => {
            args.ceph.check_needed(false)?;
            in_guest(&config, &keystores, name, args)
        }
        None => at_rest(&config, &keystores, args),
    }
}

fn at_rest(config: &Config, keystores: &Keystores, args: &RekeyArgs) -> Result<ExitCode, CliError> {
    let image = args.ceph.target(&args.target)?;
    let path = match &image {
        Some(name) => name.path(),
        None => volume::canonical(&args.target),
    };
    // What is no volume is said to be none before it is said that it has no secret.
    let opened = match image {
        Some(name) => {
            let rbd = args.ceph.open(|| config.open_keystores())?;
            AtRest::in_cluster(keystores, rbd, name, args.kdf, args.machine_key)
        }
        None => AtRest::open(keystores, &path, args.kdf, args.machine_key),
    };
    let mut slots = opened.map_err(|e| match e {
        VolumeError::InUse(_) => failure(e).hint(
            "shut down the guest, or, if it is one of vmward's: `vmward volume rekey --domain NAME TARGET`",
        ),
        e => failure(e),
    })?;
    let secret = match &args.secret {
        Some(name) => {
            keystores.find(&SecretLookup::named(name), Some(UsageKind::Volume)).map_err(keystore_failure)?
        }
        None => secret_of(keystores, &path, &args.target).map_err(keystore_failure)?.ok_or_else(|| {
            CliError::new(Exit::NoInput, format!("no secret has the usage {}", path.display()))
                .hint("name the volume's secret with --secret UUID")
        })?,
    };
    change(config, keystores, &secret, &mut slots, args)
}

fn in_guest(
    config: &Config,
    keystores: &Keystores,
    name: &str,
    args: &RekeyArgs,
) -> Result<ExitCode, CliError> {
    if args.machine_key {
        return Err(CliError::new(
            Exit::Usage,
            "the header of a volume is not rearranged while a guest runs from it",
        )
        .hint(
            "shut the guest down first, or leave out --machine-key: a generated key is cheap to open, too",
        ));
    }
    let target = args
        .target
        .to_str()
        .ok_or_else(|| CliError::new(Exit::Usage, "the target of a disk is a name like vda"))?;
    let mut disk = RunningDisk::find(name, target, args.kdf)?;
    let secret = keystores.find(&disk.secret.lookup, Some(disk.secret.kind)).map_err(keystore_failure)?;
    change(config, keystores, &secret, &mut disk, args)
}

fn change<S: KeySlots>(
    config: &Config,
    keystores: &Keystores,
    secret: &SecretFound<'_>,
    slots: &mut S,
    args: &RekeyArgs,
) -> Result<ExitCode, CliError>
where
    CliError: From<S::Error>,
{
    let path = slots.path().to_owned();
    if !args.force {
        check_alone(config, secret, &path)?;
    }
    let value = value(args)?;
    let uuid = secret.definition.uuid;
    let progress = Progress::new(format!("changing the key of {}", path.display()), args.progress_fd)?;
    let rekeyed = volume::rekey(keystores, secret, value.as_ref(), slots, &mut |step: Step| {
        progress.step(step.as_str())
    });
    progress.end(rekeyed.is_ok());
    let rekeyed = rekeyed.map_err(|e| {
        if volume::is_unfinished(keystores, uuid) {
            eprintln!(
                "warning: not all is done: the same again completes it; the secret's value opens the volume"
            );
        }
        CliError::from(e)
    })?;
    let completed = rekeyed == Rekeyed::Completed;
    if args.json {
        let object = json!({ "path": path, "secret": uuid.to_string(), "completed": completed });
        output::line(object)?;
        return Ok(ExitCode::SUCCESS);
    }
    if completed {
        eprintln!("an earlier run that was cut off is completed:");
    }
    eprintln!("{} has a new key, and the secret {uuid} its value", path.display());
    Ok(ExitCode::SUCCESS)
}

/// The value that was given, if one was.
fn value(args: &RekeyArgs) -> Result<Option<SecretValue>, CliError> {
    if !args.stdin && !args.source.is_named() {
        return Ok(None);
    }
    let value = args.source.read()?;
    value.as_passphrase().map_err(|e| failure(VolumeError::Passphrase(e)))?;
    Ok(Some(value))
}

/// Whatever else a secret's old value opens would be lost with it.
fn check_alone(config: &Config, secret: &SecretFound<'_>, path: &Path) -> Result<(), CliError> {
    let others = Guests::find(&[], &config.tls)?.besides(&secret.definition, path);
    if others.is_empty() {
        return Ok(());
    }
    let message = format!(
        "the secret {} is used by {} as well, which its new value would not open",
        secret.definition.uuid,
        others.join(" and ")
    );
    Err(CliError::new(Exit::Usage, message)
        .hint("give each volume a secret of its own, or say --force where the others do not matter"))
}
