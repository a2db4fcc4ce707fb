//! Volumes in a Ceph cluster.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::cli::keystore_failure::keystore_failure;
use crate::cli::{CliError, Exit};
use crate::keystore::Keystores;
use crate::secret::{SecretLookup, UsageKind};
use crate::volume::{Cluster, Rbd, RbdName};

use super::failure::failure;

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
    pub(super) fn target(&self, path: &Path) -> Result<Option<RbdName>, CliError> {
        let name = rbd_name(path)?;
        self.check_needed(name.is_some())?;
        Ok(name)
    }

    /// Refuses these options where no image of a cluster is handled.
    pub(super) fn check_needed(&self, needed: bool) -> Result<(), CliError> {
        match self.ceph_conf.is_some() || self.ceph_user.is_some() || self.ceph_secret.is_some() {
            true if !needed => Err(CliError::new(
                Exit::Usage,
                "--ceph-conf, --ceph-user and --ceph-secret are about a cluster",
            )
            .hint("name an image with rbd:POOL/IMAGE, or leave them out")),
            _ => Ok(()),
        }
    }

    /// What reaches the cluster.
    pub(super) fn open(
        &self,
        keystores: impl FnOnce() -> Result<Keystores, CliError>,
    ) -> Result<Rc<Rbd>, CliError> {
        let key = match &self.ceph_secret {
            Some(name) => {
                let keystores = keystores()?;
                let found = keystores.find(&SecretLookup::named(name), Some(UsageKind::Ceph));
                Some(found.and_then(|found| found.value()).map_err(keystore_failure)?)
            }
            None => None,
        };
        let cluster = Cluster { conf: self.ceph_conf.clone(), user: self.ceph_user.clone(), key };
        Rbd::find(cluster).map(Rc::new).map_err(failure)
    }
}

/// The image of a cluster that a path names; a file of such a name is `./rbd:...`.
pub(super) fn rbd_name(path: &Path) -> Result<Option<RbdName>, CliError> {
    match path.to_str().filter(|path| path.starts_with(RbdName::PREFIX)) {
        Some(name) => RbdName::parse(name).map(Some).map_err(|message| CliError::new(Exit::Usage, message)),
        None => Ok(None),
    }
}
