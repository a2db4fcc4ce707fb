//! `vmward volume convert`.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use crate::cli::config::Config;
use crate::cli::input::keyword;
use crate::cli::output;
use crate::cli::{CliError, Exit, Global};
use crate::volume::{self, NewTarget, Source, SourceFormat};

use super::failure::failure;
use super::opening::unlock;
use super::passphrase::{Passphrase, PassphraseSource, ended, named};
use super::progress::{Progress, ProgressFd, interruptible};
use super::rbd::{CephArgs, rbd_name};
use super::target::{Maker, TargetArgs, absolute};

/// Arguments of `vmward volume convert`.
#[derive(clap::Args)]
pub(super) struct ConvertArgs {
    /// The image that is copied, a file or rbd:POOL/IMAGE; it stays as it is
    source: PathBuf,
    /// Where the new volume is to be: a file, or rbd:POOL/IMAGE in a Ceph cluster
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
    #[command(flatten)]
    ceph: CephArgs,
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
    let (from, to) = (rbd_name(&args.source)?, rbd_name(&args.path)?);
    let in_cluster = from.is_some() || to.is_some();
    args.ceph.check_needed(in_cluster)?;
    let passphrase = args.passphrase()?;
    let open_keystores = || Config::load(global)?.open_keystores();
    let rbd = in_cluster.then(|| args.ceph.open(open_keystores)).transpose()?;
    let source = match from.zip(rbd.clone()) {
        None => Source::open(&args.source, args.source_format, false),
        Some((name, rbd)) => interruptible(async |interrupts| {
            Ok(Source::in_cluster(rbd, name, args.source_format, interrupts).await)
        })?,
    };
    let mut source = match source {
        Ok(source) => source,
        Err(e) => return ended(e, |failure| failure),
    };
    let target = match (to, args.to_plain) {
        (None, _) => NewTarget::File(args.target.volume(absolute(&args.path)?, source.size, None)?),
        (Some(name), plain) => {
            let size = source.size.ok_or_else(|| {
                CliError::new(Exit::Usage, "an image of this format is not copied into a cluster")
                    .hint("convert it to a file first, in qcow2 or raw")
            })?;
            NewTarget::Image(match plain {
                true => args.target.plain_rbd(name, size)?,
                false => args.target.rbd(name, size)?,
            })
        }
    };
    target.check().map_err(failure)?;
    let secret = args.source_secret.as_deref().map(named);
    unlock(&mut source, open_keystores, secret.as_ref())?;
    let (path, format) = (target.path(), target.format());
    let maker = Maker::find(target, || rbd.map_or_else(|| args.ceph.open(open_keystores), Ok))?;
    let keystores = open_keystores()?;
    let (new, made) = interruptible(async |interrupts| {
        let take = |from| Passphrase::take(&keystores, from, &path, None);
        let new = passphrase.as_ref().map(take).transpose()?;
        let value = new.as_ref().map(|p| &p.value);
        let progress = Progress::new(format!("copying to {}", path.display()), args.progress_fd)?;
        let mut show = |share| progress.show(share);
        let made = match &maker {
            Maker::File(qemu_img, volume) => {
                volume::convert(qemu_img, &source, volume, value, interrupts, &mut show).await
            }
            Maker::Image(rbd, new) => {
                rbd.convert(&source, new, value, interrupts, &mut show).await.map(|()| new.size)
            }
        };
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
            "path": path,
            "format": format,
            "size": size,
            "secret": uuid.map(|uuid| uuid.to_string()),
        });
        output::line(format_args!("{object}"))?;
    } else if let (Some(uuid), Some(PassphraseSource::New(_))) = (uuid, &passphrase) {
        output::line(format_args!("{uuid}"))?;
    }
    Ok(ExitCode::SUCCESS)
}
