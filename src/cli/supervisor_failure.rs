//! What a supervisor's errors mean for a command: exit code and advice.

use std::borrow::Cow;
use std::error::Error;
use std::io;

use crate::supervisor::{NetworkError, SupervisorError};

use super::{CliError, Exit};

/// What QEMU says when it cannot start, what that means, and what to do about it. The first that fits counts.
const LAST_WORDS: [(&str, Exit, &str); 12] = [
    (
        "cannot unlock any keyslot",
        Exit::NoPermission,
        "the value of the disk's secret is not the passphrase of its image: set the right one with `vmward secret set-value`",
    ),
    (
        "Verification of HMAC failed",
        Exit::NoPermission,
        "the value of the TPM's secret is not the key of its state: set the right one with `vmward secret set-value`",
    ),
    (
        "Could not find plain data",
        Exit::Data,
        "the TPM's state is encrypted: name its key in the guest's XML, <encryption secret='UUID'/>",
    ),
    (
        "Wrong decryption key",
        Exit::Data,
        "the TPM's state is not encrypted, and the guest's XML says that it is (<encryption>): remove one or the other",
    ),
    (
        "Could not access KVM kernel module",
        Exit::Unavailable,
        "write <domain type='qemu'> for a host without KVM, or let QEMU's user open /dev/kvm (group kvm)",
    ),
    (
        "\" lock",
        Exit::TryAgain,
        "another guest or qemu-img has the image open: end that first (`vmward list` shows the guests)",
    ),
    (
        "Permission denied",
        Exit::NoPermission,
        "QEMU's user ('{user}') must be able to open the file, and to pass all directories above it",
    ),
    ("No such file or directory", Exit::NoInput, "check the path in the guest's XML"),
    ("annot allocate memory", Exit::TryAgain, "the host has not enough free memory for this guest"),
    (
        "Address already in use",
        Exit::TryAgain,
        "another program listens there: choose another port or socket in the guest's XML",
    ),
    ("Connection refused", Exit::Unavailable, "the server of the disk does not answer"),
    ("Image is not in", Exit::Data, "the <driver type='...'> of the disk must be the format of its image"),
];

/// A supervisor's failure as a command's. `user` is whom QEMU was to run as.
pub(crate) fn supervisor_failure(error: SupervisorError, user: Option<&str>) -> CliError {
    use SupervisorError as E;
    let (exit, hint) = match &error {
        E::Pin { .. } => (
            Exit::Data,
            Some("see <vcpu cpuset=...> and <cputune>: the host has to have these processors (lscpu)".into()),
        ),
        E::AlreadyRunning { name } => (
            Exit::TryAgain,
            Some(format!("`vmward status {name}` shows it, `vmward shutdown {name}` ends it").into()),
        ),
        E::UnsafeDirectory { .. } => (
            Exit::NoPermission,
            Some(
                "make it yours alone (chmod go-w, or chmod 700 for a guest's own directory), or remove it"
                    .into(),
            ),
        ),
        E::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            (Exit::NoPermission, None)
        }
        E::Unavailable(_) => (Exit::Data, Some("leave it out of the guest's XML".into())),
        E::Network(NetworkError::Refused { bridge, .. }) => (
            Exit::Unavailable,
            Some(format!("guests may use bridges that /etc/qemu/bridge.conf allows: allow {bridge}").into()),
        ),
        E::Network(e) if e.kind() == io::ErrorKind::PermissionDenied => (Exit::NoPermission, None),
        E::Network(_) => (Exit::Unavailable, None),
        E::NoSuchUser(_) => (Exit::Config, Some("`adduser --system --group NAME` makes one".into())),
        E::NotRoot(_) => (Exit::NoPermission, None),
        E::NoHelper(_) => (Exit::Unavailable, None),
        E::LongKey(_) | E::LongPassword(_) => (Exit::Data, None),
        E::Helper { last_words, .. } | E::Died { last_words, .. } | E::Start { last_words, .. } => {
            let (exit, hint) = meaning(last_words);
            (exit, hint.map(|hint| hint.replace("{user}", user.unwrap_or("your own")).into()))
        }
        E::Stranded { pid, .. } => {
            (Exit::Unavailable, Some(format!("`kill {pid}` ends it; then start the guest anew").into()))
        }
        E::NoSecret(_) | E::MasterKey(_) | E::NoMasterKey(_) | E::Harden(_) | E::Signals(_) => {
            (Exit::Internal, None)
        }
        E::Io { .. } | E::DamagedState { .. } | E::Spawn { .. } | E::Watch { .. } => {
            (Exit::Unavailable, None)
        }
    };
    let mut failure = CliError::new(exit, error.to_string());
    let mut causes = Vec::new();
    let mut cause = error.source();
    while let Some(e) = cause {
        causes.push(e.to_string());
        cause = e.source();
    }
    failure.source = (!causes.is_empty()).then(|| causes.join(": ").into());
    failure.hint = hint.map(Cow::into_owned);
    failure
}

fn meaning(last_words: &[String]) -> (Exit, Option<&'static str>) {
    let said = |words: &str| last_words.iter().any(|line| line.contains(words));
    match LAST_WORDS.into_iter().find(|(words, ..)| said(words)) {
        Some((_, exit, hint)) => (exit, Some(hint)),
        None => (Exit::Unavailable, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemus_words_have_a_meaning() {
        for (line, exit) in [
            ("qemu: -blockdev {...}: Invalid password, cannot unlock any keyslot", Exit::NoPermission),
            ("qemu: -device {...}: Failed to get \"write\" lock", Exit::TryAgain),
            ("qemu: Could not access KVM kernel module: Permission denied", Exit::Unavailable),
            ("qemu: -blockdev {...}: Could not open '/x': Permission denied", Exit::NoPermission),
            ("qemu: cannot set up guest memory 'pc.ram': Cannot allocate memory", Exit::TryAgain),
            ("swtpm: Verification of HMAC failed. Data integrity is compromised", Exit::NoPermission),
            ("qemu: something new", Exit::Unavailable),
        ] {
            assert_eq!(meaning(&["a warning".to_owned(), line.to_owned()]).0, exit, "{line}");
        }
    }
}
