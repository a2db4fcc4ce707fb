//! The threads of this process. Each is confined by itself, and hands it on to those that it starts.

use std::fs;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How long threads that have done their work may take to end: those that derive keys and ask keystores at the start.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often is looked.
const INTERVAL: Duration = Duration::from_millis(1);

/// The names of the threads that there are beside the main one and so many others, once those that were about to end have
/// ended.
pub(super) async fn others(known: usize) -> Vec<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let names = names();
        if names.len() <= known {
            return Vec::new();
        }
        if Instant::now() >= deadline {
            return names;
        }
        sleep(INTERVAL).await;
    }
}

/// The names of all threads but the main one, whose number is the process's.
fn names() -> Vec<String> {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().filter_map(Result::ok);
    let main = std::process::id().to_string();
    threads
        .filter(|thread| thread.file_name().to_str() != Some(&main))
        // One that ends meanwhile has no name any more.
        .filter_map(|thread| Some(fs::read_to_string(thread.path().join("comm")).ok()?.trim().to_owned()))
        .collect()
}
