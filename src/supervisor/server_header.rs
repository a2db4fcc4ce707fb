//! The start of an image on a server: read by qemu-img with the protocol node that QEMU has the image by, and read once more
//! through QEMU, when that has opened the image.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use command_fds::FdMapping;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::fchown;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use zlink::futures_util::future::join_all;

use crate::keystore::ResolvedSecrets;
use crate::luks::{LUKS1_HEADER_LEN, Luks1Header};
use crate::qemu::storage::{Server, ServerImage};
use crate::qemu::{self, QemuObject};
use crate::qmp::{COMMAND_DEADLINE, FdSetPaths, Qmp, QmpError};
use crate::volume::{QemuImg, VolumeError, piped};

use super::checkpoint::Checkpoint;
use super::opened::ImageError;
use super::process::{Ending, Process, Program};
use super::unlock::{header_of, is_worthwhile};
use super::{SupervisorError, User};

/// What is read at first: a header, and the material of the first key slot where qemu-img and cryptsetup have it, with 512
/// bits of key.
const FIRST: u64 = 4096 + 64 * 4000;
/// No container has its key slots behind this: eight of 512 bits end before 2 MiB.
const LONGEST: u64 = 16 << 20;
/// What is read to compare headers: whole sectors.
const COMPARED: u64 = (LUKS1_HEADER_LEN as u64).next_multiple_of(512);
/// How long a server may take to send it. QEMU itself is given longer.
pub(super) const DEADLINE: Duration = COMMAND_DEADLINE;
/// What fails within this time is left to QEMU, which fails as fast and knows what to say about it.
const PROMPT: Duration = Duration::from_secs(10);
/// The first descriptor after the standard ones.
const FIRST_FD: i32 = 3;
/// Where QEMU shows the headers, in the lib dir.
const SOCKET: &str = "header.sock";

/// Why the start of an image on a server was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no qemu-img, or it cannot be given a secret.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// It could not be started.
    #[error(transparent)]
    Process(Box<SupervisorError>),
    /// It failed.
    #[error("qemu-img {ending}{words}")]
    Ended {
        /// How.
        ending: Ending,
        /// What it said.
        words: String,
    },
    /// It did not come to an end.
    #[error("the server has not sent it within {} s", .0.as_secs())]
    Silent(Duration),
    /// A secret that it needs is not there.
    #[error("there is no value for '{0}'")]
    NoSecret(String),
    /// What it has read could not be read.
    #[error("what qemu-img has read is not to be had")]
    Io(#[from] io::Error),
}

/// Reads from servers, for one guest.
pub(super) struct Reader<'a> {
    /// The guest's private directory.
    pub(super) lib_dir: &'a Path,
    /// Who QEMU runs as, if not as the supervisor's user.
    pub(super) user: Option<&'a User>,
    /// What is in QEMU's environment beside the usual variables.
    pub(super) environment: &'a [(String, String)],
    /// QEMU, if it runs already.
    pub(super) qmp: Option<&'a Qmp>,
    /// How long a server may take to send something.
    pub(super) deadline: Duration,
}

