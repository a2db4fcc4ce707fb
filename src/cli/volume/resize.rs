//! `vmward volume resize`.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::config::Config;
use crate::cli::input::keyword;
use crate::cli::{CliError, Exit, Global};
use crate::volume::{self, QemuImg, Source, SourceFormat};

use super::failure::failure;
use super::opening::unlock;
use super::passphrase::{ended, named};
use super::progress::interruptible;
use super::rbd::CephArgs;

/// Arguments of `vmward volume resize`.
#[derive(clap::Args)]
pub(super) struct ResizeArgs {
    /// The volume
    path: PathBuf,
    /// What the guest is to see: 20G, or +10G for so much more than now
    #[arg(value_parser = NewSize::parse)]
    size: NewSize,
    /// The secret with its passphrase, unless its usage is the volume's path
    #[arg(long, value_name = "UUID|USAGE")]
    secret: Option<String>,
    /// The format of a plain image: raw or qcow2
    #[arg(long, value_name = "FORMAT", value_parser = keyword::<SourceFormat>)]
    source_format: Option<SourceFormat>,
    /// Cut off the end of the guest's disk
    #[arg(long)]
    shrink: bool,
    #[command(flatten)]
    ceph: CephArgs,
}

/// A size, or what is added to it.
#[derive(Debug, Clone, Copy)]
enum NewSize {
    To(u64),
    By(u64),
}

impl NewSize {
    fn parse(text: &str) -> Result<Self, String> {
        match text.strip_prefix('+') {
            Some(more) => volume::parse_size(more).map(Self::By),
            None => volume::parse_size(text).map(Self::To),
        }
    }

    /// `None`: it is too large.
    fn from(self, before: u64) -> Option<u64> {
        match self {
            Self::To(size) => Some(size),
            Self::By(more) => before.checked_add(more),
        }
    }
}

/// Runs `vmward volume resize`.
pub(super) fn run(global: &Global, args: &ResizeArgs) -> Result<ExitCode, CliError> {
    if let Some(name) = args.ceph.target(&args.path)? {
        if args.secret.is_some() || args.source_format.is_some() {
            return Err(CliError::new(
                Exit::Usage,
                "an image of a cluster is resized without its passphrase",
            )
            .hint("leave out --secret and --source-format"));
        }
        let rbd = args.ceph.open(|| Config::load(global)?.open_keystores())?;
        let done = interruptible(async |interrupts| {
            Ok(rbd.resize(&name, |before| args.size.from(before), args.shrink, interrupts).await)
        })?;
        return done.map(|()| ExitCode::SUCCESS).or_else(|e| ended(e, |failure| failure));
    }
    let mut source = Source::open(&args.path, args.source_format, true).map_err(failure)?;
    let before = source.size.ok_or_else(|| {
        CliError::new(Exit::Usage, "volumes of this format are not resized")
            .hint("convert it to qcow2 or raw first")
    })?;
    let size = args.size.from(before).ok_or_else(|| CliError::new(Exit::Usage, "the size is too large"))?;
    let secret = args.secret.as_deref().map(named);
    unlock(&mut source, || Config::load(global)?.open_keystores(), secret.as_ref())?;
    let qemu_img = QemuImg::find().map_err(failure)?;
    let done = interruptible(async |interrupts| {
        Ok(volume::resize(&qemu_img, &source, size, args.shrink, interrupts).await)
    })?;
    match done {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(e) => ended(e, |failure| failure),
    }
}
