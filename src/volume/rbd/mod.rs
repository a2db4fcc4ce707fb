//! Volumes in a Ceph cluster. librbd encrypts them itself (luks, luks2), or QEMU does with LUKS1 in an image. qemu-img makes
//! and reads them; what it cannot do, rbd does. Neither gets a secret but through a pipe.

mod held;
mod luks2;
mod new;

use std::fs::File;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::secret::SecretValue;

use super::delete::overwrite;
use super::image::PROBE_LEN;
use super::qemu_img::{Call, Program};
use super::{Destroyed, Image, ImageEncryption, ImageFormat, Interrupts, QemuImg, Source, VolumeError};
pub(super) use held::Held;
pub(super) use luks2::Luks2Keys;
use new::LUKS2_SECTOR;
pub use new::{Cluster, NewRbd, RbdFormat, RbdName};

/// The ids of secret objects in qemu-img.
const PASSPHRASE_ID: &str = "sec0";
const KEY_ID: &str = "cephx0";
/// How often, a second apart, it is tried to remove what a client has made that was killed, for the cluster alive for 30 s.
const REMOVALS: u32 = 45;

/// The programs that handle the volumes of a cluster.
#[derive(Debug)]
pub struct Rbd {
    qemu_img: QemuImg,
    program: Program,
    cluster: Cluster,
}

impl Rbd {
    /// Finds them.
    pub fn find(cluster: Cluster) -> Result<Self, VolumeError> {
        if cluster.conf.as_ref().is_some_and(|conf| conf.to_str().is_none()) {
            return Err(VolumeError::Request("QEMU takes the path of ceph.conf in UTF-8 only".into()));
        }
        Ok(Self { qemu_img: QemuImg::find()?, program: Program::find("rbd")?, cluster })
    }

    /// Makes a volume under another name, which it loses when it is complete and was seen to be encrypted. On any failure
    /// there is no image, or the one that was there before.
    pub async fn create(
        &self,
        new: &NewRbd,
        passphrase: &SecretValue,
        interrupts: &mut Interrupts,
    ) -> Result<(), VolumeError> {
        self.bring(new, None, Some(passphrase), interrupts, &mut |_| {}).await
    }

    /// The same with what the guest sees of an image in it; without a passphrase it is plain.
    pub async fn convert(
        &self,
        source: &Source,
        new: &NewRbd,
        passphrase: Option<&SecretValue>,
        interrupts: &mut Interrupts,
        progress: &mut dyn FnMut(Option<f64>),
    ) -> Result<(), VolumeError> {
        self.bring(new, Some(source), passphrase, interrupts, progress).await
    }

    async fn bring(
        &self,
        new: &NewRbd,
        source: Option<&Source>,
        passphrase: Option<&SecretValue>,
        interrupts: &mut Interrupts,
        progress: &mut dyn FnMut(Option<f64>),
    ) -> Result<(), VolumeError> {
        new.check()?;
        match self.length(&new.name, interrupts).await {
            Err(VolumeError::NoImage(_)) => {}
            Ok(_) => return Err(VolumeError::ImageExists(new.name.clone())),
            Err(e) => return Err(e),
        }
        let unfinished = new.name.unfinished();
        let mut made = self.make(new, &unfinished, passphrase, interrupts).await;
        if let (Ok(()), Some(source)) = (&made, source) {
            made = self.fill(new, &unfinished, source, passphrase, interrupts, progress).await;
        }
        if made.is_ok() {
            // The cluster does not rename to a name that is taken.
            made = self
                .rbd(&new.name, "rename", &[&unfinished.spec(), &new.name.spec()], interrupts)
                .await
                .map(drop);
        }
        if let Err(e) = made {
            self.take_back(unfinished, interrupts).await?;
            return Err(e);
        }
        Ok(())
    }

