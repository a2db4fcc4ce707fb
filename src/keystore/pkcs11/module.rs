//! The library of a token: foreign code that is loaded into this process, and may never come back from a call.
//!
//! Each library has one thread, made with the first use, in which all calls of it are made; whoever needs something
//! waits for that thread as long as the deadline allows. One that does not come back is left alone, and those who come
//! later are told so at once. When nobody has needed anything for a moment the sessions are closed, which logs out, and
//! the library is told that it is no longer used, so that it holds no files open.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::session::Session;
use cryptoki::slot::Slot;
use nix::unistd::geteuid;

use crate::keystore::{Failure, KeystoreError};

use super::{Place, token};

/// How long a session stays open for the next one who needs it: many secrets are read with one login.
const IDLE: Duration = Duration::from_millis(250);

/// How long a library's thread may take until it comes to something that is no call of the library.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is done in a library's thread.
type Job = Box<dyn FnOnce(&mut Library) + Send>;

/// The thread of a library.
struct Worker {
    jobs: Sender<Job>,
    /// Whether somebody has given up waiting for what it does at the moment.
    stuck: Arc<AtomicBool>,
}

/// The libraries that are loaded. A library must not be initialized twice in a process.
static WORKERS: LazyLock<Mutex<HashMap<PathBuf, Arc<Worker>>>> = LazyLock::new(Mutex::default);

/// A library in its thread.
pub(super) struct Library {
    path: PathBuf,
    loaded: Option<Pkcs11>,
    initialized: bool,
    /// Open sessions, by what of a URI decides which token is meant and who logs in.
    pub(super) sessions: BTreeMap<String, (Slot, Session)>,
}

/// Does something in the thread of a place's library, within the deadline.
pub(super) fn run<R: Send + 'static>(
    place: &Place,
    work: impl FnOnce(&mut Library) -> Result<R, KeystoreError> + Send + 'static,
) -> Result<R, KeystoreError> {
    let timeout = place.timeout;
    let timed_out = || Failure::TimedOut(timeout).of(&place.uri, None);
    let deadline = Instant::now() + timeout;
    let worker = worker(&place.parsed.module)?;
    if worker.stuck.load(Ordering::Acquire) {
        return Err(timed_out().because("an earlier call of its library has not come back"));
    }
    let (reply, answer) = mpsc::sync_channel(1);
    let job = Box::new(move |library: &mut Library| {
        // Nobody waits for it any more: least of all may something be changed now.
        if Instant::now() < deadline {
            let result = work(library);
            if result.is_err() {
                // Whatever was wrong may be wrong with the session.
                library.sessions.clear();
            }
            let _ = reply.send(result);
        }
    });
    let gone = || Failure::Other("its library's thread has ended".to_owned()).of(&place.uri, None);
    worker.jobs.send(job).map_err(|_| gone())?;
    match answer.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => {
            worker.stuck.store(true, Ordering::Release);
            Err(timed_out())
        }
        // The job was dropped unanswered: its turn came after the deadline, or it panicked.
        Err(RecvTimeoutError::Disconnected) if Instant::now() >= deadline => Err(timed_out()),
        Err(RecvTimeoutError::Disconnected) => Err(gone()),
    }
}

/// Has something done in the thread of each library; how many there are that have done it in time.
pub(in crate::keystore) fn in_each_thread(work: &Arc<dyn Fn() + Send + Sync>) -> usize {
    let workers: Vec<_> = {
        let workers = WORKERS.lock().unwrap_or_else(PoisonError::into_inner);
        workers.values().cloned().collect()
    };
    let (reply, done) = mpsc::channel();
    for worker in &workers {
        let (work, reply) = (Arc::clone(work), reply.clone());
        let job = Box::new(move |_: &mut Library| {
            work();
            // Nobody may be waiting any more.
            let _ = reply.send(());
        });
        // One that has ended is none.
        let _ = worker.jobs.send(job);
    }
    drop(reply);
    let deadline = Instant::now() + PATIENCE;
    let answer = || done.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok();
    std::iter::from_fn(answer).count()
}

/// The thread of a library, which is started if there is none.
fn worker(path: &Path) -> Result<Arc<Worker>, KeystoreError> {
    let mut workers = WORKERS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(worker) = workers.get(path) {
        return Ok(Arc::clone(worker));
    }
    let (jobs, queue) = mpsc::channel();
    let stuck = Arc::new(AtomicBool::new(false));
    let library =
        Library { path: path.to_owned(), loaded: None, initialized: false, sessions: BTreeMap::new() };
    thread::Builder::new()
        .name("pkcs11".to_owned())
        .spawn({
            let stuck = Arc::clone(&stuck);
            move || serve(library, &queue, &stuck)
        })
        .map_err(KeystoreError::io(path, "given a thread"))?;
    let worker = Arc::new(Worker { jobs, stuck });
    workers.insert(path.to_owned(), Arc::clone(&worker));
    Ok(worker)
}

