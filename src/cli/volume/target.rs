//! What a new volume is to be, as options say it.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::unistd::{Group, User};

use crate::cli::input::keyword;
use crate::cli::{CliError, Exit};
use crate::volume::{
    self, Backing, Cipher, HashName, Kdf, NewRbd, NewTarget, NewVolume, Owner, Preallocation, Qcow2Options,
    QemuImg, Rbd, RbdFormat, RbdName, VolumeFormat,
};
use crate::xml::{Keyword, keywords};

use super::failure::failure;
use super::passphrase::{NewSecretArgs, PassphraseSource, SecretArgs};

keywords! {
    /// The formats of files and of images in a cluster.
    enum TargetFormat {
        /// A file.
        Qcow2 = "qcow2",
        /// Both.
        Raw = "raw",
        /// In a cluster.
        Luks = "luks",
        /// In a cluster.
        Luks2 = "luks2",
    }
}

/// The options of a new volume.
#[derive(clap::Args)]
pub(super) struct TargetArgs {
    /// A file: qcow2 (the default), or raw with LUKS around it. In a Ceph cluster: luks2 (the default) or luks by librbd,
    /// or raw with LUKS by QEMU
    #[arg(long, value_parser = keyword::<TargetFormat>)]
    format: Option<TargetFormat>,
    #[command(flatten)]
    pub(super) secret: SecretArgs,
    #[command(flatten)]
    pub(super) new_secret: NewSecretArgs,
    /// NAME-BITS-MODE[-IV[:HASH]], as in aes-256-xts-plain64 (the default) or serpent-256-cbc-essiv:sha256
    #[arg(long, value_parser = Cipher::parse)]
    cipher: Option<Cipher>,
    /// The hash of the key derivation: sha256 (the default), sha512, sha1, ripemd160
    #[arg(long, value_parser = keyword::<HashName>)]
    hash: Option<HashName>,
    /// What opening the volume costs: auto (cheap for generated keys), fast (random keys only), slow
    #[arg(long, value_parser = keyword::<Kdf>, default_value = "auto")]
    pub(super) kdf: Kdf,
    /// What is allocated from the start: off, metadata, falloc, full
    #[arg(long, value_parser = keyword::<Preallocation>)]
    preallocation: Option<Preallocation>,
    /// Give the file to this user, and to a group: the one that QEMU runs as
    #[arg(long, value_name = "USER[:GROUP]", value_parser = owner)]
    owner: Option<Owner>,
    /// Replace what is there, once the new volume is complete
    #[arg(long)]
    pub(super) force: bool,
}

impl TargetArgs {
    /// The volume in a file.
    pub(super) fn volume(
        &self,
        path: PathBuf,
        size: Option<u64>,
        backing: Option<Backing>,
    ) -> Result<NewVolume, CliError> {
        Ok(NewVolume {
            path,
            format: self.format::<VolumeFormat>("a file")?,
            size,
            cipher: self.cipher(),
            kdf: self.kdf,
            preallocation: self.preallocation.unwrap_or_default(),
            backing,
            qcow2: Qcow2Options::default(),
            mode: 0o600,
            owner: self.owner.unwrap_or_default(),
            replace: self.force,
        })
    }

    /// The volume in a cluster.
    pub(super) fn rbd(&self, name: RbdName, size: u64) -> Result<NewRbd, CliError> {
        self.check_in_cluster()?;
        let format = self.format::<RbdFormat>("an image of a cluster")?;
        Ok(NewRbd { name, format, size, cipher: self.cipher(), kdf: self.kdf })
    }

    /// A plain image in a cluster.
    pub(super) fn plain_rbd(&self, name: RbdName, size: u64) -> Result<NewRbd, CliError> {
        match self.format {
            None | Some(TargetFormat::Raw) => {}
            Some(other) => {
                let message = format!("a plain image of a cluster is raw, not {}", other.as_str());
                return Err(CliError::new(Exit::Usage, message));
            }
        }
        let new = self.rbd(name, size)?;
        Ok(NewRbd { format: RbdFormat::Raw, ..new })
    }

    /// Refuses what is said of files only.
    pub(super) fn check_in_cluster(&self) -> Result<(), CliError> {
        for (is_said, option) in [
            (self.preallocation.is_some(), "--preallocation"),
            (self.owner.is_some(), "--owner"),
            (self.force, "--force"),
        ] {
            if is_said {
                return Err(CliError::new(
                    Exit::Usage,
                    format!("a volume in a cluster is made without {option}"),
                )
                .hint("nothing there is replaced; `vmward volume delete` removes an image"));
            }
        }
        Ok(())
    }

    fn cipher(&self) -> Cipher {
        Cipher { hash: self.hash, ..self.cipher.unwrap_or_default() }
    }

    fn format<F: Keyword + Default>(&self, whose: &str) -> Result<F, CliError> {
        let Some(said) = self.format.map(TargetFormat::as_str) else { return Ok(F::default()) };
        F::from_word(said).ok_or_else(|| {
            CliError::new(Exit::Usage, format!("the format of {whose} is not {said}, but {}", F::expected()))
        })
    }

    /// Whose passphrase it gets.
    pub(super) fn passphrase(&self) -> Result<PassphraseSource, CliError> {
        PassphraseSource::from_args(&self.secret, &self.new_secret)
    }

    /// Whether anything is said that only an encrypted volume has.
    pub(super) fn is_about_encryption(&self) -> bool {
        self.secret.secret.is_some() || self.secret.generate || self.cipher.is_some() || self.hash.is_some()
    }
}

/// The volume, and what makes it.
pub(super) enum Maker {
    File(QemuImg, NewVolume),
    Image(Rc<Rbd>, NewRbd),
}

impl Maker {
    /// Finds the programs.
    pub(super) fn find(
        target: NewTarget,
        cluster: impl FnOnce() -> Result<Rc<Rbd>, CliError>,
    ) -> Result<Self, CliError> {
        Ok(match target {
            NewTarget::File(volume) => Self::File(QemuImg::find().map_err(failure)?, volume),
            NewTarget::Image(new) => Self::Image(cluster()?, new),
        })
    }
}

/// The path of a file that is to be, without symbolic links.
pub(super) fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path)
        .map(|path| volume::canonical(&path))
        .map_err(|e| CliError::new(Exit::Usage, "the volume has no path").caused_by(e))
}

/// Names or numbers, as `chown` takes them.
fn owner(text: &str) -> Result<Owner, String> {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let uid = match user.parse() {
        Ok(uid) => uid,
        Err(_) => match User::from_name(user) {
            Ok(Some(user)) => user.uid.as_raw(),
            _ => return Err(format!("there is no user '{user}'")),
        },
    };
    let gid = match group.map(|group| (group, group.parse())) {
        None => None,
        Some((_, Ok(gid))) => Some(gid),
        Some((group, Err(_))) => match Group::from_name(group) {
            Ok(Some(group)) => Some(group.gid.as_raw()),
            _ => return Err(format!("there is no group '{group}'")),
        },
    };
    Ok(Owner { uid: Some(uid), gid })
}