    async fn make(
        &self,
        new: &NewRbd,
        unfinished: &RbdName,
        passphrase: Option<&SecretValue>,
        interrupts: &mut Interrupts,
    ) -> Result<(), VolumeError> {
        let Some(passphrase) = passphrase else {
            self.allocate(unfinished, new.size, &[], None, interrupts).await?;
            return match self.length(unfinished, interrupts).await? {
                now if now == new.size => Ok(()),
                _ => Err(VolumeError::CameOutPlain),
            };
        };
        if new.format == RbdFormat::Raw {
            let container = self.container(new, passphrase, interrupts).await?;
            let header = Image::read(&container, &new.name.path())?;
            let size = new.size.checked_add(header.file_size);
            let size = size.ok_or_else(|| VolumeError::Request("the size is too large".into()))?;
            self.allocate(unfinished, size, &[], None, interrupts).await?;
            self.write_start(unfinished, &container, interrupts).await?;
        } else {
            let mut options = vec![
                format!("encrypt.format={}", new.format.as_str()),
                format!("encrypt.key-secret={PASSPHRASE_ID}"),
            ];
            if let Some((name, bits)) = new.cipher.algorithm {
                options.push(format!("encrypt.cipher-alg={}-{bits}", name.as_str()));
            }
            self.allocate(unfinished, new.size, &options, Some(passphrase), interrupts).await?;
        }
        let made = self.look(unfinished, interrupts).await?;
        let as_asked = match made.encryption {
            Some(ImageEncryption::Luks1(_)) => new.format != RbdFormat::Luks2,
            Some(ImageEncryption::Luks2(_)) => new.format == RbdFormat::Luks2,
            _ => false,
        };
        match as_asked && made.virtual_size == new.size {
            true => Ok(()),
            false => Err(VolumeError::CameOutPlain),
        }
    }

    /// Copies what the guest sees of an image into one that is there, through its encryption.
    async fn fill(
        &self,
        new: &NewRbd,
        unfinished: &RbdName,
        source: &Source,
        passphrase: Option<&SecretValue>,
        interrupts: &mut Interrupts,
        progress: &mut dyn FnMut(Option<f64>),
    ) -> Result<(), VolumeError> {
        let call = || {
            let mut call = Call::new("convert");
            // -n: into what is there; -t none: it is in the cluster when this ends.
            call.arg("-p").arg("-n").arg("-t").arg("none");
            let mut to = self.node(unfinished, &mut call)?;
            let mut driver = "raw";
            if let Some(passphrase) = passphrase {
                call.secret(PASSPHRASE_ID, passphrase)?;
                match new.format {
                    RbdFormat::Raw => driver = "luks",
                    format => {
                        to["encrypt"] = json!({ "format": format.as_str(), "key-secret": PASSPHRASE_ID });
                    }
                }
            }
            to = json!({ "driver": driver, "file": to });
            if driver == "luks" {
                to["key-secret"] = json!(PASSPHRASE_ID);
            }
            let from = source.name(&mut call)?;
            call.arg("-O").arg(driver).arg(from).arg(format!("json:{to}"));
            call.remote();
            Ok(call)
        };
        let copied = self.qemu_img.run(call, interrupts, progress).await;
        copied.map_err(|e| told(unfinished, source.failure(e)))
    }

    /// A LUKS1 container with nothing in it, as QEMU makes it.
    async fn container(
        &self,
        new: &NewRbd,
        passphrase: &SecretValue,
        interrupts: &mut Interrupts,
    ) -> Result<File, VolumeError> {
        let file = memory()?;
        let mut options = vec![format!("key-secret={PASSPHRASE_ID}")];
        options.extend(new.cipher.options(""));
        options.extend(new.kdf.iter_time(passphrase).map(|ms| format!("iter-time={ms}")));
        let call = || {
            let mut call = Call::new("create");
            call.arg("-q").arg("-f").arg("luks").arg("-o").arg(options.join(","));
            call.secret(PASSPHRASE_ID, passphrase)?;
            let path = call.file(&file)?;
            call.arg(path).arg("0");
            Ok(call)
        };
        self.qemu_img.run(call, interrupts, &mut |_| {}).await?;
        Ok(file)
    }

