//! `vmward volume info`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::cli::config::Config;
use crate::cli::keystore_failure::keystore_failure;
use crate::cli::output;
use crate::cli::status::{DiskInUse, disks_on};
use crate::cli::{CliError, Exit, Global};
use crate::keystore::SecretFound;
use crate::luks::{Luks1Header, UnlockError};
use crate::secret::{SecretLookup, UsageKind};
use crate::supervisor;
use crate::volume::{self, Image, ImageEncryption, KeyArea, Rbd, RbdName, VolumeError};

use super::failure::failure;
use super::progress::interruptible;
use super::rbd::CephArgs;
use super::secret_of;

/// A start that takes longer than this is worth a word.
const SLOW_SECONDS: f64 = 0.1;

/// Arguments of `vmward volume info`.
#[derive(clap::Args)]
pub(super) struct InfoArgs {
    /// The volume
    path: PathBuf,
    /// Print an object
    #[arg(long)]
    json: bool,
    /// Say which key slots its secret opens, of a file; fails if it opens none
    #[arg(long = "try")]
    try_secret: bool,
    /// The volume's secret, if its usage is not the volume's path
    #[arg(long, value_name = "UUID|USAGE")]
    secret: Option<String>,
    #[command(flatten)]
    ceph: CephArgs,
}

/// The volume's secret, and what it opens, if that was asked for.
struct Found {
    uuid: Uuid,
    opens: Option<Vec<usize>>,
}

/// An image in a cluster: what `volume info` needs of it.
struct Remote {
    name: RbdName,
    rbd: Rc<Rbd>,
}

