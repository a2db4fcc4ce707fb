//! swtpm: emulated TPMs. Their state is where libvirt keeps it, so that a guest that moves from there keeps its own.

use std::env;
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Duration;

use command_fds::FdMapping;
use nix::unistd::geteuid;
use tokio::time::timeout;
use uuid::Uuid;

use crate::domain::devices::emulated_tpm::{EmulatedTpm, TpmState, TpmVersion};
use crate::supervisor::SupervisorError;
use crate::supervisor::prepare::make_passable;

use super::{HelperFailure, HelperProgram, Invocation, Place, failed, found, piped, spawn};

/// The program that emulates.
pub(super) const SWTPM: &str = "swtpm";
/// The program that makes a new TPM's state.
pub(super) const SETUP: &str = "swtpm_setup";
/// libvirt's directory of the TPMs of root's guests.
const STATES: &str = "/var/lib/libvirt/swtpm";
/// The same of a user's, in the directory of his configuration.
const USER_STATES: &str = "libvirt/qemu/swtpm";
/// How long the making of a TPM may take: it generates RSA keys.
const SETUP_DEADLINE: Duration = Duration::from_secs(120);
/// What the helper has the key's pipe as.
const KEY_FD: i32 = 3;

impl HelperProgram for EmulatedTpm {
    fn name(&self) -> &'static str {
        SWTPM
    }

    fn gives(&self) -> String {
        format!("its TPM {}", self.version.as_str())
    }

    fn without(&self) -> &'static str {
        "has no TPM until it is started anew"
    }

    fn invocation(&self, socket: &Path, place: &Place<'_>) -> Result<Invocation, SupervisorError> {
        let state = match self.state_path(place.uuid) {
            TpmState::Directory(path) => format!("dir={},mode=0600", path.display()),
            TpmState::File(path) => format!("backend-uri=file://{}", path.display()),
        };
        let mut arguments = vec![
            "socket".to_owned(),
            "--ctrl".to_owned(),
            format!("type=unixio,path={},mode=0600", socket.display()),
            "--tpmstate".to_owned(),
            state,
            // With QEMU's connection goes the guest.
            "--terminate".to_owned(),
        ];
        if self.version == TpmVersion::V2 {
            arguments.push("--tpm2".to_owned());
        }
        if let Some(level) = self.debug {
            arguments.extend(["--log".to_owned(), format!("fd=2,level={level}")]);
        }
        let descriptors = self.key(place)?.into_iter().collect::<Vec<_>>();
        if !descriptors.is_empty() {
            arguments.extend(["--key".to_owned(), format!("pwdfd={KEY_FD},mode=aes-256-cbc")]);
        }
        Ok(Invocation { program: found(SWTPM)?, arguments, descriptors })
    }
}

impl EmulatedTpm {
    /// Where the state is.
    pub(super) fn state_path(&self, uuid: Uuid) -> TpmState {
        let kind = match self.version {
            TpmVersion::V1 => "tpm1.2",
            TpmVersion::V2 => "tpm2",
        };
        self.state.clone().unwrap_or_else(|| TpmState::Directory(states().join(uuid.to_string()).join(kind)))
    }

    /// A pipe with the key in it, and nothing else ever.
    fn key(&self, place: &Place<'_>) -> Result<Option<FdMapping>, SupervisorError> {
        let Some(secret) = &self.secret else { return Ok(None) };
        piped(secret, "the TPM's key", KEY_FD, place).map(Some)
    }
}

/// The directory of the TPMs of all guests.
fn states() -> PathBuf {
    if geteuid().is_root() {
        return STATES.into();
    }
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let config = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")));
    config.unwrap_or_else(|| "/".into()).join(USER_STATES)
}

/// Makes the state of a TPM that has none yet, whole or not at all, and sets the banks of one that has.
pub(super) async fn manufacture(tpm: &EmulatedTpm, place: &Place<'_>) -> Result<(), SupervisorError> {
    let state = match tpm.state_path(place.uuid) {
        TpmState::Directory(path) => path,
        // Only swtpm_setup knows what is in there.
        state @ TpmState::File(_) => return set_up(tpm, &state, place).await,
    };
    let is_there = fs::read_dir(&state).is_ok_and(|mut entries| entries.next().is_some());
    if is_there {
        return match tpm.banks.is_empty() {
            true => Ok(()),
            false => run_setup(tpm, &TpmState::Directory(state), &["--reconfigure"], place).await,
        };
    }
    let parent = state.parent().unwrap_or(Path::new("/"));
    let unmade = || SupervisorError::io(&state, "made");
    make_passable(parent).map_err(unmade())?;
    let new = tempfile::Builder::new().prefix(".vmward-").tempdir_in(parent).map_err(unmade())?;
    if let Some(user) = place.user {
        chown(new.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw())).map_err(unmade())?;
    }
    set_up(tpm, &TpmState::Directory(new.path().to_owned()), place).await?;
    fs::rename(new.path(), &state).map_err(unmade())?;
    // It has another name now.
    let _ = new.keep();
    Ok(())
}

/// Makes a new TPM's state, with certificates where its user may have them from the host's authority.
async fn set_up(tpm: &EmulatedTpm, state: &TpmState, place: &Place<'_>) -> Result<(), SupervisorError> {
    let plain = ["--createek", "--lock-nvram", "--not-overwrite"];
    let certified = [&plain[..], &["--create-ek-cert", "--create-platform-cert"]].concat();
    match run_setup(tpm, state, &certified, place).await {
        Err(SupervisorError::Helper { last_words, .. }) => {
            run_setup(tpm, state, &plain, place).await?;
            tracing::warn!(
                "the guest's new TPM has no certificates of its maker: {}",
                last_words.last().map_or("swtpm_setup could not make them", String::as_str)
            );
            Ok(())
        }
        other => other,
    }
}

async fn run_setup(
    tpm: &EmulatedTpm,
    state: &TpmState,
    actions: &[&str],
    place: &Place<'_>,
) -> Result<(), SupervisorError> {
    let mut arguments: Vec<String> = actions.iter().map(ToString::to_string).collect();
    let mut option = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    match state {
        TpmState::Directory(path) => option("--tpmstate", path.display().to_string()),
        TpmState::File(path) => option("--tpmstate", format!("file://{}", path.display())),
    }
    if !tpm.banks.is_empty() {
        option("--pcr-banks", tpm.banks.iter().map(|b| b.as_str()).collect::<Vec<_>>().join(","));
    }
    if let Some(profile) = &tpm.profile {
        option("--profile-name", profile.clone());
    }
    // What its certificates are about.
    option("--vmid", place.uuid.to_string());
    let descriptors: Vec<_> = tpm.key(place)?.into_iter().collect();
    if !descriptors.is_empty() {
        option("--pwdfile-fd", KEY_FD.to_string());
        option("--cipher", "aes-256-cbc".to_owned());
    }
    if tpm.version == TpmVersion::V2 {
        arguments.push("--tpm2".to_owned());
    }
    let invocation = Invocation { program: found(SETUP)?, arguments, descriptors };
    let process = spawn(SETUP, invocation, place.user, place.lib_dir)?;
    let why = match timeout(SETUP_DEADLINE, process.ended()).await {
        Ok(super::Ending::Exited(0)) => return Ok(()),
        Ok(ending) => HelperFailure::Ended(ending),
        Err(_) => HelperFailure::NotReady(SETUP_DEADLINE),
    };
    let error = failed(SETUP, tpm, why, &process).await;
    process.end_within(0);
    Err(error)
}