    /// Has qemu-img make an image.
    async fn allocate(
        &self,
        name: &RbdName,
        size: u64,
        options: &[String],
        passphrase: Option<&SecretValue>,
        interrupts: &mut Interrupts,
    ) -> Result<(), VolumeError> {
        let call = || {
            let mut call = Call::new("create");
            call.arg("-q").arg("-f").arg("rbd");
            let mut options = options.to_vec();
            if let Some(passphrase) = passphrase {
                call.secret(PASSPHRASE_ID, passphrase)?;
            }
            if let Some(key) = &self.cluster.key {
                call.any_secret(KEY_ID, key)?;
                options.push(format!("password-secret={KEY_ID}"));
            }
            if !options.is_empty() {
                call.arg("-o").arg(options.join(","));
            }
            let mut target = name.to_string();
            let Cluster { conf, user, .. } = &self.cluster;
            for (key, value) in [("conf", conf.as_ref().and_then(|c| c.to_str())), ("id", user.as_deref())] {
                if let Some(value) = value {
                    target.push_str(&format!(":{key}={}", escaped(value)));
                }
            }
            call.arg(target).arg(size.to_string());
            Ok(call)
        };
        self.qemu_img(name, call, interrupts).await
    }

    /// What an image is, from its first bytes.
    pub async fn look(&self, name: &RbdName, interrupts: &mut Interrupts) -> Result<Image, VolumeError> {
        let length = self.length(name, interrupts).await?;
        let start = memory()?;
        let end = length.min(PROBE_LEN as u64) & !511;
        let call = || {
            let mut call = Call::new("convert");
            let from =
                json!({ "driver": "raw", "offset": 0, "size": end, "file": self.node(name, &mut call)? });
            call.arg("-f").arg("raw").arg("-O").arg("raw").arg(format!("json:{from}"));
            let path = call.file(&start)?;
            call.arg(path);
            Ok(call)
        };
        // A node without bytes is none that is copied.
        if end > 0 {
            self.qemu_img(name, call, interrupts).await?;
        }
        Image::read_start(&start, length, &name.path())
    }

    /// Puts what is in a file at the start of an image.
    async fn write_start(
        &self,
        name: &RbdName,
        from: &File,
        interrupts: &mut Interrupts,
    ) -> Result<(), VolumeError> {
        let call = || {
            let mut call = Call::new("convert");
            // -n: into what is there; -t none: it is in the cluster when this ends.
            call.arg("-n").arg("-t").arg("none").arg("-f").arg("raw").arg("-O").arg("raw");
            let path = call.file(from)?;
            let to = self.node(name, &mut call)?;
            call.arg(path).arg(format!("json:{}", json!({ "driver": "raw", "file": to })));
            Ok(call)
        };
        self.qemu_img(name, call, interrupts).await
    }

    /// Fails if a passphrase does not open a volume.
    pub async fn open(
        &self,
        name: &RbdName,
        image: &Image,
        passphrase: &SecretValue,
        interrupts: &mut Interrupts,
    ) -> Result<(), VolumeError> {
        let is_luks2 = matches!(image.encryption, Some(ImageEncryption::Luks2(_)));
        let call = || {
            // `info` would not unlock LUKS.
            let mut call = Call::new("measure");
            let mut node = self.node(name, &mut call)?;
            call.secret(PASSPHRASE_ID, passphrase)?;
            if is_luks2 {
                node["encrypt"] = json!({ "format": "luks2", "key-secret": PASSPHRASE_ID });
            } else {
                // QEMU's own driver opens what librbd made as well.
                node = json!({ "driver": "luks", "key-secret": PASSPHRASE_ID, "file": node });
            }
            call.arg("-O").arg("raw").arg(format!("json:{node}"));
            Ok(call)
        };
        self.qemu_img(name, call, interrupts).await
    }

    /// Gives the guest that many bytes. `size` gets what it sees now. No passphrase is needed: librbd would count the
    /// header as the guest's, and does in Ceph 16, so the image grows by what the guest is to see more.
    pub async fn resize(
        &self,
        name: &RbdName,
        size: impl FnOnce(u64) -> Option<u64>,
        shrink: bool,
        interrupts: &mut Interrupts,
    ) -> Result<(), VolumeError> {
        let image = self.at_rest(name, interrupts).await?;
        let before = image.virtual_size;
        let too_large = || VolumeError::Request("the size is too large".into());
        let size = size(before).ok_or_else(too_large)?;
        if size < before && !shrink {
            return Err(VolumeError::WouldShrink { path: name.path(), before, size });
        }
        if let Some(ImageEncryption::Luks2(header)) = &image.encryption {
            if header.data_offset.is_none() {
                return Err(VolumeError::Request(format!(
                    "the header of {name} does not say where its data begins"
                )));
            }
            if !size.is_multiple_of(LUKS2_SECTOR) {
                return Err(VolumeError::Request(
                    "the size of a luks2 volume is a multiple of 4096 bytes".into(),
                ));
            }
        }
        let length = size.checked_add(image.file_size - before).ok_or_else(too_large)?;
        let length = format!("{length}B");
        let mut args = vec!["--no-progress", "--size", length.as_str()];
        if size < before {
            args.push("--allow-shrink");
        }
        let spec = name.spec();
        args.push(&spec);
        self.rbd(name, "resize", &args, interrupts).await?;
        match self.look(name, interrupts).await?.virtual_size {
            now if now == size => Ok(()),
            now => Err(VolumeError::OtherSize { path: name.path(), now, size }),
        }
    }

