//! Where things are: paths, `vmward.toml`, and the keystores that are configured.

use std::env;
use std::fs;
use std::io;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::geteuid;
use serde::Deserialize;

use crate::keystore::file::IdentitySources;
use crate::keystore::{DEFAULT_TIMEOUT, Keystores, StoreOptions};
use crate::qemu::{Tls, TlsCredentials};
use crate::secret::SecretLookup;
use crate::supervisor::{Confinement, Places, Unlock};

use super::input::keyword;
use super::keystore_failure::keystore_failure;
use super::{CliError, Exit, Global};

/// Where vmward keeps things. root has the system's places, everybody else those of the XDG base directories.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    /// The running domains' lib dirs. On a tmpfs.
    pub runtime_dir: PathBuf,
    /// What can be made again.
    pub cache_dir: PathBuf,
    /// `vmward.toml`.
    pub config: PathBuf,
    /// The guests of this host, one `NAME.xml` each.
    pub guests_dir: PathBuf,
    /// The file keystore that is used when none is configured.
    pub secrets_dir: PathBuf,
    /// The identity of file keystores.
    pub keystore_key: PathBuf,
}

/// `vmward.toml` as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ConfigFile {
    keystore: Option<OneOrMany>,
    /// Seconds.
    keystore_timeout: Option<NonZero<u32>>,
    /// See [`Unlock`].
    unlock: Option<String>,
    tls: Option<TlsSection>,
    confinement: Option<ConfinementSection>,
}

/// `[confinement]`: what supervisors are held to.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfinementSection {
    /// See [`Confinement`].
    mode: Option<String>,
    #[serde(default)]
    read: Vec<PathBuf>,
    #[serde(default)]
    write: Vec<PathBuf>,
}

impl ConfinementSection {
    fn understood(self) -> Result<(Confinement, Places), String> {
        let mode = self.mode.map_or(Ok(Confinement::default()), |word| keyword(&word))?;
        match self.read.iter().chain(&self.write).find(|path| !path.is_absolute()) {
            Some(path) => Err(format!("'{}' in [confinement] has to begin with '/'", path.display())),
            None => Ok((mode, Places { read: self.read, write: self.write, ..Places::default() })),
        }
    }
}

/// `[tls]`: the certificates of this host.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsSection {
    directory: Option<String>,
    /// A UUID or a usage.
    secret: Option<String>,
    nbd: Option<NbdSection>,
}

/// `[tls.nbd]`: what NBD disks have instead.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct NbdSection {
    directory: String,
    secret: Option<String>,
    psk_user: Option<String>,
}

impl TlsSection {
    fn understood(self) -> Result<Tls, &'static str> {
        let usual = TlsCredentials::default();
        let usual = credentials(self.directory.unwrap_or(usual.directory), self.secret, None)?;
        let nbd = self.nbd.map(|nbd| credentials(nbd.directory, nbd.secret, nbd.psk_user)).transpose()?;
        Ok(Tls { usual, nbd })
    }
}

fn credentials(
    directory: String,
    secret: Option<String>,
    psk_user: Option<String>,
) -> Result<TlsCredentials, &'static str> {
    if !directory.starts_with('/') {
        return Err("the directory of [tls] has to begin with '/'");
    }
    if secret.is_some() && psk_user.is_some() {
        return Err("[tls.nbd] has certificates, whose key a secret may decrypt, or a psk-user, not both");
    }
    let secret = secret.as_deref().map(SecretLookup::named);
    Ok(TlsCredentials { directory, secret, psk_user, ..TlsCredentials::default() })
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// What the options, the environment and `vmward.toml` amount to.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Where things are.
    pub paths: Paths,
    /// The URIs of the keystores, in the order in which they are searched.
    pub keystores: Vec<String>,
    /// How long each of them may take to answer.
    pub keystore_timeout: Duration,
    /// Who derives the keys of LUKS disks.
    pub unlock: Unlock,
    /// What TLS connections of guests prove who they are with.
    pub tls: Tls,
    /// Whether supervisors are confined.
    pub confinement: Confinement,
    /// What they may reach of what `vmward.toml` names for that.
    pub places: Places,
}

