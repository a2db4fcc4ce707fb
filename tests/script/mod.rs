//! Programs that tests write for themselves.
//!
//! Another process writes them: were this one to hold the file open for writing, a program that another test starts
//! meanwhile would for a moment hold it too, and to start what was written would fail with "Text file busy".
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "this is a test")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Makes `path` a shell script that does `text`.
pub fn write(path: &Path, text: &str) {
    let mut writer = Command::new("/bin/sh")
        .args(["-c", "cat >\"$0\" && chmod 0755 \"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = writer.stdin.take().unwrap();
    write!(input, "#!/bin/sh\n{text}\n").unwrap();
    drop(input);
    assert!(writer.wait().unwrap().success(), "no script was written to {}", path.display());
}

/// Copies a program.
pub fn copy(program: impl AsRef<Path>, path: &Path) {
    let copied = Command::new("cp").arg(program.as_ref()).arg(path).status().unwrap();
    assert!(copied.success(), "no program at {}", path.display());
}
