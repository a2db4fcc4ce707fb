//! Advice for the errors of keystores: for the commands, and for the clients of a supervisor.

use super::KeystoreError;

impl KeystoreError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        use KeystoreError as E;
        Some(match self {
        E::NotDefined { .. } => {
            "define it with `vmward secret define`, or see what there is with `vmward secret list`".into()
        }
        E::NoValue { uuid } => format!("set it with `vmward secret set-value {uuid}`"),
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
