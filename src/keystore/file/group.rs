//! `file:DIR?owner=NAME&group=NAME`: a store that several users share and in which none is at another's mercy.
//!
//! The members of the group add secrets; what is there belongs to who added it, because the directory is sticky; and
//! values are encrypted to keys of which those who add need only the public half. The directory's owner (or root) removes.
//! What a member could do by hand is expected: a file with any name and any content, of his own. So
//! - there is no lock, which a member could hold forever, and no index that he could write lies into. A usage is claimed
//!   by a file `KIND-HASH.usage` with the secret's UUID: the first one to link that name has it, and nobody else can replace it;
//! - a value says whose it is ([`bound`](super::bound)), so that it cannot be taken for another secret's;
//! - a definition is its owner's word. A value or a claim counts only if it is of that owner, or of the directory's;
//! - a definition says nothing that makes a reader act: a value elsewhere (`<value uri=...>`), which could be a program;
//! - `recipients.txt` is root's. Who can write it can read all that is set from then on.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use age::x25519::Recipient;
use nix::unistd::{Gid, Group, Uid, User, geteuid};
use uuid::Uuid;

use crate::keystore::{Failure, Health, Keystore, KeystoreError, Listing};
use crate::secret::{DefinitionError, SecretDefinition, SecretLookup, SecretValue, Usage, UsageKind};

use super::disk::{self, Existing};
use super::index::{fnv1a, has_usage};
use super::{FileStore, RECIPIENTS, find, identity, not_defined, parse};

/// Members may not touch each other's files, and files have the directory's group.
const STICKY_SETGID: u32 = 0o3000;
/// The ending of the names of claims.
const CLAIM: &str = "usage";
/// A file in the making is not left alone for longer than this by who makes it.
const LEFT_BEHIND: Duration = Duration::from_secs(3600);

/// A keystore in a directory of several users.
pub(super) struct GroupStore {
    store: FileStore,
    owner: Option<u32>,
    group: u32,
}

/// What counts of the directory.
struct Directory {
    /// Who may remove and replace what others added.
    owner: u32,
    /// The mode of files in it.
    mode: u32,
}

impl Directory {
    /// Whether what this user wrote counts as the owner's word would.
    fn is_trusted(&self, uid: u32) -> bool {
        uid == 0 || uid == self.owner
    }
}

impl GroupStore {
    /// The store of `owner=NAME&group=NAME`; the owner may be left out where it is root or whoever asks.
    pub(super) fn new(store: FileStore, query: &str) -> Result<Self, String> {
        let (mut owner, mut group) = (None, None);
        for pair in query.split('&') {
            match pair.split_once('=') {
                Some(("owner", name)) if owner.is_none() => owner = Some(user(name)?),
                Some(("group", name)) if group.is_none() => group = Some(gid(name)?),
                _ => return Err(form(pair)),
            }
        }
        let group = group.ok_or_else(|| form(query))?;
        Ok(Self { store, owner, group })
    }

