//! What QEMU can do here.

use std::path::Path;

use crate::cli::config::Paths;
use crate::cli::program::DEFAULT_EMULATOR;
use crate::qemu::Capabilities;
use crate::volume::QemuImg;

use super::Finding;

/// What is said about QEMU and qemu-img.
pub(super) fn findings(paths: &Paths) -> Vec<Finding> {
    let mut findings = match Capabilities::of_program(Path::new(DEFAULT_EMULATOR), &paths.cache_dir) {
        Ok(capabilities) => abilities(&capabilities),
        Err(e) => vec![
            Finding::error("QEMU", e.to_string())
                .hint("install it (Debian: qemu-system-x86), or name another one in each guest's <emulator>"),
        ],
    };
    const ABOUT: &str = "qemu-img";
    findings.push(match QemuImg::find() {
        Ok(program) => match program.makes_luks() {
            true => Finding::ok(ABOUT, "it makes encrypted volumes"),
            false => Finding::error(ABOUT, "it was built without LUKS"),
        },
        Err(e) => Finding::error(ABOUT, e.to_string()).hint("volumes are made with it (Debian: qemu-utils)"),
    });
    findings
}

fn abilities(capabilities: &Capabilities) -> Vec<Finding> {
    const ABOUT: &str = "QEMU";
    let (major, minor, micro) = capabilities.version;
    let version = format!("{DEFAULT_EMULATOR} is {major}.{minor}.{micro}");
    let sandbox = match capabilities.sandbox {
        true => Finding::ok(ABOUT, "it runs sandboxed (seccomp)"),
        false => Finding::warning(
            ABOUT,
            "it was built without a sandbox: a guest that takes it over has all of its user's system calls",
        )
        .hint("Debian's builds have one"),
    };
    let luks = match capabilities.has_object("secret") {
        true => Finding::ok(ABOUT, "it opens encrypted disks"),
        false => Finding::error(ABOUT, "it was built without secret objects: it opens no encrypted disk"),
    };
    let header = match capabilities.has_detached_luks_headers() {
        true => Finding::ok(ABOUT, "it takes LUKS headers from elsewhere than the disk"),
        false => Finding::ok(
            ABOUT,
            "it takes LUKS headers from the disk only (9.0 takes them from elsewhere, too)",
        ),
    };
    vec![Finding::ok(ABOUT, version), sandbox, luks, header]
}
