//! What a supervisor gives up once its guest's needs are known: capabilities that it will not use, the privileges of setuid
//! programs, and the parts of the file system where neither it nor QEMU has any business (Landlock). QEMU is started inside,
//! within bounds that are narrower still: it has no business with keystores.
//!
//! Landlock's scopes are left out. A supervisor that comes back is in another domain than the QEMU that it has to be able to
//! kill, and the buses of desktops and of iSCSI's initiator listen on abstract sockets.

mod capabilities;
mod rules;
mod threads;

use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use landlock::RulesetError;
use nix::unistd::geteuid;
use rustix::thread::{CapabilitySet, set_no_new_privs};

use crate::domain::Domain;
use crate::domain::disk::{Disk, Protocol, Source};
use crate::keystore;
use crate::qemu::{CommandLine, Service};
use crate::xml::keywords;

use super::user::User;

pub(super) use rules::Access;
use rules::Rules;
pub use rules::landlock_abi;

keywords! {
    /// Whether a supervisor is confined.
    #[derive(Default)]
    pub enum Confinement {
        /// It is.
        #[default]
        On = "on",
        /// It keeps all rights that it was started with.
        Off = "off",
    }
}

/// The rules that this process's guest is held to, once it is.
static ENFORCED: OnceLock<Rules> = OnceLock::new();

/// What may be reached besides what the guest's XML names. Of each: with all that is beneath it.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// What the supervisor and QEMU may read.
    pub read: Vec<PathBuf>,
    /// What the supervisor and QEMU may change.
    pub write: Vec<PathBuf>,
    /// What the supervisor alone may read.
    pub own_read: Vec<PathBuf>,
    /// What the supervisor alone may change.
    pub own_write: Vec<PathBuf>,
}

/// The guest that a supervisor is confined for.
pub(super) struct Guest<'a> {
    pub(super) domain: &'a Domain,
    pub(super) line: &'a CommandLine,
    /// QEMU, if it is still to be started.
    pub(super) program: Option<&'a Path>,
    /// Who QEMU runs as, if not as the supervisor's user.
    pub(super) user: Option<&'a User>,
    /// The directory of the lib dirs.
    pub(super) runtime_dir: &'a Path,
}