    /// Looks at the directory, each time anew: it is what all else stands on.
    fn directory(&self) -> Result<Directory, KeystoreError> {
        let path = &self.store.dir;
        let not_shared = |why: String| KeystoreError::NotShared { path: path.clone(), why };
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            // Not as with a store of one's own: who is told of a store of others is told that it is there.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(not_shared("it is not there".into()));
            }
            Err(e) => return Err(KeystoreError::io(path, "read")(e)),
        };
        let (uid, gid, mode) = (metadata.uid(), metadata.gid(), metadata.mode());
        if uid != 0 && uid != geteuid().as_raw() && Some(uid) != self.owner {
            return Err(not_shared(format!(
                "it belongs to the user {uid}, whom the keystore's URI does not name"
            )));
        }
        if gid != self.group {
            return Err(not_shared(format!("its group is {gid}, not {}", self.group)));
        }
        if mode & STICKY_SETGID != STICKY_SETGID || mode & 0o002 != 0 || !metadata.is_dir() {
            return Err(not_shared(format!("its mode is {:04o}", mode & 0o7777)));
        }
        // Who may look for a file in the directory may read it: values are encrypted.
        let read = |search: u32, read: u32| if mode & search != 0 { read } else { 0 };
        Ok(Directory { owner: uid, mode: 0o600 | read(0o010, 0o040) | read(0o001, 0o004) })
    }

    fn definition(&self, uuid: Uuid) -> Result<Option<(SecretDefinition, u32)>, KeystoreError> {
        let path = self.store.definition_path(uuid);
        let Some((content, owner)) = disk::read_anyones(&path)? else { return Ok(None) };
        let definition = parse(path.clone(), uuid, &disk::text(&path, content)?)?;
        if definition.value_uri.is_some() {
            let why = "it says that the value is elsewhere, which a shared keystore must not say".to_owned();
            return Err(KeystoreError::Foreign { path, why });
        }
        definition
            .check_text()
            .map_err(|e| KeystoreError::Damaged { path, why: e.to_string() })
            .map(|()| Some((definition, owner)))
    }

    fn claim_path(&self, kind: UsageKind, id: &str) -> PathBuf {
        self.store.dir.join(format!("{}-{:016x}.{CLAIM}", kind.as_str(), fnv1a(id.as_bytes())))
    }

    /// The secret that has claimed the usage.
    fn find_usage(
        &self,
        directory: &Directory,
        kind: UsageKind,
        id: &str,
    ) -> Result<Option<SecretDefinition>, KeystoreError> {
        let path = self.claim_path(kind, id);
        let Some((uuid, claimant)) = read_claim(&path)? else { return Ok(None) };
        let Some((definition, owner)) = self.definition(uuid)? else { return Ok(None) };
        if !has_usage(&definition, kind, id) {
            return Ok(None);
        }
        if claimant != owner && !directory.is_trusted(claimant) {
            let why = format!("it belongs to the user {claimant}, the secret {uuid} to the user {owner}");
            return Err(KeystoreError::Foreign { path, why });
        }
        Ok(Some(definition))
    }

    /// Takes a usage for a secret whose definition is there. Of two that try, the file system lets one have it.
    fn claim(&self, directory: &Directory, usage: &Usage, uuid: Uuid) -> Result<(), KeystoreError> {
        let (path, text) = (self.claim_path(usage.kind, &usage.id), format!("{uuid}\n"));
        let claim = |existing| disk::place(&path, text.as_bytes(), directory.mode, existing);
        if claim(Existing::Keep)? {
            return Ok(());
        }
        // A claim of a secret that is no longer there, or of somebody else's, is void.
        if let Some((named, claimant)) = read_claim(&path)?
            && let Some((other, owner)) = self.definition(named)?
            && other.uuid != uuid
            && (claimant == owner || directory.is_trusted(claimant))
        {
            return Err(KeystoreError::Definition(DefinitionError::UsageTaken(other.uuid)));
        }
        self.check_mine(directory, &path, "take the usage")?;
        claim(Existing::Replace).map(drop)
    }

    /// Refuses, before anything is done, what the directory's permissions would.
    fn check_mine(&self, directory: &Directory, path: &Path, what: &str) -> Result<(), KeystoreError> {
        let me = geteuid().as_raw();
        match owner_of(path)? {
            Some(owner) if owner != me && !directory.is_trusted(me) => {
                let asked = format!("{what}; {} belongs to the user {owner}", path.display());
                Err(Failure::Denied.of(&self.store.uri, Some(&asked)))
            }
            _ => Ok(()),
        }
    }

    /// The public keys that every value is encrypted to.
    fn recipients(&self) -> Result<Vec<Recipient>, KeystoreError> {
        let path = self.store.dir.join(RECIPIENTS);
        match disk::read_anyones(&path)? {
            None => {
                Err(Failure::Missing(format!("{RECIPIENTS}, which root puts there"))
                    .of(&self.store.uri, None))
            }
            Some((_, owner)) if owner != 0 => {
                let why = format!(
                    "it belongs to the user {owner}, not to root: who writes it can read what is set from then on"
                );
                Err(KeystoreError::Foreign { path, why })
            }
            Some((content, _)) => identity::parse_recipients(&path, &disk::text(&path, content)?),
        }
    }

    /// Removes what writers that were killed have left: one's own, or as the directory's owner everybody's. Without a
    /// lock, age is all that tells it from a file that is being written.
    fn sweep(&self, directory: &Directory) {
        let is_left = |metadata: &Metadata| {
            let mine = metadata.uid() == geteuid().as_raw() || directory.is_trusted(geteuid().as_raw());
            mine && metadata
                .modified()
                .ok()
                .and_then(|t| t.elapsed().ok())
                .is_some_and(|age| age > LEFT_BEHIND)
        };
        for entry in fs::read_dir(&self.store.dir).into_iter().flatten().flatten() {
            let unfinished = entry.file_name().as_encoded_bytes().starts_with(disk::TEMPORARY.as_bytes());
            if unfinished && entry.metadata().is_ok_and(|metadata| is_left(&metadata)) {
                let _ = disk::remove(&entry.path());
            }
        }
    }
}