impl Reader<'_> {
    /// The header and the key material of an image that is worth being unlocked here. `None`: QEMU is to open it.
    pub(super) async fn look(
        &self,
        image: &ServerImage,
        secrets: &ResolvedSecrets,
    ) -> Result<Option<(Luks1Header, Vec<u8>)>, ImageError> {
        let started = Instant::now();
        match self.try_look(&image.server, secrets).await {
            Ok(found) => Ok(found),
            // A server that is silent to one is so to the other.
            Err(e) if !matches!(e, ReadError::Silent(_)) && started.elapsed() < PROMPT => {
                tracing::debug!("QEMU unlocks {}: {e}", image.name);
                Ok(None)
            }
            Err(source) => Err(ImageError::Unread { path: image.name.clone(), source: Box::new(source) }),
        }
    }

    async fn try_look(
        &self,
        server: &Server,
        secrets: &ResolvedSecrets,
    ) -> Result<Option<(Luks1Header, Vec<u8>)>, ReadError> {
        let mut bytes = self.read(server, Some(secrets), FIRST).await?;
        let worthwhile = |bytes: &[u8]| header_of(bytes).filter(is_worthwhile);
        let Some(mut header) = worthwhile(&bytes) else { return Ok(None) };
        let end = header.active_slots().map(|(_, slot)| header.material(slot).end).max().unwrap_or(0);
        if end > LONGEST {
            return Ok(None);
        }
        if end > FIRST {
            bytes = self.read(server, Some(secrets), end).await?;
            // What belongs together was read together.
            let Some(again) = worthwhile(&bytes) else { return Ok(None) };
            header = again;
        }
        Ok(Some((header, bytes)))
    }

    /// The first `len` bytes of an image, whole sectors; fewer where there are no more.
    async fn read(
        &self,
        server: &Server,
        secrets: Option<&ResolvedSecrets>,
        len: u64,
    ) -> Result<Vec<u8>, ReadError> {
        let program = QemuImg::find()?;
        let mut memory =
            File::from(memfd_create(c"image-header", MFdFlags::MFD_CLOEXEC).map_err(io::Error::from)?);
        let mut descriptors = vec![OwnedFd::from(memory.try_clone()?)];
        let mut arguments = vec!["dd".to_owned()];
        for object in &server.objects {
            let object = match object {
                QemuObject::Plain(properties) => Value::Object(properties.clone()).to_string(),
                QemuObject::Secret(secret) => {
                    let value = secret.source.value(|reference| secrets?.get(reference));
                    let value = value.ok_or_else(|| ReadError::NoSecret(secret.id.clone()))?;
                    let pipe = piped(value.expose())?;
                    if let Some(user) = self.user {
                        // qemu-img opens it once more, by its path.
                        fchown(&pipe, Some(user.uid), Some(user.gid)).map_err(io::Error::from)?;
                    }
                    descriptors.push(pipe);
                    format!(
                        "secret,id={},file=/dev/fd/{}",
                        secret.id,
                        FIRST_FD as usize + descriptors.len() - 1
                    )
                }
            };
            arguments.extend(["--object".to_owned(), object]);
        }
        let image = json!({ "driver": "raw", "file": server.node });
        arguments.extend(["-O", "raw", "count=1"].map(str::to_owned));
        arguments.extend([
            format!("bs={len}"),
            format!("if=json:{image}"),
            format!("of=/proc/self/fd/{FIRST_FD}"),
        ]);
        let descriptors = (FIRST_FD..).zip(descriptors);
        let process = Process::spawn(Program {
            name: "qemu-img",
            path: program.path(),
            arguments,
            user: self.user,
            descriptors: descriptors.map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd }).collect(),
            environment: self.environment,
            stdio: false,
            outlives_reader: false,
            ends_with_parent: false,
            lib_dir: self.lib_dir,
            fd_sets: FdSetPaths::default(),
            bounds: None,
        })
        .map_err(|e| ReadError::Process(Box::new(e)))?;
        // It is killed with the process that is dropped.
        let ending =
            timeout(self.deadline, process.ended()).await.map_err(|_| ReadError::Silent(self.deadline))?;
        if ending != Ending::Exited(0) {
            let words = process.last_words().await;
            let words = words.last().map(|words| format!(": {words}")).unwrap_or_default();
            return Err(ReadError::Ended { ending, words });
        }
        let mut bytes = Vec::new();
        memory.rewind()?;
        memory.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Whether QEMU can show what it has open: it has one NBD server, and somebody may be using that.
    pub(super) async fn can_compare(&self) -> bool {
        let Some(qmp) = self.qmp else { return true };
        match self.start_server(qmp).await {
            Ok(()) => stop_server(qmp).await.is_ok(),
            Err(e) => {
                tracing::debug!("QEMU unlocks the images on servers: {e}");
                false
            }
        }
    }

    /// The headers of images that QEMU has open, as it reads them: by their protocol nodes.
    pub(super) async fn shown(
        &self,
        qmp: &Qmp,
        nodes: &[&str],
    ) -> Result<Vec<Result<Vec<u8>, ReadError>>, QmpError> {
        self.start_server(qmp).await?;
        let read = self.read_shown(qmp, nodes).await;
        stop_server(qmp).await?;
        read
    }

    async fn read_shown(
        &self,
        qmp: &Qmp,
        nodes: &[&str],
    ) -> Result<Vec<Result<Vec<u8>, ReadError>>, QmpError> {
        for node in nodes {
            let export = json!({ "type": "nbd", "id": node, "node-name": node, "name": node });
            qmp.execute_json("block-export-add", Some(&export), COMMAND_DEADLINE).await?;
        }
        Checkpoint::HeaderShown.passed();
        let exports: Vec<_> = nodes.iter().map(|node| self.export(node)).collect();
        Ok(join_all(exports.iter().map(|export| self.read(export, None, COMPARED))).await)
    }

    fn export(&self, node: &str) -> Server {
        let address = json!({ "type": "unix", "path": self.socket() });
        let node = json!({ "driver": "nbd", "server": address, "export": node, "read-only": true });
        Server { node: qemu::object(node), objects: Vec::new() }
    }

    async fn start_server(&self, qmp: &Qmp) -> Result<(), QmpError> {
        let address = json!({ "addr": { "type": "unix", "data": { "path": self.socket() } } });
        qmp.execute_json("nbd-server-start", Some(&address), COMMAND_DEADLINE).await.map(drop)
    }

    fn socket(&self) -> PathBuf {
        self.lib_dir.join(SOCKET)
    }
}