/// Why a supervisor was not confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfinementError {
    /// Its capabilities stayed.
    #[error("its capabilities could not be given up")]
    Capabilities(#[source] io::Error),
    /// It could still get privileges.
    #[error("the privileges of setuid programs could not be given up")]
    Privileges(#[source] io::Error),
    /// The kernel took no rules.
    #[error("the kernel did not take the rules of its sandbox")]
    Rules(#[from] RulesetError),
}

/// A path is where the supervisor, or QEMU, may not reach.
#[derive(Debug, thiserror::Error)]
#[error("{} is outside of what this guest's supervisor may {}", path.display(), access.as_str())]
pub struct Outside {
    path: PathBuf,
    access: Access,
}

impl Outside {
    /// What to do about it.
    pub fn hint(&self) -> String {
        let key = match self.access {
            Access::Read => "read",
            Access::Write => "write",
        };
        let directory = Some(self.path.as_path()).filter(|path| path.is_dir()).or(self.path.parent());
        let directory = directory.unwrap_or(Path::new("/"));
        format!(
            "have it in a directory of the guest's other images, or add \"{}\" to '{key}' of [confinement] in vmward.toml and \
             start the guest anew",
            directory.display()
        )
    }
}

/// What a supervisor is to be held to.
pub(super) struct Bounds {
    keep: CapabilitySet,
    /// `None`: it has to start programs that make file systems of their own, which Landlock takes from all.
    own: Option<Rules>,
    /// What QEMU has of it.
    qemu: Rules,
}

impl Bounds {
    pub(super) fn new(places: &Places, guest: &Guest<'_>) -> Self {
        let mounts = guest.line.helpers.iter().any(|helper| matches!(helper.service, Service::Network(_)));
        let qemu = Rules::of_guest(places, guest);
        Self {
            keep: capabilities::needed(guest),
            own: (!mounts).then(|| qemu.with(&places.own_read, &places.own_write)),
            qemu,
        }
    }

    /// Confines this process: the thread that calls, those of the keystores' libraries, and with them all that come later.
    pub(super) async fn enforce(self) -> Result<QemuBounds, ConfinementError> {
        let Self { keep, own, qemu } = self;
        // Images come to QEMU as descriptors.
        let reach = own.clone().unwrap_or_else(|| qemu.clone());
        let confine = move || {
            capabilities::limit(keep).map_err(ConfinementError::Capabilities)?;
            set_no_new_privs(true).map_err(|e| ConfinementError::Privileges(e.into()))?;
            let enforced = own.as_ref().map(Rules::restrict).transpose()?;
            // Last: the kernel may ask for more before it takes rules.
            capabilities::lower(keep).map_err(ConfinementError::Capabilities)?;
            Ok::<_, ConfinementError>(enforced)
        };
        match confine()? {
            Some(false) => tracing::debug!("this kernel has no Landlock: files are not confined"),
            None => tracing::debug!("passt makes a file system of its own: only QEMU's files are confined"),
            Some(true) => {}
        }
        let in_library = move || {
            if let Err(e) = confine() {
                let why = e.source().map(|e| format!(": {e}")).unwrap_or_default();
                tracing::warn!("the thread of a token's library is not confined: {e}{why}");
            }
        };
        let libraries = keystore::in_each_thread(&(Arc::new(in_library) as _));
        let strangers = threads::others(libraries).await;
        if !strangers.is_empty() {
            tracing::warn!("not all threads of this process are confined: {}", strangers.join(", "));
        }
        if landlock_abi().is_some() {
            ENFORCED.get_or_init(|| reach);
        }
        Ok(QemuBounds(qemu))
    }
}

/// The bounds of QEMU, within those of the supervisor.
pub(super) struct QemuBounds(Rules);

impl QemuBounds {
    /// Confines the calling thread, and what is started from it.
    pub(super) fn enforce(&self) -> io::Result<()> {
        self.0.restrict().map(drop).map_err(io::Error::other)
    }
}

/// Whether a path is where this process may reach; one that is not confined may reach everything. The kernel would say
/// "Permission denied", as of files that are somebody else's. Of a directory that is not there it says so as ever.
pub(super) fn check(path: &Path, access: Access) -> Result<(), Outside> {
    let is_there = path.parent().is_some_and(Path::exists);
    match ENFORCED.get() {
        Some(rules) if is_there && !rules.allow(path, access) => {
            Err(Outside { path: path.to_owned(), access })
        }
        _ => Ok(()),
    }
}

/// The same for an image that is to be there.
pub(super) fn check_image(path: &Path, access: Access) -> Result<(), Outside> {
    if path.exists() { check(path, access) } else { Ok(()) }
}

/// The same for the images of a disk that is to come, and for what QEMU or a helper reads to log in where they are.
pub(super) fn check_disk(disk: &Disk) -> Result<(), Outside> {
    for image in disk.chain() {
        for image in [Some(image), image.data_store.as_deref()].into_iter().flatten() {
            let access = if image.readonly { Access::Read } else { Access::Write };
            image.source.local_path().map_or(Ok(()), |path| check_image(Path::new(path), access))?;
        }
        let Source::Network(network) = &image.source else { continue };
        let Protocol::Ssh { known_hosts, .. } = &network.protocol else { continue };
        known_hosts.as_ref().map_or(Ok(()), |path| check_image(Path::new(path), Access::Read))?;
        // What knows the server, and whom it is to let in, from elsewhere has no use for the directory. Root's QEMU may reach
        // its own.
        let has_own = known_hosts.is_some() && network.auth.is_some();
        if let Some(keys) = rules::ssh_directory(geteuid()).filter(|_| !has_own && !geteuid().is_root()) {
            check(&keys, Access::Read)?;
        }
    }
    Ok(())
}

/// The path behind all symbolic links, of what is there or is to be made.
fn real(path: &Path) -> PathBuf {
    let made = || Some(fs::canonicalize(path.parent()?).ok()?.join(path.file_name()?));
    fs::canonicalize(path).ok().or_else(made).unwrap_or_else(|| path.to_owned())
}
