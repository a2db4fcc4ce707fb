//! virtiofsd: directories of the host in the guest. Started by root it keeps root's rights, because the guest's
//! users are the host's, and shuts itself into the directory.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::domain::devices::virtiofsd::{CacheMode, IdMap, Virtiofsd};
use crate::qemu::SharedDirectory;
use crate::supervisor::SupervisorError;

use super::{HelperProgram, Invocation, Place, find};

/// The program.
pub(super) const VIRTIOFSD: &str = "virtiofsd";
/// What a virtiofsd says of itself that takes each option by its own name. QEMU's old one, in C, has them all in `-o`.
const SEPARATE_OPTIONS: &str = "separate-options";

impl HelperProgram for SharedDirectory {
    fn name(&self) -> &'static str {
        VIRTIOFSD
    }

    fn gives(&self) -> String {
        format!("the directory {}", self.directory.display())
    }

    fn without(&self) -> &'static str {
        "cannot reach the directory until it is started anew, and waits for ever if it tries"
    }

    fn keeps_rights(&self) -> bool {
        true
    }

    fn invocation(&self, socket: &Path, _: &Place<'_>) -> Result<Invocation, SupervisorError> {
        let program = self.program().ok_or(SupervisorError::NoHelper(VIRTIOFSD))?;
        let mut arguments = vec![format!("--socket-path={}", socket.display())];
        arguments.extend(match has_separate_options(&program) {
            true => self.separate_options(),
            false => self.old_options(),
        });
        Ok(Invocation { program, arguments, descriptors: Vec::new() })
    }
}

impl SharedDirectory {
    /// Which virtiofsd it is.
    pub(super) fn program(&self) -> Option<PathBuf> {
        match &self.daemon.binary {
            Some(path) => Some(path.clone()).filter(|path| path.is_file()),
            None => find(VIRTIOFSD),
        }
    }

    fn separate_options(&self) -> Vec<String> {
        let daemon = &self.daemon;
        let mut options = vec![format!("--shared-dir={}", self.directory.display())];
        let mut option = |text: String| options.push(text);
        if let Some(mode) = daemon.cache {
            option(format!("--cache={}", cache(mode)));
        }
        if let Some(mode) = daemon.sandbox {
            option(format!("--sandbox={}", mode.as_str()));
        }
        if daemon.xattr == Some(true) {
            option("--xattr".to_owned());
        }
        if let Some(threads) = daemon.threads {
            option(format!("--thread-pool-size={threads}"));
        }
        if let Some(files) = daemon.open_files {
            option(format!("--rlimit-nofile={files}"));
        }
        for (name, maps) in [("uid", &daemon.users), ("gid", &daemon.groups)] {
            for IdMap { start, target, count } in maps {
                option(format!("--{name}-map=:{start}:{target}:{count}:"));
            }
        }
        options
    }

    fn old_options(&self) -> Vec<String> {
        let daemon = &self.daemon;
        let mut words = vec![format!("source={}", self.directory.display())];
        if let Some(mode) = daemon.cache {
            words.push(format!("cache={}", cache(mode)));
        }
        if let Some(mode) = daemon.sandbox {
            words.push(format!("sandbox={}", mode.as_str()));
        }
        for (name, on) in
            [("xattr", daemon.xattr), ("posix_lock", daemon.posix_locks), ("flock", daemon.flocks)]
        {
            if let Some(on) = on {
                words.push(format!("{}{name}", if on { "" } else { "no_" }));
            }
        }
        // `-f` keeps it in the foreground.
        let mut options = vec!["-f".to_owned(), "-o".to_owned(), words.join(",")];
        if let Some(threads) = daemon.threads {
            options.push(format!("--thread-pool-size={threads}"));
        }
        if let Some(files) = daemon.open_files {
            options.push(format!("--rlimit-nofile={files}"));
        }
        options
    }
}

fn cache(mode: CacheMode) -> &'static str {
    match mode {
        CacheMode::None => "never",
        CacheMode::Always => "always",
    }
}

/// What the XML asks for that only the other one of the two programs can do.
pub(super) fn cannot(program: &Path, daemon: &Virtiofsd) -> Option<&'static str> {
    if !has_separate_options(program) {
        let maps = !daemon.users.is_empty() || !daemon.groups.is_empty();
        return maps.then_some("this virtiofsd, QEMU's old one, maps no users (<idmap>)");
    }
    let locks = daemon.posix_locks == Some(true) || daemon.flocks == Some(true);
    locks.then_some("this virtiofsd does not hand the guest's locks on to the host (<lock>)")
}

fn has_separate_options(program: &Path) -> bool {
    let asked = Command::new(program)
        .arg("--print-capabilities")
        .env_clear()
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    asked.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(SEPARATE_OPTIONS))
}
