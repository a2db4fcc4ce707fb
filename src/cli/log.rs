//! What is said while a guest runs.

use std::env;

use nix::sys::stat::fstat;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Sends messages to the journal where stderr goes there anyway, so that they keep their priority, and to
/// stderr elsewhere. In the journal each has the guest's name in `VMWARD_GUEST`, and what else is known of it in fields
/// of that kind: `journalctl VMWARD_GUEST=web1 -o verbose`.
pub(crate) fn init(verbose: u8, guest: &str) {
    let level = match verbose {
        0 => LevelFilter::INFO,
        1 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    // At its finest zlink prints whole messages, and a password may be in one.
    let filter = Targets::new().with_default(level).with_target("zlink", level.min(LevelFilter::DEBUG));
    let registry = tracing_subscriber::registry().with(filter);
    if stderr_is_journal()
        && let Ok(journal) = tracing_journald::layer()
    {
        let journal = journal.with_field_prefix(Some("VMWARD".to_owned()));
        registry.with(journal.with_custom_fields([("VMWARD_GUEST", guest)])).init();
    } else {
        let to_stderr = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .without_time()
            .with_target(false)
            .with_ansi(false);
        registry.with(to_stderr).init();
    }
}

/// Whether stderr is the stream that systemd has connected to the journal (systemd.exec(5)).
fn stderr_is_journal() -> bool {
    let here = fstat(std::io::stderr()).map(|stat| format!("{}:{}", stat.st_dev, stat.st_ino));
    here.is_ok_and(|here| env::var("JOURNAL_STREAM").is_ok_and(|stream| stream == here))
}
