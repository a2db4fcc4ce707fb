//! Advice for the errors of keystores: for the commands, and for the clients of a supervisor.

use crate::secret::ValueError;

use super::{Failure, KeystoreError};

impl KeystoreError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        use KeystoreError as E;
        Some(match self {
        E::NotDefined { .. } => {
            "define it with `vmward secret define`, or see what there is with `vmward secret list`".into()
        }
        E::NoValue { uuid, place: Some(_) } => {
            format!("put it there, or set it with `vmward secret set-value {uuid}` where vmward can write")
        }
        E::NoValue { uuid, .. } => format!("set it with `vmward secret set-value {uuid}`"),
        E::Failed { failure, .. } => return failure_hint(failure).map(str::to_owned),
        E::Value { source: ValueError::NotText, uuid } => {
            format!("what opens LUKS images is UTF-8 text without NUL bytes: set another value with `vmward secret set-value {uuid}`, in base64 for example")
        }
        E::Ambiguous { .. } => "name it by its UUID".into(),
        E::NoIdentity { tried, .. } => format!("put the key back at {}", tried.join(" or ")),
        E::WrongIdentity { .. } => {
            "put back the key with which the secret was stored, or set its value again".into()
        }
        E::Unsafe { path, .. } => {
            format!(
                "see who changed it; then `chown` it to the right user and `chmod go-rwx {}`",
                path.display()
            )
        }
        E::NotShared { path, .. } => {
            format!("as root: `chown OWNER:GROUP {0}; chmod 3775 {0}` (3770 if only they read it)", path.display())
        }
        E::Foreign { .. } => "see whose it is (`ls -l`), and have the owner of the directory remove it".into(),
        E::KeyringFull => {
            "undefine ephemeral secrets, or raise kernel.keys.maxkeys and kernel.keys.maxbytes with sysctl"
                .into()
        }
        E::NoStore => {
            "add file:/directory to the keystores, or define the secret with ephemeral='yes'".into()
        }
        E::Damaged { .. } => {
            "restore the file from a backup, or undefine the secret and define it again".into()
        }
        _ => return None,
    })
    }
}

fn failure_hint(failure: &Failure) -> Option<&'static str> {
    Some(match failure {
        Failure::Unreachable => {
            "see whether it runs and its address is right: `vmward doctor` tries every keystore"
        }
        Failure::TimedOut(_) => "try again, or give it more time with `keystore-timeout` in vmward.toml",
        Failure::NotReady(_) => "try again when it is",
        Failure::Locked(_) => "unlock it and try again",
        Failure::NotAuthenticated(_) => "see `vmward doctor`, and renew what it is asked with",
        Failure::Denied => "whoever runs the keystore can allow it",
        Failure::Certificate(_) => {
            "renew the certificate, or name the authority that signed it; it is never accepted unchecked"
        }
        Failure::Missing(_) => "see the keystore's URI",
        Failure::BadAnswer(_) | Failure::Other(_) => return None,
    })
}