impl Keystore for GroupStore {
    fn uri(&self) -> &str {
        &self.store.uri
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn takes_recipients(&self) -> bool {
        true
    }

    fn find(
        &self,
        lookup: &SecretLookup,
        kind: Option<UsageKind>,
    ) -> Result<Option<SecretDefinition>, KeystoreError> {
        let directory = self.directory()?;
        let by_uuid = |uuid| Ok(self.definition(uuid)?.map(|(definition, _)| definition));
        find(lookup, kind, by_uuid, |kind, id| self.find_usage(&directory, kind, id))
    }

    fn value(&self, secret: &SecretDefinition) -> Result<Option<SecretValue>, KeystoreError> {
        let (directory, uuid) = (self.directory()?, secret.uuid);
        let (_, owner) = self.definition(uuid)?.ok_or_else(|| not_defined(uuid))?;
        let path = self.store.value_path(uuid);
        let Some((content, setter)) = disk::read_anyones(&path)? else { return Ok(None) };
        if setter != owner && !directory.is_trusted(setter) {
            let why = format!("it belongs to the user {setter}, the secret to the user {owner}");
            return Err(KeystoreError::Foreign { path, why });
        }
        self.store.open(uuid, &content, true).map(Some)
    }

    fn has_value(&self, secret: &SecretDefinition) -> Result<bool, KeystoreError> {
        self.store.has_value(secret)
    }

    fn list(&self) -> Result<Listing, KeystoreError> {
        self.directory()?;
        self.store.listing(|uuid| Ok(self.definition(uuid)?.map(|(definition, _)| definition)))
    }

    fn define(&self, definition: &SecretDefinition) -> Result<(), KeystoreError> {
        let (directory, uuid) = (self.directory()?, definition.uuid);
        self.store.check_kept(definition)?;
        if definition.value_uri.is_some() {
            return Err(KeystoreError::Unsupported {
                store: self.store.uri.clone(),
                what: "keep a secret whose value is elsewhere: its members could have others read or run what they name",
            });
        }
        self.recipients()?;
        self.sweep(&directory);
        let (path, xml) = (self.store.definition_path(uuid), definition.to_xml().to_string());
        let place = |existing| disk::place(&path, xml.as_bytes(), directory.mode, existing);
        if let Some((old, owner)) = self.definition(uuid)? {
            definition.check_against([&old]).map_err(KeystoreError::Definition)?;
            if owner != geteuid().as_raw() {
                // Not the directory's owner either: the value would no longer be of who defined it.
                let asked = format!("change the secret {uuid}, which belongs to the user {owner}");
                return Err(Failure::Denied.of(&self.store.uri, Some(&asked)));
            }
            return place(Existing::Replace).map(drop);
        }
        // What lies in wait for this secret would be its value.
        self.check_mine(&directory, &self.store.value_path(uuid), "define the secret")?;
        disk::remove(&self.store.value_path(uuid))?;
        if !place(Existing::Keep)? {
            return Err(KeystoreError::Definition(DefinitionError::Exists(uuid)));
        }
        let claimed = definition.usage.as_ref().map_or(Ok(()), |usage| self.claim(&directory, usage, uuid));
        if claimed.is_err() {
            // Of the two errors the first one says what is wrong.
            let _ = disk::remove(&path);
        }
        claimed
    }

    fn set_value(&self, secret: &SecretDefinition, value: &SecretValue) -> Result<(), KeystoreError> {
        let (directory, uuid) = (self.directory()?, secret.uuid);
        let (definition, owner) = self.definition(uuid)?.ok_or_else(|| not_defined(uuid))?;
        let path = self.store.value_path(uuid);
        for path in [&self.store.definition_path(uuid), &path] {
            self.check_mine(&directory, path, "set the value")?;
        }
        if owner != geteuid().as_raw() && !definition.recipients.is_empty() {
            let asked = format!("set the value; the user {owner} chose the keys that could read it");
            return Err(Failure::Denied.of(&self.store.uri, Some(&asked)));
        }
        self.sweep(&directory);
        let sealed = self.store.seal(self.recipients()?, &definition, value, true)?;
        disk::place(&path, &sealed, directory.mode, Existing::Replace).map(drop)
    }

    fn undefine(&self, secret: &SecretDefinition) -> Result<(), KeystoreError> {
        let (directory, uuid) = (self.directory()?, secret.uuid);
        let (path, value) = (self.store.definition_path(uuid), self.store.value_path(uuid));
        owner_of(&path)?.ok_or_else(|| not_defined(uuid))?;
        // A definition that cannot be read can still be removed.
        let usage = self.definition(uuid).ok().flatten().and_then(|(definition, _)| definition.usage);
        let claim = usage.map(|usage| self.claim_path(usage.kind, &usage.id));
        let claim =
            claim.filter(|path| read_claim(path).is_ok_and(|c| c.is_some_and(|(named, _)| named == uuid)));
        let files: Vec<_> = [value].into_iter().chain(claim).chain([path]).collect();
        for path in &files {
            self.check_mine(&directory, path, "remove the secret")?;
        }
        files.iter().try_for_each(|path| disk::remove(path))?;
        self.sweep(&directory);
        Ok(())
    }

    fn health(&self) -> Result<Vec<Health>, KeystoreError> {
        self.directory()?;
        let is_safe = |m: &Metadata| m.is_file() && m.nlink() == 1 && m.mode() & 0o022 == 0;
        Ok(vec![self.store.key_health(&self.recipients()?, true)?, self.store.files_health(is_safe)?])
    }
}

/// The secret that a claim names, and whose the claim is.
fn read_claim(path: &Path) -> Result<Option<(Uuid, u32)>, KeystoreError> {
    let Some((content, owner)) = disk::read_anyones(path)? else { return Ok(None) };
    let uuid = Uuid::try_parse(disk::text(path, content)?.trim());
    uuid.map(|uuid| Some((uuid, owner))).map_err(|_| KeystoreError::Damaged {
        path: path.to_owned(),
        why: "there is no UUID in it".to_owned(),
    })
}

/// Whose a file is, or `None` if there is none.
fn owner_of(path: &Path) -> Result<Option<u32>, KeystoreError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata.uid())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(KeystoreError::io(path, "read")(e)),
    }
}

fn form(what: &str) -> String {
    format!("'{what}' does not say who shares it, as in file:/directory?owner=NAME&group=NAME")
}

/// A user by name or number.
fn user(name: &str) -> Result<u32, String> {
    let found = name
        .parse()
        .map(|uid| Some(Uid::from_raw(uid)))
        .or_else(|_| User::from_name(name).map(|u| u.map(|u| u.uid)));
    found.ok().flatten().map(Uid::as_raw).ok_or_else(|| format!("there is no user '{name}'"))
}

/// A group by name or number.
fn gid(name: &str) -> Result<u32, String> {
    let found = name
        .parse()
        .map(|gid| Some(Gid::from_raw(gid)))
        .or_else(|_| Group::from_name(name).map(|g| g.map(|g| g.gid)));
    found.ok().flatten().map(Gid::as_raw).ok_or_else(|| format!("there is no group '{name}'"))
}
