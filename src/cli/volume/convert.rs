//! `vmward volume convert`.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use crate::cli::config::Config;
use crate::cli::input::keyword;
use crate::cli::output;
use crate::cli::{CliError, Exit, Global};
use crate::volume::{self, QemuImg, Source, SourceFormat};

use super::failure::failure;
use super::opening::unlock;
use super::passphrase::{Passphrase, PassphraseSource, ended, named};
use super::progress::{Progress, ProgressFd, interruptible};
use super::rbd::file_only;
use super::target::TargetArgs;

/// Arguments of `vmward volume convert`.
#[derive(clap::Args)]
pub(super) struct ConvertArgs {
    /// The image that is copied; it stays as it is
    source: PathBuf,
    /// Where the new volume is to be
    path: PathBuf,
    /// The format of the image that is copied, which must be said of a plain one: raw, qcow2, vmdk, vdi, vhdx, vpc
    #[arg(long, value_name = "FORMAT", value_parser = keyword::<SourceFormat>)]
    source_format: Option<SourceFormat>,
    /// The secret that opens the image that is copied, unless its usage is the image's path
    #[arg(long, value_name = "UUID|USAGE")]
    source_secret: Option<String>,
    #[command(flatten)]
    target: TargetArgs,
    /// Make a copy that is not encrypted: whoever reads the file reads the guest's disk
    #[arg(long)]
    to_plain: bool,
    #[command(flatten)]
    progress_fd: ProgressFd,
    /// Print an object with the path, the format, the size and the secret's UUID
    #[arg(long)]
    json: bool,
}

impl ConvertArgs {
    /// Whose passphrase the copy gets; `None`: it is to be plain.
    fn passphrase(&self) -> Result<Option<PassphraseSource>, CliError> {
        match (self.to_plain, self.target.is_about_encryption()) {
            (true, false) => Ok(None),
            (true, true) => {
                let message = "--to-plain makes a copy without secret, cipher and hash";
                Err(CliError::new(Exit::Usage, message).hint("leave out the one or the others"))
            }
            (false, _) => self.target.passphrase().map(Some).map_err(|e| match e.hint {
                Some(hint) => CliError { hint: Some(format!("{hint}; --to-plain makes a plain copy")), ..e },
                None => e,
            }),
        }
    }
}

/// Runs `vmward volume convert`.
pub(super) fn run(global: &Global, args: &ConvertArgs) -> Result<ExitCode, CliError> {
    file_only(&args.source)?;
    file_only(&args.path)?;
    let passphrase = args.passphrase()?;
    let path = std::path::absolute(&args.path)
        .map(|path| volume::canonical(&path))
        .map_err(|e| CliError::new(Exit::Usage, "the volume has no path").caused_by(e))?;
    let mut source = Source::open(&args.source, args.source_format, false).map_err(failure)?;
    let volume = args.target.volume(path, source.size, None)?;
    volume.check().map_err(failure)?;
    let secret = args.source_secret.as_deref().map(named);
    unlock(&mut source, || Config::load(global)?.open_keystores(), secret.as_ref())?;
    let qemu_img = QemuImg::find().map_err(failure)?;
    let keystores = Config::load(global)?.open_keystores()?;
    let (new, made) = interruptible(async |interrupts| {
        let take = |from| Passphrase::take(&keystores, from, &volume.path, None);
        let new = passphrase.as_ref().map(take).transpose()?;
        let value = new.as_ref().map(|p| &p.value);
        let progress = Progress::new(format!("copying to {}", volume.path.display()), args.progress_fd)?;
        let mut show = |share| progress.show(share);
        let made = volume::convert(&qemu_img, &source, &volume, value, interrupts, &mut show).await;
        progress.end(made.is_ok());
        Ok((new, made))
    })?;
    let size = match made {
        Ok(size) => size,
        Err(e) => {
            return ended(e, |failure| match &new {
                Some(secret) => secret.forget(&keystores, failure),
                None => failure,
            });
        }
    };
    let uuid = new.map(|secret| secret.uuid);
    if args.json {
        let object = json!({
            "path": volume.path,
            "format": volume.format.as_str(),
            "size": size,
            "secret": uuid.map(|uuid| uuid.to_string()),
        });
        output::line(format_args!("{object}"))?;
    } else if let (Some(uuid), Some(PassphraseSource::New(_))) = (uuid, &passphrase) {
        output::line(format_args!("{uuid}"))?;
    }
    Ok(ExitCode::SUCCESS)
}
