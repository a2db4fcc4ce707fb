//! An image of a cluster while its keys are changed: nobody else has it open, and its key area is in memory.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::rc::Rc;

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStdout};
use tokio::runtime::{self, Runtime};

use super::super::qemu_img::{Call, GRACE, Program};
use super::super::{Interrupts, VolumeError};
use super::{Rbd, RbdName, memory, told};

/// What qemu-io prints once it has opened an image.
const PROMPT: &[u8] = b"qemu-io> ";
/// librbd takes any bytes; QEMU's raw driver cuts a piece out of an image in these.
const SECTOR: u64 = 512;

/// An image that is held. Files have a lock for that; the clients of a cluster see each other only while they have an image
/// open, so one that does nothing has it open as long as this lives. Its end of a pipe closes when this ends in whatever
/// way, and it leaves in an orderly one: the cluster does not wait for it.
pub(in super::super) struct Held {
    rbd: Rc<Rbd>,
    name: RbdName,
    mirror: File,
    len: u64,
    work: RefCell<(Runtime, Interrupts)>,
    holder: Option<Child>,
}

impl Held {
    /// Takes an image that nobody has open, and reads its key area.
    pub(in super::super) fn take(rbd: Rc<Rbd>, name: RbdName) -> Result<Self, VolumeError> {
        let spawn = |source| VolumeError::Spawn { program: "the work of a command".into(), source };
        let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(spawn)?;
        let mut interrupts = runtime.block_on(async { Interrupts::catch() }).map_err(spawn)?;
        let (mirror, len, holder) = runtime.block_on(open(&rbd, &name, &mut interrupts)).map_err(stopped)?;
        let work = RefCell::new((runtime, interrupts));
        let this = Self { rbd, name, mirror, len, work, holder: Some(holder) };
        this.get()?;
        Ok(this)
    }

    /// The key area, in a file that is as long as the image.
    pub(in super::super) fn mirror(&self) -> &File {
        &self.mirror
    }

    /// How far it goes.
    pub(in super::super) fn len(&self) -> u64 {
        self.len
    }

    /// Reads it from the cluster again.
    pub(in super::super) fn get(&self) -> Result<(), VolumeError> {
        self.copy(0..self.len, |here, there| (there, here))
    }

    /// Writes a part of it to the cluster, where it is when this returns. What is within an object (4 MiB, if nobody chose
    /// another size) is written whole or not at all.
    pub(in super::super) fn put(&self, part: Range<u64>) -> Result<(), VolumeError> {
        self.copy(part, |here, there| (here, there))
    }

    fn copy(
        &self,
        part: Range<u64>,
        direction: impl Fn(Value, Value) -> (Value, Value),
    ) -> Result<(), VolumeError> {
        let start = part.start / SECTOR * SECTOR;
        let size = part.end.next_multiple_of(SECTOR) - start;
        let piece = |of: Value| json!({ "driver": "raw", "offset": start, "size": size, "file": of });
        let call = || {
            let mut call = Call::new("convert");
            // -S 0: zeros are written as they are, not as holes in a write of their own.
            for arg in ["-n", "-t", "none", "-S", "0", "-f", "raw", "-O", "raw"] {
                call.arg(arg);
            }
            let mut here =
                json!({ "driver": "file", "filename": call.file(&self.mirror)?, "locking": "off" });
            // Not every kernel goes around its cache for what is in memory.
            here["cache"] = json!({ "direct": false });
            let there = self.rbd.node(&self.name, &mut call)?;
            let (from, to) = direction(piece(here), piece(there));
            call.arg(format!("json:{from}")).arg(format!("json:{to}"));
            Ok(call)
        };
        self.run(async |interrupts| self.rbd.qemu_img(&self.name, call, interrupts).await)
    }

    /// Runs a program on the key area in memory, whose path `call` gets.
    pub(in super::super) fn change(
        &self,
        program: &Program,
        verb: &'static str,
        call: impl FnOnce(&mut Call, &str) -> Result<(), VolumeError>,
    ) -> Result<(), VolumeError> {
        let mut made = Call::new(verb);
        let path = made.file(&self.mirror)?;
        call(&mut made, &path)?;
        self.run(async |interrupts| program.run(made, interrupts, &mut |_| {}).await.map(drop))
    }

    fn run<T>(
        &self,
        task: impl AsyncFnOnce(&mut Interrupts) -> Result<T, VolumeError>,
    ) -> Result<T, VolumeError> {
        let (runtime, interrupts) = &mut *self.work.borrow_mut();
        runtime.block_on(task(interrupts)).map_err(stopped)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(mut holder) = self.holder.take() else { return };
        drop(holder.stdin.take());
        let (runtime, _) = self.work.get_mut();
        // What does not end is killed with the runtime.
        let _ = runtime.block_on(async { tokio::time::timeout(GRACE, holder.wait()).await });
    }
}

async fn open(
    rbd: &Rbd,
    name: &RbdName,
    interrupts: &mut Interrupts,
) -> Result<(File, u64, Child), VolumeError> {
    let image = rbd.at_rest(name, interrupts).await?;
    let (_, len) = image.key_area.ok_or_else(|| VolumeError::NotEncrypted(name.path()))?;
    let mirror = memory()?;
    mirror.set_len(image.file_size).map_err(VolumeError::Handover)?;
    let mut call = Call::new("--nocache");
    let node = rbd.node(name, &mut call)?;
    call.arg(format!("json:{}", json!({ "driver": "raw", "file": node })));
    let program = Program::find("qemu-io")?;
    let mut holder = program.start(call)?;
    let mut prompt = holder.stdout.take();
    let mut said = Vec::new();
    while said.len() < PROMPT.len() {
        tokio::select! {
            read = read(&mut prompt, &mut said) => {
                if matches!(read, Ok(0) | Err(_)) {
                    return Err(told(name, program.failed(holder).await));
                }
            }
            signal = interrupts.wait() => return Err(VolumeError::Interrupted(signal)),
        }
    }
    holder.stdout = prompt;
    // Of two that took it at the same moment each sees the other.
    match rbd.watchers(name, interrupts).await? {
        0 | 1 => Ok((mirror, len, holder)),
        _ => Err(VolumeError::InUse(name.path())),
    }
}

async fn read(from: &mut Option<ChildStdout>, into: &mut Vec<u8>) -> io::Result<usize> {
    match from {
        Some(from) => from.read_buf(into).await,
        None => Ok(0),
    }
}

/// A signal left nothing unfinished that the same command would not complete.
fn stopped(error: VolumeError) -> VolumeError {
    match error {
        VolumeError::Interrupted(signal) => VolumeError::Stopped(signal),
        error => error,
    }
}
