//! What `vmward doctor` says of a file keystore: its keys, and files that will not be taken.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;

use age::x25519::{Identity, Recipient};
use nix::unistd::geteuid;
use uuid::Uuid;

use crate::keystore::{Health, KeystoreError};

use super::{FileStore, RECIPIENTS, identity};

/// How many files are named.
const NAMED: usize = 3;

impl FileStore {
    /// Its own keys and files.
    pub(super) fn own_health(&self) -> Result<Vec<Health>, KeystoreError> {
        if !self.exists()? {
            return Ok(Vec::new());
        }
        let recipients = identity::read_recipients(&self.dir.join(RECIPIENTS))?.unwrap_or_default();
        let me = geteuid().as_raw();
        let is_safe = |m: &Metadata| [0, me].contains(&m.uid()) && m.mode() & 0o022 == 0 && !m.is_symlink();
        Ok(vec![self.key_health(&recipients, false)?, self.files_health(is_safe)?])
    }

    /// Whether the keys that are here open what is stored from now on.
    pub(super) fn key_health(&self, recipients: &[Recipient], shared: bool) -> Result<Health, KeystoreError> {
        let about = "key";
        let (identities, from) = match self.identity.load(Uuid::nil()) {
            Ok(loaded) => loaded,
            Err(KeystoreError::NoIdentity { .. }) => {
                let message = "no key to its values is here: they can be set, and not read".to_owned();
                return Ok(Health { about, message, warning: false });
            }
            Err(e) => return Err(e),
        };
        let from = from.join(" and ");
        let opens = |i: &Identity| recipients.iter().any(|r| r.to_string() == i.to_public().to_string());
        if !recipients.is_empty() && !identities.iter().any(opens) {
            if shared {
                let message =
                    format!("the key in {from} reads secrets that name it as a recipient, and no others");
                return Ok(Health { about, message, warning: false });
            }
            let message = format!(
                "what is set from now on cannot be read with the key in {from}, which is none of those in {RECIPIENTS}"
            );
            return Ok(Health { about, message, warning: true });
        }
        let device = |path| fs::metadata(path).ok().map(|m: Metadata| m.dev());
        let beside = device(&self.dir).is_some() && device(&self.dir) == device(&self.identity.key_file);
        let message = match beside {
            true => format!(
                "values are read with the key in {from}, on the same file system as they are: who takes the disk has both"
            ),
            false => format!("values are read with the key in {from}"),
        };
        Ok(Health { about, message, warning: false })
    }

    /// Whether each file is as it must be to be taken.
    pub(super) fn files_health(&self, is_safe: impl Fn(&Metadata) -> bool) -> Result<Health, KeystoreError> {
        let (mut count, mut bad) = (0, Vec::new());
        let entries = fs::read_dir(&self.dir).map_err(KeystoreError::io(&self.dir, "read"))?;
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().replace(char::is_control, "?");
            // The index, the lock, and files in the making are the store's own business.
            let Some(metadata) = entry.metadata().ok().filter(|_| !name.starts_with('.')) else { continue };
            count += 1;
            if !is_safe(&metadata) {
                bad.push(format!("{name} ({:04o}, user {})", metadata.mode() & 0o7777, metadata.uid()));
            }
        }
        bad.sort();
        let message = match bad.len() {
            0 => format!("owners and modes of its {count} files are as they should be"),
            n if n > NAMED => format!("{n} files will not be taken: {}, ...", bad[..NAMED].join(", ")),
            n => format!("{n} of {count} files will not be taken: {}", bad.join(", ")),
        };
        Ok(Health { about: "files", message, warning: !bad.is_empty() })
    }
}
