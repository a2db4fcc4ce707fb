//! `<driver>`: how QEMU uses a disk's images.

use crate::domain::devices::virtio::VirtioOptions;
use crate::xml::{Diagnostics, Element, Span, keywords};

keywords! {
    /// What the host's and QEMU's caches may do.
    pub enum Cache {
        /// As QEMU does by itself.
        Default = "default",
        /// No host cache.
        None = "none",
        /// Host cache, and each write reaches the disk before it is done.
        Writethrough = "writethrough",
        /// Host cache; the guest's flushes are honoured.
        Writeback = "writeback",
        /// No host cache, and each write reaches the disk before it is done.
        Directsync = "directsync",
        /// Host cache; the guest's flushes are ignored.
        Unsafe = "unsafe",
    }
}

impl Cache {
    /// Whether the guest sees a write cache, whether the host's cache is bypassed, whether flushes are
    /// ignored; `None` leaves all three to QEMU. libvirt splits the cache modes the same way.
    pub fn flags(self) -> Option<CacheFlags> {
        let (write_cache, direct, no_flush) = match self {
            Self::Default => return None,
            Self::None => (true, true, false),
            Self::Writethrough => (false, false, false),
            Self::Writeback => (true, false, false),
            Self::Directsync => (false, true, false),
            Self::Unsafe => (true, false, true),
        };
        Some(CacheFlags { write_cache, direct, no_flush })
    }
}

/// What a cache mode means for QEMU's parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheFlags {
    /// The device tells the guest that it has a write cache.
    pub write_cache: bool,
    /// The nodes bypass the host's cache.
    pub direct: bool,
    /// The nodes ignore flushes.
    pub no_flush: bool,
}

keywords! {
    /// How QEMU does I/O.
    pub enum Io {
        /// A pool of threads.
        Threads = "threads",
        /// Linux AIO.
        Native = "native",
        /// io_uring.
        Uring = "io_uring",
    }
}

keywords! {
    /// What becomes of the guest's discards.
    pub enum Discard {
        /// They reach the image.
        Unmap = "unmap",
        /// Nothing.
        Ignore = "ignore",
    }
}

keywords! {
    /// What becomes of writes of zeroes.
    pub enum DetectZeroes {
        /// They are written.
        Off = "off",
        /// They are written without data.
        On = "on",
        /// They become discards.
        Unmap = "unmap",
    }
}

keywords! {
    /// What happens at an I/O error.
    pub enum ErrorPolicy {
        /// The guest is stopped.
        Stop = "stop",
        /// The guest is told.
        Report = "report",
        /// Nothing.
        Ignore = "ignore",
        /// The guest is stopped if the host is out of space, and told otherwise.
        Enospace = "enospace",
    }
}

/// One I/O thread of a virtio-blk disk and the queues it serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IothreadQueues {
    /// The I/O thread's id.
    pub iothread: u32,
    /// Its queues; empty: QEMU deals them out.
    pub queues: Vec<u16>,
}

/// `<driver>`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Driver {
    /// Where it stands.
    pub span: Span,
    /// What the caches may do.
    pub cache: Option<Cache>,
    /// How QEMU does I/O.
    pub io: Option<Io>,
    /// What becomes of discards.
    pub discard: Option<Discard>,
    /// What becomes of writes of zeroes.
    pub detect_zeroes: Option<DetectZeroes>,
    /// qcow2: discarded clusters stay allocated, so that the image does not fragment.
    pub discard_no_unref: Option<bool>,
    /// At errors in writes, and in reads where [`Driver::read_error_policy`] does not say otherwise.
    pub error_policy: Option<ErrorPolicy>,
    /// At errors in reads.
    pub read_error_policy: Option<ErrorPolicy>,
    /// Reads from backing images are kept.
    pub copy_on_read: bool,
    /// virtio: how many queues.
    pub queues: Option<u16>,
    /// virtio: how long a queue is.
    pub queue_size: Option<u16>,
    /// virtio: the I/O thread that serves it.
    pub iothread: Option<u32>,
    /// virtio: the I/O threads that serve its queues.
    pub iothreads: Vec<IothreadQueues>,
    /// virtio: notifications through an eventfd.
    pub ioeventfd: Option<bool>,
    /// virtio: fewer interrupts.
    pub event_idx: Option<bool>,
    /// virtio: what all virtio devices take.
    pub virtio: VirtioOptions,
}

