//! What of the helpers is missing, before anything is started.

use std::io::ErrorKind;

use crate::domain::devices::emulated_tpm::EmulatedTpm;
use crate::qemu::{Helper, Service, SharedDirectory};
use crate::supervisor::User;
use crate::xml::{Diagnostics, Element};

use super::find;
use super::nbdkit::NBDKIT;
use super::passt::PASST;
use super::reservations::PR_HELPER;
use super::swtpm::{SETUP, SWTPM};
use super::virtiofsd::{VIRTIOFSD, cannot};

/// Why a helper cannot be started.
struct Missing {
    what: String,
    hint: String,
    kind: ErrorKind,
}

/// Says, each at its line, which helpers there cannot be. `root` is the guest's XML, `user` who QEMU is to run as.
/// Returns why for the first of them, if there is one.
pub fn check_helpers(
    wanted: &[Helper],
    root: &Element,
    user: Option<&User>,
    diagnostics: &mut Diagnostics,
) -> Option<ErrorKind> {
    let mut first = None;
    for helper in wanted {
        let checked = match &helper.service {
            Service::Tpm(tpm) => check_tpm(tpm, root),
            Service::Directory(shared) => check_directory(shared),
            Service::Network(_) => check_network(user),
            Service::Ssh(_) => installed(NBDKIT, "nbdkit"),
            Service::Reservations(_) => installed(PR_HELPER, "qemu-system-common"),
        };
        if let Err(Missing { what, hint, kind }) = checked {
            diagnostics.error(helper.span, what).hint(hint);
            first.get_or_insert(kind);
        }
    }
    first
}

fn installed(program: &str, package: &str) -> Result<(), Missing> {
    match find(program) {
        Some(_) => Ok(()),
        None => Err(Missing {
            what: format!("there is no {program} on this host, which serves this device"),
            hint: format!("install it (Debian: {package})"),
            kind: ErrorKind::Unsupported,
        }),
    }
}

fn check_tpm(tpm: &EmulatedTpm, root: &Element) -> Result<(), Missing> {
    installed(SWTPM, "swtpm")?;
    installed(SETUP, "swtpm-tools")?;
    if tpm.state.is_none() && root.child("uuid").is_none() {
        return Err(Missing {
            what: "a TPM's state is found by the guest's UUID, and the guest has none".to_owned(),
            hint: "write <uuid> into the guest, or <source type='dir' path='...'/> into the <backend>"
                .to_owned(),
            kind: ErrorKind::InvalidInput,
        });
    }
    Ok(())
}

fn check_directory(shared: &SharedDirectory) -> Result<(), Missing> {
    let Some(program) = shared.program() else {
        match &shared.daemon.binary {
            Some(path) => {
                return Err(Missing {
                    what: format!("there is no {}", path.display()),
                    hint: "<binary path='...'> is the path of virtiofsd".to_owned(),
                    kind: ErrorKind::Unsupported,
                });
            }
            None => return installed(VIRTIOFSD, "virtiofsd; in Debian 12 it is in qemu-system-common"),
        }
    };
    if let Some(what) = cannot(&program, &shared.daemon) {
        return Err(Missing {
            what: what.to_owned(),
            hint: format!(
                "leave it out, or name another virtiofsd than {} in <binary path='...'>",
                program.display()
            ),
            kind: ErrorKind::InvalidInput,
        });
    }
    if !shared.directory.is_dir() {
        return Err(Missing {
            what: format!("there is no directory {}", shared.directory.display()),
            hint: "<source dir='...'> is the directory that the guest gets".to_owned(),
            kind: ErrorKind::NotFound,
        });
    }
    Ok(())
}

fn check_network(user: Option<&User>) -> Result<(), Missing> {
    installed(PASST, "passt")?;
    if user.is_none() && nix::unistd::geteuid().is_root() {
        return Err(Missing {
            what: "passt does not run as root, and it runs as the user that QEMU runs as".to_owned(),
            hint: format!(
                "`useradd --system {}` makes a user for QEMU, or --user names one",
                crate::supervisor::DEFAULT_USER
            ),
            kind: ErrorKind::PermissionDenied,
        });
    }
    Ok(())
}