    /// Overwrites the header with all key slots, then removes the image. Refused while somebody has it open, and with
    /// snapshots, which keep the header.
    pub async fn destroy(
        &self,
        name: &RbdName,
        interrupts: &mut Interrupts,
    ) -> Result<Destroyed, VolumeError> {
        let image = self.at_rest(name, interrupts).await?;
        let (_, overwritten) = image.key_area.ok_or_else(|| VolumeError::NotEncrypted(name.path()))?;
        if !self.list::<Vec<Value>>(name, &["ls"], "snap", interrupts).await?.is_empty() {
            return Err(VolumeError::Snapshots(name.clone()));
        }
        let random = memory()?;
        overwrite(&random, 0, overwritten).map_err(VolumeError::Handover)?;
        self.write_start(name, &random, interrupts).await?;
        let mut removed = self.remove(name, interrupts).await;
        if let Err(VolumeError::Interrupted(_)) = removed {
            // Without its header the image is nothing that anybody wants to keep.
            removed = self.remove(name, interrupts).await;
        }
        removed.map(|()| Destroyed { overwritten })
    }

    /// An encrypted image that nobody has open. Unlike a file it cannot be kept from being opened right afterwards.
    async fn at_rest(&self, name: &RbdName, interrupts: &mut Interrupts) -> Result<Image, VolumeError> {
        let image = self.look(name, interrupts).await?;
        let luks = matches!(image.encryption, Some(ImageEncryption::Luks1(_) | ImageEncryption::Luks2(_)));
        if !luks || image.format != ImageFormat::Raw {
            return Err(VolumeError::NotEncrypted(name.path()));
        }
        match self.watchers(name, interrupts).await? {
            0 => Ok(image),
            _ => Err(VolumeError::InUse(name.path())),
        }
    }

    /// How many clients have an image open.
    async fn watchers(&self, name: &RbdName, interrupts: &mut Interrupts) -> Result<usize, VolumeError> {
        #[derive(Deserialize)]
        struct Status {
            watchers: Vec<Value>,
        }
        let status: Status = self.list(name, &[], "status", interrupts).await?;
        Ok(status.watchers.len())
    }

    /// The bytes of an image.
    async fn length(&self, name: &RbdName, interrupts: &mut Interrupts) -> Result<u64, VolumeError> {
        #[derive(Deserialize)]
        struct Info {
            size: u64,
        }
        self.list::<Info>(name, &[], "info", interrupts).await.map(|info| info.size)
    }