impl Driver {
    /// Reads the `<driver>` of a disk; its `type` belongs to the image and is read with it.
    pub(super) fn from_xml(disk: &Element, diagnostics: &mut Diagnostics) -> Self {
        let Some(e) = disk.only_child("driver", diagnostics) else {
            return Self { span: disk.span, ..Self::default() };
        };
        if let Some(name) = e.attribute("name").filter(|n| n.value != "qemu") {
            diagnostics.error(name.span, format!("the driver '{}' is not QEMU's", name.value));
        }
        let driver = Self {
            span: e.span,
            cache: e.keyword("cache", diagnostics),
            io: e.keyword("io", diagnostics),
            discard: e.keyword("discard", diagnostics),
            detect_zeroes: e.keyword("detect_zeroes", diagnostics),
            discard_no_unref: e.on_off("discard_no_unref", diagnostics),
            error_policy: e.keyword("error_policy", diagnostics),
            read_error_policy: e.keyword("rerror_policy", diagnostics),
            copy_on_read: e.on_off("copy_on_read", diagnostics) == Some(true),
            queues: e.number("queues", diagnostics),
            queue_size: e.number("queue_size", diagnostics),
            iothread: e.number("iothread", diagnostics),
            iothreads: iothreads(e, diagnostics),
            ioeventfd: e.on_off("ioeventfd", diagnostics),
            event_idx: e.on_off("event_idx", diagnostics),
            virtio: VirtioOptions::from_xml(e, diagnostics),
        };
        driver.check(diagnostics);
        driver
    }

    fn check(&self, diagnostics: &mut Diagnostics) {
        if self.read_error_policy == Some(ErrorPolicy::Enospace) {
            diagnostics.error(self.span, "'enospace' is a policy for writes only");
        }
        let direct = matches!(self.cache, Some(Cache::None | Cache::Directsync));
        if self.io == Some(Io::Native) && !direct {
            diagnostics
                .error(self.span, "io='native' needs cache='none' or cache='directsync'")
                .hint("Linux AIO is asynchronous only where the host's cache is bypassed");
        }
        if self.iothread == Some(0) {
            diagnostics.error(self.span, "I/O threads are numbered from 1");
        }
        if self.iothread.is_some() && !self.iothreads.is_empty() {
            diagnostics.error(self.span, "iothread= and <iothreads> exclude each other");
        }
    }

    /// What QEMU is told of writes of zeroes: without discards to the image, there is nothing to unmap.
    pub fn effective_detect_zeroes(&self) -> Option<DetectZeroes> {
        match self.detect_zeroes {
            Some(DetectZeroes::Unmap) if self.discard != Some(Discard::Unmap) => Some(DetectZeroes::On),
            other => other,
        }
    }

    /// Whether queues are given to I/O threads, but not each of them to one.
    pub(super) fn is_iothread_mapping_partial(&self) -> bool {
        if self.iothreads.iter().all(|thread| thread.queues.is_empty()) {
            return false;
        }
        let mut mapped: Vec<u16> = self.iothreads.iter().flat_map(|t| t.queues.iter().copied()).collect();
        mapped.sort_unstable();
        self.iothreads.iter().any(|thread| thread.queues.is_empty())
            || !mapped.iter().copied().eq(0..self.queues.unwrap_or_default())
    }

    /// Whether it says anything that only virtio devices have.
    pub(super) fn has_virtio_options(&self) -> bool {
        self.ioeventfd.is_some()
            || self.event_idx.is_some()
            || self.queues.is_some()
            || self.queue_size.is_some()
            || self.virtio != VirtioOptions::default()
    }
}

fn iothreads(driver: &Element, diagnostics: &mut Diagnostics) -> Vec<IothreadQueues> {
    let Some(list) = driver.only_child("iothreads", diagnostics) else {
        return Vec::new();
    };
    let mut found: Vec<IothreadQueues> = Vec::new();
    for thread in list.children("iothread") {
        if thread.require("id", diagnostics).is_none() {
            continue;
        }
        let Some(iothread) = thread.number("id", diagnostics) else { continue };
        let mut queues = Vec::new();
        for queue in thread.children("queue") {
            if queue.require("id", diagnostics).is_some() {
                queues.extend(queue.number::<u16>("id", diagnostics));
            }
        }
        if found.iter().any(|f| f.iothread == iothread) {
            diagnostics.error(thread.span, format!("the I/O thread {iothread} is listed twice"));
        }
        found.push(IothreadQueues { iothread, queues });
    }
    if found.is_empty() {
        diagnostics.error(list.span, "<iothreads> lists no I/O thread");
    }
    found
}
