//! Volumes in a Ceph cluster.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;

use crate::cli::config::Config;
use crate::cli::keystore_failure::keystore_failure;
use crate::cli::output;
use crate::cli::{CliError, Exit, Global};
use crate::keystore::Keystores;
use crate::secret::{SecretLookup, UsageKind};
use crate::volume::{Cluster, Rbd, RbdName};

use super::create::CreateArgs;
use super::failure::failure;
use super::passphrase::{Passphrase, PassphraseSource, ended};
use super::progress::{Progress, interruptible};

/// How a cluster is reached.
#[derive(clap::Args)]
pub(super) struct CephArgs {
    /// The configuration of the Ceph cluster, unless it is where Ceph looks for it
    #[arg(long, value_name = "FILE")]
    ceph_conf: Option<PathBuf>,
    /// The user that logs in to the Ceph cluster, without `client.`
    #[arg(long, value_name = "NAME")]
    ceph_user: Option<String>,
    /// The secret with its cephx key, unless that is in a keyring of this host
    #[arg(long, value_name = "UUID|USAGE")]
    ceph_secret: Option<String>,
}

impl CephArgs {
    /// The image that a path names, if it is none of a file.
    pub(super) fn target(&self, path: Option<&Path>) -> Result<Option<RbdName>, CliError> {
        match path.and_then(Path::to_str).filter(|path| path.starts_with(RbdName::PREFIX)) {
            Some(name) => {
                RbdName::parse(name).map(Some).map_err(|message| CliError::new(Exit::Usage, message))
            }
            None if self.ceph_conf.is_some() || self.ceph_user.is_some() || self.ceph_secret.is_some() => {
                Err(CliError::new(
                    Exit::Usage,
                    "--ceph-conf, --ceph-user and --ceph-secret are about a cluster",
                )
                .hint("name an image with rbd:POOL/IMAGE, or leave them out"))
            }
            None => Ok(None),
        }
    }

    /// What reaches the cluster.
    pub(super) fn open(
        &self,
        keystores: impl FnOnce() -> Result<Keystores, CliError>,
    ) -> Result<Rbd, CliError> {
        let key = match &self.ceph_secret {
            Some(name) => {
                let keystores = keystores()?;
                let found = keystores.find(&SecretLookup::named(name), Some(UsageKind::Ceph));
                Some(found.and_then(|found| found.value()).map_err(keystore_failure)?)
            }
            None => None,
        };
        let cluster = Cluster { conf: self.ceph_conf.clone(), user: self.ceph_user.clone(), key };
        Rbd::find(cluster).map_err(failure)
    }
}

/// Refuses an image of a cluster where only files are handled.
pub(super) fn file_only(path: &Path) -> Result<(), CliError> {
    match path.to_str().is_some_and(|path| path.starts_with(RbdName::PREFIX)) {
        true => Err(CliError::new(Exit::Usage, format!("{} is no file", path.display())).hint(
            "images of a cluster are made, looked at, resized and deleted; a file of that name is ./rbd:...",
        )),
        false => Ok(()),
    }
}

/// Runs `vmward volume create` for an image of a cluster.
pub(super) fn create(global: &Global, args: &CreateArgs, name: RbdName) -> Result<ExitCode, CliError> {
    let usage = |message: &str| CliError::new(Exit::Usage, message);
    if args.volume_xml.is_some() {
        return Err(usage("volume XML describes files").hint("say with options what is made in a cluster"));
    }
    if args.backing.is_some() {
        return Err(usage(
            "an image of a cluster is made without a backing image; `rbd clone` makes one on another",
        ));
    }
    let size = args.size.ok_or_else(|| usage("a volume without a backing image needs a size"))?;
    let source = args.target.passphrase()?;
    let new = args.target.rbd(name, size)?;
    new.check().map_err(failure)?;
    let keystores = Config::load(global)?.open_keystores()?;
    let rbd = args.ceph.open(|| Config::load(global)?.open_keystores())?;
    let id = new.name.to_string();
    let (secret, made) = interruptible(async |interrupts| {
        let secret = Passphrase::take(&keystores, &source, Path::new(&id), None)?;
        let progress = Progress::new(format!("making {id}"), args.progress_fd)?;
        let made = rbd.create(&new, &secret.value, interrupts).await;
        progress.end(made.is_ok());
        Ok((secret, made))
    })?;
    if let Err(e) = made {
        return ended(e, |failure| secret.forget(&keystores, failure));
    }
    let uuid = secret.uuid;
    if args.json {
        let object =
            json!({ "path": id, "format": new.format.as_str(), "size": size, "secret": uuid.to_string() });
        output::line(format_args!("{object}"))?;
    } else if matches!(source, PassphraseSource::New(_)) {
        output::line(format_args!("{uuid}"))?;
    }
    Ok(ExitCode::SUCCESS)
}