    /// Removes what became no volume.
    async fn take_back(&self, unfinished: RbdName, interrupts: &mut Interrupts) -> Result<(), VolumeError> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.remove(&unfinished, interrupts).await {
                Ok(()) | Err(VolumeError::NoImage(_)) => return Ok(()),
                Err(VolumeError::InUse(_)) if tries < REMOVALS => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Err(VolumeError::Interrupted(_)) => return Err(VolumeError::LeftBehind(unfinished, None)),
                Err(e) => return Err(VolumeError::LeftBehind(unfinished, Some(Box::new(e)))),
            }
        }
    }

    async fn remove(&self, name: &RbdName, interrupts: &mut Interrupts) -> Result<(), VolumeError> {
        self.rbd(name, "rm", &["--no-progress", &name.spec()], interrupts).await.map(drop)
    }

    /// QEMU's node of an image, whose key the call takes along.
    pub(super) fn node(&self, name: &RbdName, call: &mut Call) -> Result<Value, VolumeError> {
        let mut node = json!({ "driver": "rbd", "pool": name.pool, "image": name.image });
        let Cluster { conf, user, key } = &self.cluster;
        if let Some(conf) = conf {
            node["conf"] = json!(conf);
        }
        if let Some(user) = user {
            node["user"] = json!(user);
        }
        if let Some(key) = key {
            if !call.has_secret(KEY_ID) {
                call.any_secret(KEY_ID, key)?;
            }
            node["key-secret"] = json!(KEY_ID);
        }
        Ok(node)
    }

    async fn qemu_img(
        &self,
        name: &RbdName,
        mut call: impl FnMut() -> Result<Call, VolumeError>,
        interrupts: &mut Interrupts,
    ) -> Result<(), VolumeError> {
        let patient = || {
            let mut call = call()?;
            call.remote();
            Ok(call)
        };
        self.qemu_img.run(patient, interrupts, &mut |_| {}).await.map_err(|e| told(name, e))
    }

    async fn list<T: serde::de::DeserializeOwned>(
        &self,
        name: &RbdName,
        args: &[&str],
        verb: &'static str,
        interrupts: &mut Interrupts,
    ) -> Result<T, VolumeError> {
        let spec = name.spec();
        let args: Vec<&str> = args.iter().copied().chain(["--format", "json", &spec]).collect();
        let said = self.rbd(name, verb, &args, interrupts).await?;
        serde_json::from_slice(&said).map_err(|e| VolumeError::Io {
            path: name.path(),
            what: "understood",
            source: e.into(),
        })
    }

    async fn rbd(
        &self,
        name: &RbdName,
        verb: &'static str,
        args: &[&str],
        interrupts: &mut Interrupts,
    ) -> Result<Vec<u8>, VolumeError> {
        let mut call = Call::new(verb);
        for arg in args {
            call.arg(arg);
        }
        let Cluster { conf, user, key } = &self.cluster;
        if let Some(conf) = conf {
            call.arg("--conf").arg(conf);
        }
        if let Some(user) = user {
            call.arg("--id").arg(user);
        }
        if let Some(key) = key {
            // Ceph reads a key from its standard input (common/config.cc), but not from another pipe, whose length is 0.
            let key = Zeroizing::new(STANDARD.encode(key.expose()));
            call.arg("--keyfile").arg("-").input(key.as_bytes())?;
        }
        call.remote().read();
        self.program.run(call, interrupts, &mut |_| {}).await.map_err(|e| told(name, e))
    }
}

/// A failure as what it is. Ceph's codes are the system's.
pub(super) fn told(name: &RbdName, error: VolumeError) -> VolumeError {
    let VolumeError::Program { status, message, .. } = &error else { return error };
    let says = |words: &str| message.contains(words);
    // rbd says that it could not connect, and why by its exit code.
    let no_connection = says("couldn't connect to the cluster");
    let code = status.code().filter(|_| no_connection);
    if says("encryption load fail: Operation not permitted") || says("cannot unlock any keyslot") {
        VolumeError::WrongPassphrase(name.to_string())
    } else if matches!(code, Some(1 | 13))
        || says("error connecting: Operation not permitted")
        || says("error connecting: Permission denied")
    {
        VolumeError::Login(name.clone())
    } else if code == Some(22) || says("error connecting: Invalid argument") {
        VolumeError::NotAKey(name.clone())
    } else if says("watchers") {
        VolumeError::InUse(name.path())
    } else if says("No such file or directory") && !no_connection {
        VolumeError::NoImage(name.clone())
    } else if says("File exists") {
        VolumeError::ImageExists(name.clone())
    } else {
        error
    }
}

/// As QEMU reads a value in a name (`qemu_rbd_next_tok` of its block/rbd.c).
fn escaped(value: &str) -> String {
    value.chars().flat_map(|c| ":@=/\\".contains(c).then_some('\\').into_iter().chain([c])).collect()
}

/// A file that is in no directory.
fn memory() -> Result<File, VolumeError> {
    memfd_create("volume", MFdFlags::MFD_CLOEXEC).map(File::from).map_err(|e| VolumeError::Handover(e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_escaped_as_qemu_reads_them() {
        assert_eq!(escaped("/a:b@c"), "\\/a\\:b\\@c");
    }
}
