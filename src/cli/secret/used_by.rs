//! What uses secrets, as far as whoever asks can see it: guests that run, guests that are described, volumes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::cli::config::Paths;
use crate::cli::input::Input;
use crate::cli::{CliError, status};
use crate::domain::Domain;
use crate::qemu::{Tls, TlsCredentials};
use crate::secret::{SecretDefinition, SecretLookup, SecretRef, UsageKind};
use crate::volume::{self, Image};
use crate::xml::{self, Diagnostics};

/// A guest and the secrets that its devices name.
struct Guest {
    name: String,
    running: bool,
    secrets: Vec<SecretRef>,
    /// Those of its images that are files or block devices, with the paths of these.
    images: Vec<(PathBuf, SecretRef)>,
}

/// The guests that are looked at, and what this host has for all.
pub(in crate::cli) struct Guests {
    guests: Vec<Guest>,
    tls: Tls,
}

/// What uses a secret.
pub(in crate::cli) enum User<'a> {
    /// A guest.
    Guest {
        /// Its name.
        name: &'a str,
        /// Whether it runs.
        running: bool,
    },
    /// What guests have whose XML says nothing else: a table of `vmward.toml`.
    Configuration(&'static str),
    /// An encrypted volume at the path that is the secret's usage.
    Volume(&'a str),
}

impl Guests {
    /// Those that run, those of the guests' directory, and those of these files.
    pub(in crate::cli) fn find(files: &[PathBuf], tls: &Tls) -> Result<Self, CliError> {
        let mut guests = Self { guests: Vec::new(), tls: tls.clone() };
        // A directory of guests that is closed to this user hides what others run, not what the keystores have.
        for (name, text) in status::running().unwrap_or_default() {
            guests.add(&Input { name, source: text }, true);
        }
        for path in described()? {
            match Input::read(&path) {
                Ok(input) => guests.add(&input, false),
                Err(e) => eprintln!("warning: {}", e.message),
            }
        }
        for path in files {
            guests.add(&Input::read(path)?, false);
        }
        Ok(guests)
    }

    fn add(&mut self, input: &Input, running: bool) {
        let mut diagnostics = Diagnostics::new();
        let root = xml::parse(&input.source, &mut diagnostics);
        let Some(domain) = root.and_then(|root| Domain::from_xml(&root, &mut diagnostics)) else {
            eprintln!(
                "warning: {} describes no guest: what it uses is not shown (see `vmward check`)",
                input.name
            );
            return;
        };
        let name = domain.name().to_owned();
        // What runs is how it is used.
        if !self.guests.iter().any(|guest| guest.name == name) {
            let images = domain.devices.disks.iter().flat_map(|disk| disk.chain());
            let images = images.flat_map(|image| {
                let path = image.source.local_path().map(|path| volume::canonical(Path::new(path)));
                let secrets = image.encryption.iter().flat_map(|e| &e.secrets);
                secrets.filter_map(move |secret| Some((path.clone()?, secret.clone())))
            });
            let images = images.collect();
            let secrets = [domain.secrets(), self.tls.secrets(&domain)].concat();
            self.guests.push(Guest { name, running, secrets, images });
        }
    }

    /// What uses a secret, guests first.
    pub(in crate::cli) fn users<'a>(&'a self, secret: &'a SecretDefinition) -> Vec<User<'a>> {
        let using = self.guests.iter().filter(|guest| guest.secrets.iter().any(|r| names(r, secret)));
        let guests = using.map(|guest| User::Guest { name: &guest.name, running: guest.running });
        let usage = secret.usage.as_ref().filter(|usage| usage.kind == UsageKind::Volume);
        let volume = usage.map(|usage| usage.id.as_str()).filter(|id| is_encrypted(Path::new(id)));
        let tables = [("tls", Some(&self.tls.usual)), ("tls.nbd", self.tls.nbd.as_ref())].into_iter();
        let is_its = |credentials: &TlsCredentials| credentials.key().is_some_and(|key| names(&key, secret));
        let tables = tables.filter(|(_, credentials)| credentials.is_some_and(is_its));
        let tables = tables.map(|(table, _)| User::Configuration(table));
        guests.chain(tables).chain(volume.map(User::Volume)).collect()
    }

    /// What uses a secret for something else than the volume at a path, each as a phrase.
    pub(in crate::cli) fn besides(&self, secret: &SecretDefinition, path: &Path) -> Vec<String> {
        let uses = |guest: &&Guest| {
            let all = guest.secrets.iter().filter(|r| names(r, secret)).count();
            let here = guest.images.iter().filter(|(image, r)| image == path && names(r, secret)).count();
            all > here
        };
        let guests = self.guests.iter().filter(uses).map(|guest| format!("the guest {}", guest.name));
        let usage = secret.usage.as_ref().filter(|usage| usage.kind == UsageKind::Volume);
        let volume = usage.map(|usage| Path::new(&usage.id));
        let volume = volume.filter(|other| is_encrypted(other) && volume::canonical(other) != path);
        guests.chain(volume.map(|other| format!("the volume {}", other.display()))).collect()
    }
}

/// Whether a place in XML means a secret.
fn names(place: &SecretRef, secret: &SecretDefinition) -> bool {
    match &place.lookup {
        SecretLookup::Uuid(uuid) => *uuid == secret.uuid,
        SecretLookup::Usage(id) => {
            secret.usage.as_ref().is_some_and(|usage| usage.kind == place.kind && usage.id == *id)
        }
    }
}

impl User<'_> {
    /// For people. The path of a volume stands beside it, as the usage.
    pub(in crate::cli) fn as_text(&self) -> String {
        match self {
            Self::Guest { name, running: true } => format!("{name} (running)"),
            Self::Guest { name, running: false } => (*name).to_owned(),
            Self::Configuration(table) => format!("[{table}] of vmward.toml"),
            Self::Volume(_) => "the volume".to_owned(),
        }
    }

    /// For programs.
    pub(in crate::cli) fn as_json(&self) -> Value {
        match self {
            Self::Guest { name, running } => json!({ "guest": name, "running": running }),
            Self::Configuration(table) => json!({ "configuration": table }),
            Self::Volume(path) => json!({ "volume": path }),
        }
    }
}

/// A header does not name its secret, so this is all that can be said: that there is something to unlock.
fn is_encrypted(path: &Path) -> bool {
    path.is_absolute() && Image::probe(path).is_ok_and(|image| image.encryption.is_some())
}

/// The XML files of the guests' directory, sorted.
fn described() -> Result<Vec<PathBuf>, CliError> {
    let dir = Paths::from_environment()?.guests_dir;
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) => {
            if e.kind() != io::ErrorKind::NotFound {
                eprintln!("warning: the guests in {} cannot be read ({e})", dir.display());
            }
            return Ok(Vec::new());
        }
    };
    let is_xml = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "xml");
    let mut paths: Vec<_> = entries.filter_map(Result::ok).map(|e| e.path()).filter(is_xml).collect();
    paths.sort();
    Ok(paths)
}
