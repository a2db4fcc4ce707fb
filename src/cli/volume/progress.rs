//! How far a command is: a bar on a terminal, lines of JSON on a descriptor.

use std::cell::{Cell, RefCell};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::cli::control::block_on;
use crate::cli::{CliError, Exit};
use crate::volume::Interrupts;

/// Steps of the bar, and of what is told.
const WHOLE: u64 = 1000;

/// Where a program that called vmward reads how far it is.
#[derive(clap::Args, Clone, Copy)]
pub(super) struct ProgressFd {
    /// Write how far it is to this descriptor, an object per line: {"share":0.25}, {"step":"..."}, and at the end {"done":true}
    #[arg(long = "progress-fd", value_name = "N", value_parser = clap::value_parser!(u32).range(3..))]
    number: Option<u32>,
}

/// Shows that something goes on, and how far it is where that is known. indicatif draws on stderr, and only if
/// that is a terminal.
pub(super) struct Progress {
    bar: ProgressBar,
    lines: Option<RefCell<File>>,
    told: Cell<Option<u64>>,
}

impl Progress {
    pub(super) fn new(what: String, fd: ProgressFd) -> Result<Self, CliError> {
        let open = |number: u32| {
            // Opened anew: a file is written from where it ends, a pipe is the same one.
            OpenOptions::new().append(true).open(format!("/proc/self/fd/{number}")).map_err(|e| {
                CliError::new(
                    Exit::Usage,
                    format!("the descriptor {number} of --progress-fd cannot be written"),
                )
                .caused_by(e)
            })
        };
        let lines = fd.number.map(open).transpose()?.map(RefCell::new);
        let bar = ProgressBar::new_spinner().with_message(what);
        bar.enable_steady_tick(Duration::from_millis(100));
        Ok(Self { bar, lines, told: Cell::new(None) })
    }

    /// `None`: nobody knows how far it is.
    pub(super) fn show(&self, share: Option<f64>) {
        let Some(share) = share else { return };
        let step = (share * WHOLE as f64) as u64;
        if self.bar.length().is_none()
            && let Ok(style) = ProgressStyle::with_template("{msg} [{bar:40}] {percent}%")
        {
            self.bar.set_style(style);
            self.bar.set_length(WHOLE);
        }
        self.bar.set_position(step);
        if self.told.replace(Some(step)) != Some(step) {
            self.tell(&json!({ "share": step as f64 / WHOLE as f64 }));
        }
    }

    /// What is done next.
    pub(super) fn step(&self, name: &str) {
        self.tell(&json!({ "step": name }));
    }

    /// The last that is told.
    pub(super) fn end(self, done: bool) {
        self.tell(&json!({ "done": done }));
    }

    /// A reader that went away wants to know no more; what is done goes on.
    fn tell(&self, line: &Value) {
        if let Some(lines) = &self.lines {
            let _ = writeln!(lines.borrow_mut(), "{line}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Does something that signals interrupt in an orderly way.
pub(super) fn interruptible<T>(
    work: impl AsyncFnOnce(&mut Interrupts) -> Result<T, CliError>,
) -> Result<T, CliError> {
    block_on(async {
        let mut interrupts = Interrupts::catch()
            .map_err(|e| CliError::new(Exit::Internal, "signals cannot be handled").caused_by(e))?;
        work(&mut interrupts).await
    })
}
