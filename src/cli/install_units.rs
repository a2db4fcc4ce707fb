//! `vmward install-units`: systemd's units for guests, and what goes with them.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use super::{CliError, Exit, output};

/// Arguments of `vmward install-units`.
#[derive(clap::Args)]
pub(crate) struct InstallUnitsArgs {
    /// Install the units of this user's service manager
    #[arg(long)]
    user: bool,
    /// Install below this directory, for an image that is being made; nothing is reloaded
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

/// The program in the units as they are in the source.
const PROGRAM: &str = "/usr/bin/vmward";
/// The first systemd that has `Type=notify-reload`.
const NOTIFY_RELOAD: u32 = 253;

/// A file and where it goes.
type Unit = (&'static str, &'static str);

const SYSTEM_UNITS: [Unit; 3] = [
    ("vmward@.service", include_str!("../../systemd/system/vmward@.service")),
    ("vmward-secrets@.service", include_str!("../../systemd/system/vmward-secrets@.service")),
    ("vmward-secrets.target", include_str!("../../systemd/system/vmward-secrets.target")),
];
const USER_UNITS: [Unit; 1] = [("vmward@.service", include_str!("../../systemd/user/vmward@.service"))];
const EXAMPLES: [Unit; 5] = [
    ("credentials.conf", include_str!("../../systemd/examples/credentials.conf")),
    ("vault.conf", include_str!("../../systemd/examples/vault.conf")),
    ("kmip.conf", include_str!("../../systemd/examples/kmip.conf")),
    ("helpers.conf", include_str!("../../systemd/examples/helpers.conf")),
    ("pinning.conf", include_str!("../../systemd/examples/pinning.conf")),
];
const SYSUSERS: &str = include_str!("../../systemd/sysusers.conf");
const TMPFILES: &str = include_str!("../../systemd/tmpfiles.conf");

/// Installs the units. What is there already is replaced; drop-ins are the administrator's and stay.
pub(crate) fn run(args: &InstallUnitsArgs) -> Result<ExitCode, CliError> {
    let program = env::current_exe()
        .map_err(|e| CliError::new(Exit::Internal, "it is not known where vmward is").caused_by(e))?;
    let program = program.to_str().filter(|p| is_plain(p)).ok_or_else(|| {
        CliError::new(Exit::Config, format!("units cannot start {}", program.display()))
            .hint("its path may have letters, digits and ./+_- in it: copy it to /usr/local/bin")
    })?;
    // Of an image nobody knows which systemd will run it.
    let version = if args.root.is_some() { None } else { systemd_version() };
    let base = args.root.clone().unwrap_or_else(|| "/".into());
    let (dir, units): (PathBuf, &[Unit]) = match (args.user, &args.root) {
        (false, _) => (base.join("etc/systemd/system"), &SYSTEM_UNITS),
        (true, Some(_)) => (base.join("etc/systemd/user"), &USER_UNITS),
        (true, None) => (user_units()?, &USER_UNITS),
    };
    for (name, text) in units {
        install(&dir.join(name), &fitted(text, program, version))?;
    }
    if !args.user {
        for (name, text) in EXAMPLES {
            install(&base.join("usr/local/share/doc/vmward/systemd").join(name), text)?;
        }
        let sysusers = base.join("etc/sysusers.d/vmward.conf");
        let tmpfiles = base.join("etc/tmpfiles.d/vmward.conf");
        install(&sysusers, SYSUSERS)?;
        install(&tmpfiles, TMPFILES)?;
        if args.root.is_none() {
            tell(&["systemd-sysusers", &sysusers.to_string_lossy()]);
            tell(&["systemd-tmpfiles", "--create", &tmpfiles.to_string_lossy()]);
        }
    }
    if args.root.is_none() {
        tell(if args.user {
            &["systemctl", "--user", "daemon-reload"]
        } else {
            &["systemctl", "daemon-reload"]
        });
    }
    Ok(ExitCode::SUCCESS)
}

/// A path that means itself in a unit.
fn is_plain(path: &str) -> bool {
    path.chars().all(|c| c.is_ascii_alphanumeric() || "./+_-".contains(c))
}

/// A unit for where vmward is, and for a version of systemd.
fn fitted(text: &str, program: &str, version: Option<u32>) -> String {
    let text = text.replace(PROGRAM, program);
    match version {
        // Then `systemctl reload` waits until it is done.
        Some(version) if version >= NOTIFY_RELOAD => text
            .replace("Type=notify\n", "Type=notify-reload\n")
            .replace("ExecReload=/bin/kill -HUP $MAINPID\n", ""),
        _ => text,
    }
}

/// `systemd 252 (252.38-1~deb12u1)`
fn systemd_version() -> Option<u32> {
    let output = Command::new("systemctl").arg("--version").stdin(Stdio::null()).output().ok()?;
    String::from_utf8(output.stdout).ok()?.split_whitespace().nth(1)?.parse().ok()
}

fn user_units() -> Result<PathBuf, CliError> {
    let config = env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let config = config.or_else(|| env::home_dir().filter(|h| h.is_absolute()).map(|h| h.join(".config")));
    config.map(|dir| dir.join("systemd/user")).ok_or_else(|| {
        CliError::new(Exit::Config, "neither XDG_CONFIG_HOME nor HOME says where a user's units are")
    })
}

/// Writes a file, all of it or nothing, and says so.
fn install(path: &Path, text: &str) -> Result<(), CliError> {
    let failed = |e: io::Error| {
        let exit = match e.kind() {
            io::ErrorKind::PermissionDenied => Exit::NoPermission,
            _ => Exit::Unavailable,
        };
        let failure = CliError::new(exit, format!("{} could not be written", path.display()));
        match exit {
            Exit::NoPermission => failure.caused_by(e).hint("try again as root, or with --user"),
            _ => failure.caused_by(e),
        }
    };
    let dir = path.parent().unwrap_or(Path::new("/"));
    let write = || {
        fs::create_dir_all(dir)?;
        let open = |path: &Path| OpenOptions::new().write(true).create_new(true).mode(0o644).open(path);
        let mut file = tempfile::Builder::new().prefix(".vmward-").make_in(dir, open)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error).map(drop)
    };
    write().map_err(failed)?;
    output::line(path.display())
}

/// Has a program of systemd take note. What is installed is installed without it as well, from the next boot on.
fn tell(command: &[&str]) {
    let told =
        Command::new(command[0]).args(&command[1..]).stdin(Stdio::null()).stdout(Stdio::null()).status();
    if !told.is_ok_and(|status| status.success()) {
        eprintln!(
            "warning: `{}` did not work: it is to be done before guests are started",
            command.join(" ")
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_fit_where_they_are_installed() {
        let (_, unit) = SYSTEM_UNITS[0];
        let old = fitted(unit, "/opt/vmward", Some(252));
        assert!(old.contains("ExecStart=/opt/vmward run") && !old.contains(PROGRAM));
        assert!(old.contains("Type=notify\n") && old.contains("ExecReload="));
        let new = fitted(unit, PROGRAM, Some(257));
        assert!(new.contains("Type=notify-reload\n") && !new.contains("ExecReload="));
        assert_eq!(fitted(unit, PROGRAM, None), unit);
        assert!(is_plain("/usr/local/bin/vmward") && !is_plain("/a b") && !is_plain("/100%"));
    }
}
