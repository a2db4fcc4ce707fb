//! A progress bar on a terminal; elsewhere nothing.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Steps of the bar.
const WHOLE: u64 = 1000;

/// Shows that something goes on, and how far it is where that is known. indicatif draws on stderr, and only if
/// that is a terminal.
pub(super) struct Progress(ProgressBar);

impl Progress {
    pub(super) fn new(what: String) -> Self {
        let bar = ProgressBar::new_spinner().with_message(what);
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    /// `None`: nobody knows how far it is.
    pub(super) fn show(&self, share: Option<f64>) {
        let Some(share) = share else { return };
        if self.0.length().is_none()
            && let Ok(style) = ProgressStyle::with_template("{msg} [{bar:40}] {percent}%")
        {
            self.0.set_style(style);
            self.0.set_length(WHOLE);
        }
        self.0.set_position((share * WHOLE as f64) as u64);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