fn serve(mut library: Library, queue: &Receiver<Job>, stuck: &AtomicBool) {
    while let Ok(first) = queue.recv() {
        let mut next = Some(first);
        while let Some(job) = next {
            job(&mut library);
            stuck.store(false, Ordering::Release);
            next = queue.recv_timeout(IDLE).ok();
        }
        library.rest();
    }
}

impl Library {
    /// The library, loaded and initialized.
    pub(super) fn ready(&mut self, store: &str) -> Result<Pkcs11, KeystoreError> {
        let failed = |what: &str, e: cryptoki::error::Error| {
            let library = self.path.display();
            Failure::Other(format!("its library {library} could not be {what}"))
                .of(store, None)
                .because(token::said_by(&e))
        };
        let loaded = match &self.loaded {
            Some(loaded) => loaded.clone(),
            None => {
                let real = trusted(&self.path)?;
                Pkcs11::new(real).map_err(|e| failed("loaded", e))?
            }
        };
        if !self.initialized {
            loaded
                .initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))
                .map_err(|e| failed("initialized", e))?;
        }
        self.initialized = true;
        self.loaded = Some(loaded.clone());
        Ok(loaded)
    }

    /// Closes what is open. The library stays loaded: one that is unloaded while a thread of its own still runs takes the
    /// process down.
    fn rest(&mut self) {
        self.sessions.clear();
        if let (true, Some(loaded)) = (self.initialized, &self.loaded) {
            // One that fails to let go of something is not asked again before it is needed.
            let _ = loaded.clone().finalize();
            self.initialized = false;
        }
    }
}

/// The file of a library, if only root and this user can have put it there: what is in it runs in this process.
fn trusted(path: &Path) -> Result<PathBuf, KeystoreError> {
    let real = fs::canonicalize(path).map_err(KeystoreError::io(path, "read"))?;
    let metadata = fs::metadata(&real).map_err(KeystoreError::io(&real, "read"))?;
    if !metadata.is_file() {
        return Err(KeystoreError::io(path, "loaded")(io::Error::other("it is no file")));
    }
    // Who can write a directory can put another library there, and who can write the one that a link is in can put
    // another link there.
    for place in path.ancestors().chain(real.ancestors()) {
        let metadata = fs::symlink_metadata(place).map_err(KeystoreError::io(place, "read"))?;
        let (uid, me, mode) = (metadata.uid(), geteuid().as_raw(), metadata.mode());
        let unsafe_because = |why| Err(KeystoreError::Unsafe { path: place.to_owned(), why });
        if uid != 0 && uid != me {
            return unsafe_because(format!(
                "a library is loaded from there, and it belongs to the user {uid}, not to root or to the user {me}"
            ));
        }
        // A link's own mode means nothing; in a sticky directory (/tmp) nobody can replace what is not his.
        let sticky = metadata.is_dir() && mode & 0o1000 != 0;
        if mode & 0o022 != 0 && !sticky && !metadata.is_symlink() {
            return unsafe_because(format!(
                "a library is loaded from there, and others may write it (its mode is {:04o})",
                mode & 0o7777
            ));
        }
    }
    Ok(real)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn allow(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_library_that_others_could_have_put_there_is_not_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let (inner, links) = (dir.path().join("inner"), dir.path().join("links"));
        fs::create_dir(&inner).unwrap();
        fs::create_dir(&links).unwrap();
        let (library, link) = (inner.join("x.so"), links.join("x.so"));
        fs::write(&library, "x").unwrap();
        symlink(&library, &link).unwrap();
        for place in [&inner, &links, &library] {
            allow(place, 0o755);
        }
        assert_eq!(trusted(&link).unwrap(), fs::canonicalize(&library).unwrap());
        for place in [&library, &inner, &links] {
            allow(place, 0o777);
            match trusted(&link) {
                Err(KeystoreError::Unsafe { path, .. }) => assert_eq!(path, fs::canonicalize(place).unwrap()),
                other => panic!("{other:?}"),
            }
            allow(place, 0o755);
        }
        assert!(matches!(trusted(&dir.path().join("none.so")), Err(KeystoreError::Io { .. })));
        assert!(trusted(&inner).is_err());
    }
}
