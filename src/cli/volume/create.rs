//! `vmward volume create`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::unistd::{Group, User};
use serde_json::json;
use uuid::Uuid;

use crate::cli::config::Config;
use crate::cli::input::{Allow, Input};
use crate::cli::keystore_failure::{keystore_failure, unresolved_failure};
use crate::cli::output;
use crate::cli::recipients::RecipientArgs;
use crate::cli::{CliError, Exit, Global};
use crate::keystore::{KeystoreError, Keystores};
use crate::secret::{SecretDefinition, SecretLookup, SecretRef, SecretValue, Usage, UsageKind};
use crate::volume::{
    self, Backing, Cipher, HashName, Interrupts, Kdf, NewVolume, Owner, Preallocation, Qcow2Options, QemuImg,
    VolumeError, VolumeFormat, VolumeXml,
};
use crate::xml::{self, Diagnostics, Element, Keyword, Span};

use super::failure::failure;
use super::progress::Progress;

/// Arguments of `vmward volume create`.
#[derive(clap::Args)]
pub(super) struct CreateArgs {
    /// Where the volume is to be
    #[arg(required_unless_present = "volume_xml")]
    path: Option<PathBuf>,
    /// What the guest sees: 10G or 10GiB (powers of 1024), 10GB (powers of 1000), or bytes
    #[arg(long, value_parser = volume::parse_size)]
    size: Option<u64>,
    /// qcow2, or raw with LUKS around it
    #[arg(long, value_parser = keyword::<VolumeFormat>)]
    format: Option<VolumeFormat>,
    #[command(flatten)]
    secret: SecretArgs,
    #[command(flatten)]
    new_secret: NewSecretArgs,
    /// The volume as libvirt's storage volume XML (- for stdin), instead of the options here
    #[arg(long, value_name = "FILE", conflicts_with_all = ["size", "format", "SecretArgs", "cipher", "hash", "preallocation", "backing"])]
    volume_xml: Option<PathBuf>,
    /// NAME-BITS-MODE[-IV[:HASH]], as in aes-256-xts-plain64 (the default) or serpent-256-cbc-essiv:sha256
    #[arg(long, value_parser = Cipher::parse)]
    cipher: Option<Cipher>,
    /// The hash of the key derivation: sha256 (the default), sha512, sha1, ripemd160
    #[arg(long, value_parser = keyword::<HashName>)]
    hash: Option<HashName>,
    /// What opening the volume costs: auto (cheap for generated keys), fast (random keys only), slow
    #[arg(long, value_parser = keyword::<Kdf>, default_value = "auto")]
    kdf: Kdf,
    /// What is allocated from the start: off, metadata, falloc, full
    #[arg(long, value_parser = keyword::<Preallocation>)]
    preallocation: Option<Preallocation>,
    /// The image that a qcow2 volume stands on, relative to the volume
    #[arg(long, value_name = "PATH", requires = "backing_format")]
    backing: Option<PathBuf>,
    /// The format of the image that it stands on: qcow2 or raw
    #[arg(long, value_name = "FORMAT", value_parser = keyword::<VolumeFormat>, requires = "backing")]
    backing_format: Option<VolumeFormat>,
    /// Give the file to this user, and to a group: the one that QEMU runs as
    #[arg(long, value_name = "USER[:GROUP]", value_parser = owner, conflicts_with = "volume_xml")]
    owner: Option<Owner>,
    /// Replace what is there, once the new volume is complete
    #[arg(long)]
    force: bool,
    /// Print an object with the path, the format, the size and the secret's UUID
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[group(multiple = false)]
struct SecretArgs {
    /// The secret with its passphrase
    #[arg(long, value_name = "UUID|USAGE")]
    secret: Option<String>,
    /// Make a secret with the volume's path as its usage and print its UUID
    #[arg(long)]
    generate: bool,
}

/// What becomes of a secret that is made with the volume.
#[derive(clap::Args)]
struct NewSecretArgs {
    /// Keep the new secret in the kernel's memory until the next boot, never on disk
    #[arg(long)]
    ephemeral: bool,
    #[command(flatten)]
    recipients: RecipientArgs,
}

fn keyword<K: Keyword>(word: &str) -> Result<K, String> {
    K::from_word(word).ok_or_else(|| format!("it takes {}", K::expected()))
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

/// Where the passphrase comes from.
enum Source {
    Named(SecretRef),
    New(NewSecret),
}

/// A secret that is made with the volume.
#[derive(Default)]
struct NewSecret {
    ephemeral: bool,
    recipients: Vec<String>,
}

/// What is to be made, from options or XML.
struct Request {
    volume: NewVolume,
    source: Source,
    /// The document and where it came from.
    xml: Option<(Input, Element)>,
}

impl CreateArgs {
    fn request(self) -> Result<Request, CliError> {
        let mut request = match &self.volume_xml {
            Some(file) => self.xml_request(file)?,
            None => self.options_request()?,
        };
        let volume = &mut request.volume;
        volume.path = std::path::absolute(&volume.path)
            .map(|path| volume::canonical(&path))
            .map_err(|e| CliError::new(Exit::Usage, "the volume has no path").caused_by(e))?;
        volume.kdf = self.kdf;
        volume.replace = self.force;
        let NewSecretArgs { ephemeral, recipients } = &self.new_secret;
        match &mut request.source {
            Source::New(new) => *new = NewSecret { ephemeral: *ephemeral, recipients: recipients.keys()? },
            Source::Named(_) if *ephemeral || !recipients.is_empty() => {
                let message = "--ephemeral and --recipient are about a secret that is made with the volume";
                return Err(CliError::new(Exit::Usage, message).hint("leave them out, or say --generate"));
            }
            Source::Named(_) => {}
        }
        Ok(request)
    }

    fn options_request(&self) -> Result<Request, CliError> {
        let source = match (&self.secret.secret, self.secret.generate) {
            (Some(name), _) => Source::Named(SecretRef {
                text: true,
                lookup: SecretLookup::named(name),
                kind: UsageKind::Volume,
                span: Span::default(),
            }),
            (None, true) => Source::New(NewSecret::default()),
            (None, false) => {
                return Err(CliError::new(Exit::Usage, "a volume needs a secret with its passphrase")
                    .hint("name one with --secret UUID, or have one made with --generate"));
            }
        };
        let mut cipher = self.cipher.unwrap_or_default();
        cipher.hash = self.hash;
        let backing = self.backing.clone().zip(self.backing_format);
        let volume = NewVolume {
            path: self.path.clone().unwrap_or_default(),
            format: self.format.unwrap_or_default(),
            size: self.size,
            cipher,
            kdf: self.kdf,
            preallocation: self.preallocation.unwrap_or_default(),
            backing: backing.map(|(path, format)| Backing { path, format }),
            qcow2: Qcow2Options::default(),
            mode: 0o600,
            owner: self.owner.unwrap_or_default(),
            replace: self.force,
        };
        Ok(Request { volume, source, xml: None })
    }

    fn xml_request(&self, file: &Path) -> Result<Request, CliError> {
        let input = Input::read(file)?;
        let mut diagnostics = Diagnostics::new();
        let root = xml::parse(&input.source, &mut diagnostics);
        let understood = root.as_ref().and_then(|root| VolumeXml::from_xml(root, &mut diagnostics));
        let VolumeXml { mut volume, secret } = input.judge(understood, diagnostics, Allow::Nothing)?;
        match &self.path {
            Some(path) if volume.path.as_os_str().is_empty() => volume.path.clone_from(path),
            Some(path) if *path != volume.path => {
                let message = format!(
                    "the path is {} here and {} in {}",
                    path.display(),
                    volume.path.display(),
                    input.name
                );
                return Err(CliError::new(Exit::Usage, message).hint("leave one of them out"));
            }
            _ if volume.path.as_os_str().is_empty() => {
                return Err(CliError::new(Exit::Usage, format!("{} has no <path> in <target>", input.name))
                    .hint("add it, or give the path as an argument"));
            }
            _ => {}
        }
        let source = secret.map_or_else(|| Source::New(NewSecret::default()), Source::Named);
        Ok(Request { volume, source, xml: root.map(|root| (input, root)) })
    }
}

/// Runs `vmward volume create`.
pub(super) fn run(global: &Global, args: CreateArgs) -> Result<ExitCode, CliError> {
    let as_json = args.json;
    let Request { volume, source, xml } = args.request()?;
    let keystores = Config::load(global)?.open_keystores()?;
    // All that can be said without making anything is said first.
    volume.check().map_err(failure)?;
    let qemu_img = QemuImg::find().map_err(failure)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::new(Exit::Internal, "vmward could not start").caused_by(e))?;
    let (uuid, made) = runtime.block_on(async {
        let mut interrupts = Interrupts::catch()
            .map_err(|e| CliError::new(Exit::Internal, "signals cannot be handled").caused_by(e))?;
        let secret = Passphrase::take(&keystores, &source, &volume, xml.as_ref().map(|(input, _)| input))?;
        let progress = Progress::new(format!("making {}", volume.path.display()));
        let made = volume::create(&qemu_img, &volume, &secret.value, &mut interrupts, &mut |share| {
            progress.show(share);
        })
        .await;
        drop(progress);
        Ok::<_, CliError>((secret.uuid, made))
    })?;
    let is_new = matches!(source, Source::New(_));
    match made {
        Ok(()) => {}
        Err(e) => {
            let interrupted = match &e {
                VolumeError::Interrupted(signal) => Some(*signal),
                _ => None,
            };
            let mut failure = failure(e);
            if is_new && let Err(e) = forget(&keystores, uuid) {
                failure = failure.hint(format!("the new secret {uuid} could not be removed again: {e}"));
            }
            if let Some(signal) = interrupted {
                // As a shell shows a command that a signal ended.
                failure.report();
                return Ok(ExitCode::from(128 + signal as u8));
            }
            return Err(failure);
        }
    }
    if as_json {
        let object = json!({
            "path": volume.path,
            "format": volume.format.as_str(),
            "size": volume.size,
            "secret": uuid.to_string(),
        });
        output::line(format_args!("{object}"))?;
    } else if is_new {
        match xml {
            Some((_, root)) => output::text(VolumeXml::with_secret(root, uuid))?,
            None => output::line(format_args!("{uuid}"))?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The passphrase and whose it is.
struct Passphrase {
    uuid: Uuid,
    value: SecretValue,
}

impl Passphrase {
    fn take(
        keystores: &Keystores,
        source: &Source,
        volume: &NewVolume,
        input: Option<&Input>,
    ) -> Result<Self, CliError> {
        let found = match source {
            Source::Named(secret) => Self::find(keystores, secret).map_err(|error| match input {
                Some(input) => {
                    let unresolved =
                        crate::keystore::Unresolved { secret: secret.clone(), error: error.into() };
                    unresolved_failure(&[unresolved], &input.name, &input.source)
                }
                None => keystore_failure(error),
            }),
            Source::New(new) => Self::generate(keystores, volume, new),
        }?;
        // Said before the derivation of a key that could not be used.
        found.value.as_passphrase().map_err(|e| failure(VolumeError::Passphrase(e)))?;
        Ok(found)
    }

    fn find(keystores: &Keystores, secret: &SecretRef) -> Result<Self, KeystoreError> {
        let found = keystores.find(&secret.lookup, Some(secret.kind))?;
        let uuid = found.definition.uuid;
        Ok(Self { uuid, value: found.value()? })
    }

    fn generate(keystores: &Keystores, volume: &NewVolume, new: &NewSecret) -> Result<Self, CliError> {
        let id = volume.path.to_str().ok_or_else(|| {
            CliError::new(Exit::Usage, "a secret's usage is UTF-8 text, which this path is not")
                .hint("make a secret of another usage, and name it with --secret")
        })?;
        let definition = SecretDefinition {
            uuid: Uuid::new_v4(),
            ephemeral: new.ephemeral,
            private: false,
            description: None,
            value_uri: None,
            recipients: new.recipients.clone(),
            usage: Some(Usage { kind: UsageKind::Volume, id: id.to_owned() }),
        };
        let uuid = definition.uuid;
        let taken = |error| match error {
            KeystoreError::Definition(_) => keystore_failure(error)
                .hint(format!("there is a secret for this path already: use it with --secret {id}")),
            _ => keystore_failure(error),
        };
        let (_, value) = keystores.generate(&definition).map_err(taken)?;
        Ok(Self { uuid, value })
    }
}

/// Takes back the secret of a volume that was not made.
fn forget(keystores: &Keystores, uuid: Uuid) -> Result<(), KeystoreError> {
    let found = keystores.find(&SecretLookup::Uuid(uuid), None)?;
    found.store.undefine(&found.definition)
}