impl Paths {
    /// The paths of this user. `VMWARD_RUNTIME_DIR` and `VMWARD_CONFIG` (the path of `vmward.toml`, beside which
    /// the key of the file keystore is) go before the rest.
    pub(crate) fn from_environment() -> Result<Self, CliError> {
        let var = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let given = |name: &str| match var(name) {
            Some(path) => std::path::absolute(path).map(Some).map_err(|e| {
                CliError::new(Exit::Config, format!("{name} is not a usable path")).caused_by(e)
            }),
            None => Ok(None),
        };
        // As the XDG specification has it, a relative path in one of its variables is ignored.
        let xdg = |name: &str, in_home: &str| {
            var(name)
                .filter(|p| p.is_absolute())
                .or_else(|| env::home_dir().filter(|h| h.is_absolute()).map(|h| h.join(in_home)))
                .map(|base| base.join("vmward"))
                .ok_or_else(|| {
                    CliError::new(
                        Exit::Config,
                        format!("neither {name} nor HOME says where vmward's files are"),
                    )
                })
        };
        let root = geteuid().is_root();
        let runtime_dir = match given("VMWARD_RUNTIME_DIR")? {
            Some(dir) => dir,
            None if root => "/run/vmward".into(),
            None => var("XDG_RUNTIME_DIR")
                .filter(|p| p.is_absolute())
                // Where systemd makes it: cron and sudo -u forget to say so.
                .unwrap_or_else(|| format!("/run/user/{}", geteuid()).into())
                .join("vmward"),
        };
        let config = match given("VMWARD_CONFIG")? {
            Some(file) => file,
            None if root => "/etc/vmward/vmward.toml".into(),
            None => xdg("XDG_CONFIG_HOME", ".config")?.join("vmward.toml"),
        };
        let (cache_dir, data_dir) = if root {
            ("/var/cache/vmward".into(), "/var/lib/vmward".into())
        } else {
            (xdg("XDG_CACHE_HOME", ".cache")?, xdg("XDG_DATA_HOME", ".local/share")?)
        };
        Ok(Self {
            runtime_dir,
            cache_dir,
            secrets_dir: data_dir.join("secrets"),
            guests_dir: config.with_file_name("guests"),
            keystore_key: config.with_file_name("keystore.key"),
            config,
        })
    }
}

impl Config {
    /// Reads `vmward.toml`, if there is one, under what the options say.
    pub(crate) fn load(global: &Global) -> Result<Self, CliError> {
        let paths = Paths::from_environment()?;
        let file = match fs::read_to_string(&paths.config) {
            Ok(text) => toml::from_str(&text).map_err(|e| {
                CliError::new(Exit::Config, format!("{} cannot be used", paths.config.display())).caused_by(e)
            })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => ConfigFile::default(),
            Err(e) => {
                return Err(CliError::new(
                    Exit::Config,
                    format!("{} could not be read", paths.config.display()),
                )
                .caused_by(e));
            }
        };
        let (uris, base) = match file.keystore {
            _ if !global.keystore.is_empty() => (global.keystore.clone(), Path::new("")),
            Some(OneOrMany::One(uri)) => (vec![uri], paths.config.parent().unwrap_or(Path::new("/"))),
            Some(OneOrMany::Many(uris)) => (uris, paths.config.parent().unwrap_or(Path::new("/"))),
            None => (Vec::new(), Path::new("")),
        };
        let mut keystores: Vec<_> = uris.iter().map(|uri| absolute(uri, base)).collect();
        if keystores.is_empty() {
            keystores.push(format!("file:{}", paths.secrets_dir.display()));
        }
        let seconds = global.keystore_timeout.or(file.keystore_timeout);
        let keystore_timeout = seconds.map_or(DEFAULT_TIMEOUT, |s| Duration::from_secs(s.get().into()));
        let unlock = file.unlock.map_or(Ok(Unlock::default()), |word| keyword(&word)).map_err(|why| {
            CliError::new(Exit::Config, format!("'unlock' in {} cannot be used", paths.config.display()))
                .caused_by(why)
        })?;
        let tls = file.tls.unwrap_or_default().understood().map_err(|why| {
            CliError::new(Exit::Config, format!("{} cannot be used: {why}", paths.config.display()))
        })?;
        let (confinement, places) = file.confinement.unwrap_or_default().understood().map_err(|why| {
            CliError::new(Exit::Config, format!("{} cannot be used", paths.config.display())).caused_by(why)
        })?;
        Ok(Self { paths, keystores, keystore_timeout, unlock, tls, confinement, places })
    }

    /// The configured keystores.
    pub(crate) fn open_keystores(&self) -> Result<Keystores, CliError> {
        Keystores::open(&self.keystores, &self.store_options()).map_err(keystore_failure)
    }

    /// What keystores are opened with.
    pub(crate) fn store_options(&self) -> StoreOptions {
        let identity = IdentitySources {
            credentials: env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from),
            key_file: self.paths.keystore_key.clone(),
        };
        StoreOptions { timeout: self.keystore_timeout, ..StoreOptions::new(identity) }
    }
}

/// A file keystore may be named relative to `vmward.toml`, or on the command line to the working directory.
fn absolute(uri: &str, base: &Path) -> String {
    let Some(rest) = uri.strip_prefix("file:") else { return uri.to_owned() };
    let (dir, query) = rest.split_at(rest.find('?').unwrap_or(rest.len()));
    match std::path::absolute(base.join(dir)) {
        Ok(path) if !dir.is_empty() => format!("file:{}{query}", path.display()),
        _ => uri.to_owned(),
    }
}
