//! `vmward volume create`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;

use crate::cli::config::Config;
use crate::cli::input::{Allow, Input, keyword};
use crate::cli::output;
use crate::cli::{CliError, Exit, Global};
use crate::volume::{self, Backing, NewTarget, VolumeFormat, VolumeXml};
use crate::xml::{self, Diagnostics, Element};

use super::failure::failure;
use super::passphrase::{NewSecret, Passphrase, PassphraseSource, ended};
use super::progress::{Progress, ProgressFd, interruptible};
use super::rbd::{CephArgs, rbd_name};
use super::target::{Maker, TargetArgs, absolute};

/// Arguments of `vmward volume create`.
#[derive(clap::Args)]
pub(super) struct CreateArgs {
    /// Where the volume is to be: a file, or rbd:POOL/IMAGE in a Ceph cluster
    #[arg(required_unless_present = "volume_xml")]
    pub(super) path: Option<PathBuf>,
    /// What the guest sees: 10G or 10GiB (powers of 1024), 10GB (powers of 1000), or bytes
    #[arg(long, value_parser = volume::parse_size)]
    pub(super) size: Option<u64>,
    #[command(flatten)]
    pub(super) target: TargetArgs,
    /// The volume as libvirt's storage volume XML (- for stdin), instead of the options here
    #[arg(long, value_name = "FILE", conflicts_with_all = ["size", "format", "SecretArgs", "cipher", "hash", "preallocation", "backing", "owner"])]
    pub(super) volume_xml: Option<PathBuf>,
    /// The image that a qcow2 volume stands on, relative to the volume
    #[arg(long, value_name = "PATH", requires = "backing_format")]
    pub(super) backing: Option<PathBuf>,
    /// The format of the image that it stands on: qcow2 or raw
    #[arg(long, value_name = "FORMAT", value_parser = keyword::<VolumeFormat>, requires = "backing")]
    backing_format: Option<VolumeFormat>,
    #[command(flatten)]
    pub(super) progress_fd: ProgressFd,
    #[command(flatten)]
    pub(super) ceph: CephArgs,
    /// Print an object with the path, the format, the size and the secret's UUID
    #[arg(long)]
    pub(super) json: bool,
}

/// What is to be made, from options or XML.
struct Request {
    volume: NewTarget,
    source: PassphraseSource,
    /// The document and where it came from.
    xml: Option<(Input, Element)>,
}

impl CreateArgs {
    fn request(&self) -> Result<Request, CliError> {
        let mut request = match &self.volume_xml {
            Some(file) => self.xml_request(file)?,
            None => self.options_request()?,
        };
        match &mut request.volume {
            NewTarget::File(volume) => {
                self.ceph.check_needed(false)?;
                volume.path = absolute(&volume.path)?;
                volume.kdf = self.target.kdf;
                volume.replace = self.target.force;
            }
            NewTarget::Image(new) => {
                self.target.check_in_cluster()?;
                new.kdf = self.target.kdf;
            }
        }
        request.source = request.source.with(&self.target.new_secret)?;
        Ok(request)
    }

    fn options_request(&self) -> Result<Request, CliError> {
        let source = self.target.passphrase()?;
        let usage = |message: &str| CliError::new(Exit::Usage, message);
        let backing = self.backing.clone().zip(self.backing_format);
        let backing = backing.map(|(path, format)| Backing { path, format });
        let volume = match self.path.as_deref().map(rbd_name).transpose()?.flatten() {
            None => NewTarget::File(self.target.volume(
                self.path.clone().unwrap_or_default(),
                self.size,
                backing,
            )?),
            Some(_) if backing.is_some() => {
                return Err(usage(
                    "an image of a cluster is made without a backing image; `rbd clone` makes one on another",
                ));
            }
            Some(name) => {
                let size = self.size.ok_or_else(|| usage("a volume without a backing image needs a size"))?;
                NewTarget::Image(self.target.rbd(name, size)?)
            }
        };
        Ok(Request { volume, source, xml: None })
    }

    fn xml_request(&self, file: &Path) -> Result<Request, CliError> {
        let input = Input::read(file)?;
        let mut diagnostics = Diagnostics::new();
        let root = xml::parse(&input.source, &mut diagnostics);
        let understood = root.as_ref().and_then(|root| VolumeXml::from_xml(root, &mut diagnostics));
        let VolumeXml { mut volume, secret } = input.judge(understood, diagnostics, Allow::Nothing)?;
        let there = volume.path();
        match (&self.path, &mut volume) {
            (Some(path), NewTarget::File(volume))
                if there.as_os_str().is_empty() && rbd_name(path)?.is_none() =>
            {
                volume.path.clone_from(path);
            }
            (Some(path), _) if *path != there => {
                let message =
                    format!("the path is {} here and {} in {}", path.display(), there.display(), input.name);
                return Err(CliError::new(Exit::Usage, message).hint("leave one of them out"));
            }
            (None, _) if there.as_os_str().is_empty() => {
                return Err(CliError::new(Exit::Usage, format!("{} has no <path> in <target>", input.name))
                    .hint("add it, or give the path as an argument"));
            }
            _ => {}
        }
        let source =
            secret.map_or_else(|| PassphraseSource::New(NewSecret::default()), PassphraseSource::Named);
        Ok(Request { volume, source, xml: root.map(|root| (input, root)) })
    }
}

/// Runs `vmward volume create`.
pub(super) fn run(global: &Global, args: CreateArgs) -> Result<ExitCode, CliError> {
    let Request { volume, source, xml } = args.request()?;
    let keystores = Config::load(global)?.open_keystores()?;
    let path = volume.path();
    // All that can be said without making anything is said first.
    volume.check().map_err(failure)?;
    if let NewTarget::File(volume) = &volume {
        volume.empty_size().map_err(failure)?;
    }
    let (format, size) = (volume.format(), volume.size());
    let maker = Maker::find(volume, || args.ceph.open(|| Config::load(global)?.open_keystores()))?;
    let (secret, made) = interruptible(async |interrupts| {
        let secret = Passphrase::take(&keystores, &source, &path, xml.as_ref().map(|(input, _)| input))?;
        let progress = Progress::new(format!("making {}", path.display()), args.progress_fd)?;
        let mut show = |share| progress.show(share);
        let made = match &maker {
            Maker::File(qemu_img, volume) => {
                volume::create(qemu_img, volume, &secret.value, interrupts, &mut show).await
            }
            Maker::Image(rbd, new) => rbd.create(new, &secret.value, interrupts).await,
        };
        progress.end(made.is_ok());
        Ok((secret, made))
    })?;
    if let Err(e) = made {
        return ended(e, |failure| secret.forget(&keystores, failure));
    }
    let uuid = secret.uuid;
    if args.json {
        let object = json!({ "path": path, "format": format, "size": size, "secret": uuid.to_string() });
        output::line(format_args!("{object}"))?;
    } else if matches!(source, PassphraseSource::New(_)) {
        match xml {
            Some((_, root)) => output::text(VolumeXml::with_secret(root, uuid))?,
            None => output::line(format_args!("{uuid}"))?,
        }
    }
    Ok(ExitCode::SUCCESS)
}