/// Its exports go as well.
async fn stop_server(qmp: &Qmp) -> Result<(), QmpError> {
    qmp.execute_json("nbd-server-stop", None::<&()>, COMMAND_DEADLINE).await.map(drop)
}

/// Ends what a supervisor that was killed had QEMU show. The server of somebody else, who has another socket, stays.
pub(super) async fn stop_showing(qmp: &Qmp, lib_dir: &Path) -> Result<(), QmpError> {
    let socket = lib_dir.join(SOCKET);
    if fs::symlink_metadata(&socket).is_err() {
        return Ok(());
    }
    match stop_server(qmp).await {
        // It was killed between the two.
        Err(e) if e.refusal().is_none() => return Err(e),
        _ => {}
    }
    let _ = fs::remove_file(socket);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;
    use std::process::Command;
    use std::thread::sleep;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::{Pid, geteuid};

    use crate::qemu::{SecretObject, SecretSource};
    use crate::secret::SecretValue;

    use super::*;

    #[tokio::test]
    async fn a_server_that_falls_silent_is_not_waited_for_forever() {
        let dir = tempfile::tempdir().unwrap();
        let (image, socket) = (dir.path().join("image"), dir.path().join("socket"));
        fs::write(&image, [7; 8192]).unwrap();
        let nbd = ["--persistent", "--format=raw", "--export-name=x", "--socket"];
        let Ok(mut server) = Command::new("qemu-nbd").args(nbd).args([&socket, &image]).spawn() else {
            println!("skipped: there is no qemu-nbd in PATH");
            return;
        };
        let start = Instant::now();
        while UnixStream::connect(&socket).is_err() {
            assert!(start.elapsed() < Duration::from_secs(60), "qemu-nbd does not listen");
            sleep(Duration::from_millis(10));
        }
        for (path, mode) in [(dir.path(), 0o755), (&socket, 0o777)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let address = json!({ "type": "unix", "path": socket });
        let node = json!({ "driver": "nbd", "server": address, "export": "x" });
        let image = Server { node: qemu::object(node), objects: Vec::new() };
        let reader =
            |deadline| Reader { lib_dir: dir.path(), user: None, environment: &[], qmp: None, deadline };
        let pid = Pid::from_raw(server.id().try_into().unwrap());
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let read = reader(DEADLINE).read(&image, None, 1024).await.unwrap();
                assert_eq!(read, [7; 1024]);
                // By another user, who gets a password.
                let value = SecretValue::copy_of(b"password").unwrap().into();
                let secret = SecretObject { id: "s".to_owned(), source: SecretSource::Xml(value) };
                let objects = vec![QemuObject::Secret(secret)];
                let nobody = User::for_qemu(Some("nobody")).ok().flatten();
                if !geteuid().is_root() {
                    println!("skipped: only root reads as another user");
                }
                let with_password = Server { node: image.node.clone(), objects };
                let other = Reader { user: nobody.as_ref(), ..reader(DEADLINE) };
                assert_eq!(other.read(&with_password, None, 1024).await.unwrap(), [7; 1024]);
                // An image that ends sooner.
                let read = reader(DEADLINE).read(&image, None, FIRST).await.unwrap();
                assert_eq!(read, [7; 8192]);
                kill(pid, Signal::SIGSTOP).unwrap();
                let patience = Duration::from_millis(300);
                let read = reader(patience).read(&image, None, 1024).await;
                assert!(matches!(read, Err(ReadError::Silent(waited)) if waited == patience), "{read:?}");
            })
            .await;
        server.kill().unwrap();
        server.wait().unwrap();
        let read = local.run_until(async { reader(DEADLINE).read(&image, None, 1024).await }).await;
        assert!(
            matches!(&read, Err(ReadError::Ended { words, .. }) if words.contains("Connection refused")),
            "{read:?}"
        );
    }
}