/// Runs `vmward volume info`.
pub(super) fn run(global: &Global, args: &InfoArgs) -> Result<ExitCode, CliError> {
    let remote = match args.ceph.target(&args.path)? {
        Some(name) => Some(Remote { name, rbd: args.ceph.open(|| Config::load(global)?.open_keystores())? }),
        None => None,
    };
    let (image, path) = match &remote {
        Some(Remote { name, rbd }) => {
            let image = interruptible(async |interrupts| rbd.look(name, interrupts).await.map_err(failure))?;
            (image, args.path.clone())
        }
        None => (Image::probe(&args.path).map_err(failure)?, volume::canonical(&args.path)),
    };
    let secret = find_secret(global, args, &path, &image, remote.as_ref())?;
    let slow = image.opening_seconds().filter(|seconds| *seconds >= SLOW_SECONDS);
    if let Some(seconds) = slow {
        let remedy = match remote {
            Some(_) => "",
            None => "; `vmward volume rekey --machine-key` makes it quick",
        };
        eprintln!("warning: whoever opens it waits {seconds:.1} s each time{remedy}");
    }
    // Guests that cannot be asked, another user's above all, have nothing to say here.
    let used_by = disks_on(&path).unwrap_or_default();
    if args.json {
        output::line(as_json(&path, &image, secret.as_ref(), &used_by))?;
    } else {
        output::text(as_text(&path, &image, secret.as_ref(), &used_by))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn find_secret(
    global: &Global,
    args: &InfoArgs,
    path: &Path,
    image: &Image,
    remote: Option<&Remote>,
) -> Result<Option<Found>, CliError> {
    let found = Config::load(global).and_then(|config| config.open_keystores()).and_then(|keystores| {
        let found = match &args.secret {
            Some(name) => keystores.find(&SecretLookup::named(name), Some(UsageKind::Volume)).map(Some),
            None => secret_of(&keystores, path, &args.path),
        };
        let found = found.map_err(keystore_failure)?;
        let Some(found) = found.filter(|_| image.encryption.is_some()) else { return Ok(None) };
        let opens = match args.try_secret {
            true => Some(match remote {
                Some(remote) => remote.opened(image, &found)?,
                None => opened(path, &found)?,
            }),
            false => None,
        };
        Ok(Some(Found { uuid: found.definition.uuid, opens }))
    });
    match found {
        Ok(None) if args.try_secret => Err(CliError::new(Exit::NoInput, "there is no secret to try")
            .hint("name the volume's secret with --secret UUID")),
        // What the header says needs no keystore.
        Err(e) if !args.try_secret && args.secret.is_none() => {
            eprintln!("warning: the keystores could not be asked for its secret: {}", e.message);
            Ok(None)
        }
        found => found,
    }
}

impl Remote {
    /// Fails if a secret does not open it. By which key slot is not told.
    fn opened(&self, image: &Image, secret: &SecretFound<'_>) -> Result<Vec<usize>, CliError> {
        let value = secret.value().map_err(keystore_failure)?;
        interruptible(async |interrupts| {
            self.rbd.open(&self.name, image, &value, interrupts).await.map_err(failure)
        })?;
        Ok(Vec::new())
    }
}

/// The numbers of the key slots that a secret opens.
fn opened(path: &Path, secret: &SecretFound<'_>) -> Result<Vec<usize>, CliError> {
    supervisor::harden().map_err(|e| CliError::new(Exit::Internal, e.to_string()))?;
    let value = secret.value().map_err(keystore_failure)?;
    let file =
        File::open(path).map_err(|source| VolumeError::Io { path: path.into(), what: "opened", source });
    let opened = file.and_then(|file| KeyArea::of(file, path)?.opened_by(&value)).map_err(failure)?;
    if opened.is_empty() {
        let source = UnlockError::WrongPassphrase;
        return Err(failure(VolumeError::Unlock { path: path.into(), source }));
    }
    Ok(opened.iter().map(|slot| slot.number).collect())
}

fn as_json(path: &Path, image: &Image, secret: Option<&Found>, used_by: &[DiskInUse]) -> Value {
    let encryption = image.encryption.as_ref().map(|encryption| match encryption {
        ImageEncryption::Luks1(header) => json!({
            "format": "luks",
            "version": 1,
            "uuid": header.uuid,
            "cipher": header.cipher,
            "mode": header.mode,
            "hash": header.hash,
            "key-bits": header.key_len * 8,
            "digest-iterations": header.digest_iterations,
            "payload-offset": header.payload_offset,
            "slots": header.slots.iter().map(|slot| match slot.active {
                true => json!({ "active": true, "iterations": slot.iterations }),
                false => json!({ "active": false }),
            }).collect::<Vec<_>>(),
            "opening-seconds": image.opening_seconds(),
        }),
        ImageEncryption::Luks2(header) => {
            json!({ "format": "luks2", "version": 2, "uuid": header.uuid, "label": header.label })
        }
        ImageEncryption::QcowAes => json!({ "format": "qcow" }),
    });
    json!({
        "path": path,
        "format": image.format.as_str(),
        "virtual-size": image.virtual_size,
        "file-size": image.file_size,
        "allocated": image.allocated,
        "encryption": encryption,
        "backing": image.backing.as_ref().map(|b| json!({ "path": b.name, "format": b.format })),
        "data-file": image.data_file,
        "secret": secret.map(|s| s.uuid.to_string()),
        "secret-opens": secret.and_then(|s| s.opens.as_ref()).map(|slots| match slots.is_empty() {
            true => json!(true),
            false => json!(slots),
        }),
        "used-by": used_by.iter().map(|disk| json!({
            "guest": disk.guest,
            "target": disk.target,
            "unlocked-outside": disk.unlocked_outside,
        })).collect::<Vec<_>>(),
    })
}

fn as_text(path: &Path, image: &Image, secret: Option<&Found>, used_by: &[DiskInUse]) -> String {
    let mut lines = Lines::default();
    lines.add("Path", path.display());
    lines.add("Format", image.format.as_str());
    lines.add("Virtual size", size(image.virtual_size));
    if let Some(allocated) = image.allocated {
        lines.add("On disk", size(allocated));
    }
    match &image.encryption {
        None => lines.add("Encryption", "none"),
        Some(ImageEncryption::QcowAes) => {
            lines.add("Encryption", "the old AES of qcow2, which QEMU's system emulators refuse");
        }
        Some(ImageEncryption::Luks2(header)) => {
            lines.add("Encryption", "LUKS2, which librbd and cryptsetup open, QEMU by itself does not");
            lines.add("LUKS UUID", &header.uuid);
        }
        Some(ImageEncryption::Luks1(header)) => luks(&mut lines, header, image),
    }
    if let Some(backing) = &image.backing {
        let format = backing.format.as_deref().unwrap_or("format not said");
        lines.add("Backing image", format!("{} ({format})", backing.name));
    }
    if image.data_file {
        lines.add("Data", "in another file");
    }
    if image.encryption.is_some() {
        match secret {
            Some(Found { uuid, opens: None }) => lines.add("Secret", uuid),
            Some(Found { uuid, opens: Some(slots) }) if slots.is_empty() => {
                lines.add("Secret", format!("{uuid}, which opens it"));
            }
            Some(Found { uuid, opens: Some(slots) }) => {
                let slots: Vec<String> = slots.iter().map(ToString::to_string).collect();
                lines.add("Secret", format!("{uuid}, which opens key slot {}", slots.join(", ")));
            }
            None => lines.add("Secret", "none in the keystores has this path as its usage"),
        }
    }
    for disk in used_by {
        let unlocked = if disk.unlocked_outside { ", unlocked by vmward" } else { "" };
        lines.add("Used by", format!("{} as {}{unlocked}", disk.guest, disk.target));
    }
    lines.0
}

fn luks(lines: &mut Lines, header: &Luks1Header, image: &Image) {
    lines.add("Encryption", "LUKS1");
    let bits = header.key_len * 8;
    lines.add("Cipher", format!("{}-{} with a key of {bits} bits", header.cipher, header.mode));
    lines.add("Hash", &header.hash);
    lines.add("LUKS UUID", &header.uuid);
    let active = header.active_slots().count();
    lines.add("Key slots", format!("{active} of {} in use", header.slots.len()));
    for (n, slot) in header.active_slots() {
        lines.add(&format!("  slot {n}"), format!("{} iterations", slot.iterations));
    }
    lines.add("  digest", format!("{} iterations", header.digest_iterations));
    match image.opening_seconds() {
        None => lines.add("Opening", "impossible: no key slot is in use"),
        Some(s) if s < SLOW_SECONDS => lines.add("Opening", format!("about {:.0} ms", (s * 1000.0).max(1.0))),
        Some(s) => lines.add("Opening", format!("about {s:.1} s at each start")),
    }
}

#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, name: &str, value: impl std::fmt::Display) {
        self.0.push_str(&format!("{:<16}{value}\n", format!("{name}:")));
    }
}

fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut scaled, mut unit) = (bytes as f64, 0);
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} bytes"),
        _ => format!("{scaled:.1} {} ({bytes} bytes)", UNITS[unit]),
    }
}
