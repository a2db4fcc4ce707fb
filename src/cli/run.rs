//! `vmward run`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use nix::unistd::geteuid;

use crate::secret;
use crate::supervisor::{
    self, Confinement, DEFAULT_USER, Ended, Ending, KeyPlace, Launch, Outcome, Unlock, User,
};
use crate::xml::{self, Diagnostics};

use super::config::Config;
use super::control::runtime;
use super::input::{Allow, Input, keyword};
use super::keystore_failure::unresolved_failure;
use super::program::{self, Guest, Target};
use super::supervisor_failure::supervisor_failure;
use super::{CliError, Exit, Global, confinement, log};

/// What a process killed by signal n exits with, less n.
const KILLED: i32 = 128;
/// The exit code of a guest that crashed, and of a QEMU that ended nobody knows how.
const FAILED: i32 = 1;

/// Where the master key is to be.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum MasterKey {
    /// In a file of the guest's directory, which is on a tmpfs
    File,
    /// On no file system: QEMU inherits it, and systemd keeps it for the next supervisor
    Memory,
}

/// Arguments of `vmward run`.
#[derive(clap::Args)]
pub(crate) struct RunArgs {
    /// The guest's domain XML; - reads it from the standard input
    #[arg(value_name = "GUEST.xml")]
    guest: PathBuf,
    /// Run QEMU as this user (as root only) [default: vmward-qemu, if it exists]
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// How long the guest may take to shut down before it is ended, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    stop_timeout: u32,
    /// Who derives the keys of raw LUKS disks: auto (vmward, where QEMU would stand still for long) or qemu
    /// [default: unlock of vmward.toml, or auto]
    #[arg(long, value_name = "WHO", value_parser = keyword::<Unlock>)]
    unlock: Option<Unlock>,
    /// Where the guest's master key is while it runs
    #[arg(long, value_name = "PLACE", value_enum, default_value_t = MasterKey::File)]
    master_key: MasterKey,
    /// Whether vmward and QEMU give up what the guest does not need: on or off [default: mode of [confinement] in
    /// vmward.toml, or on]
    #[arg(long, value_name = "MODE", value_parser = keyword::<Confinement>)]
    confinement: Option<Confinement>,
    /// Start the guest without what vmward does not honour in its XML
    #[arg(long)]
    allow_unsupported: bool,
    /// Say more of what happens (twice: everything)
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

/// Runs a guest until it ends.
pub(crate) fn run(global: &Global, args: &RunArgs) -> Result<ExitCode, CliError> {
    let kept_key = supervisor::close_inherited()
        .and_then(|kept| supervisor::harden().map(|()| kept))
        .map_err(|e| supervisor_failure(e, None))?;
    let input = Input::read(&args.guest)?;
    log::init(args.verbose, &name_in(&input));
    let config = Config::load(global)?;
    let user = User::for_qemu(args.user.as_deref()).map_err(|e| supervisor_failure(e, None))?;
    if user.is_none() && args.user.is_none() && geteuid().is_root() {
        tracing::warn!(
            "QEMU runs as root: there is no user {DEFAULT_USER}, and no other one is named (--user)"
        );
    }
    let user_name = user.as_ref().map(|u| u.name.clone());
    let Guest { xml, domain, capabilities, line } =
        program::build(&input, Allow::unsupported_if(args.allow_unsupported), Target::Host(&config))?;
    program::require_kvm(&domain)?;
    let keystores = config.open_keystores()?;
    let unlock = args.unlock.unwrap_or(config.unlock);
    let places = match args.confinement.unwrap_or(config.confinement) {
        Confinement::On => Some(confinement::places(&config, &args.guest)),
        Confinement::Off => None,
    };
    let runtime_dir = config.paths.runtime_dir;
    let stop_timeout = Duration::from_secs(args.stop_timeout.into());
    let runtime = runtime()?;
    let local = tokio::task::LocalSet::new();
    let left_over = local
        .block_on(&runtime, async {
            wipe_left_overs(&runtime_dir);
            supervisor::left_over(&runtime_dir, domain.name())
        })
        .map_err(|e| supervisor_failure(e, None))?;
    let ended = if let Some(left_over) = left_over {
        let taken = supervisor::take_back(
            left_over,
            capabilities,
            keystores,
            unlock,
            kept_key,
            places.as_ref(),
            stop_timeout,
        );
        local.block_on(&runtime, taken)
    } else {
        let mut diagnostics = Diagnostics::new();
        line.say_unprovided(&mut diagnostics);
        let unreadable = supervisor::check_images(&domain.devices.disks, &mut diagnostics);
        let unconnected = supervisor::check_taps(&line.descriptors, &mut diagnostics);
        let without = supervisor::check_devices(&line.descriptors, &mut diagnostics);
        let unserved = supervisor::check_helpers(&line.helpers, &xml, user.as_ref(), &mut diagnostics);
        input.judge(Some(()), diagnostics, Allow::Nothing).map_err(|e| CliError {
            exit: match unreadable.or(unconnected).or(without).or(unserved) {
                None | Some(ErrorKind::InvalidInput) => e.exit,
                Some(ErrorKind::NotFound) => Exit::NoInput,
                Some(ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => Exit::NoPermission,
                Some(_) => Exit::Unavailable,
            },
            ..e
        })?;
        let secrets = keystores
            .resolve(&program::secrets(&domain, &line))
            .map_err(|unresolved| unresolved_failure(&unresolved, &input.name, &input.source))?;
        if !secret::all_locked() {
            tracing::warn!("not all secrets are in locked memory (see ulimit -l): they could reach the swap");
        }
        drop(input);
        let program = program::emulator(&domain);
        let key_place = match args.master_key {
            MasterKey::File => KeyPlace::File,
            MasterKey::Memory => KeyPlace::Memory,
        };
        let launch = Launch {
            domain,
            xml,
            capabilities,
            line,
            program,
            secrets,
            keystores,
            runtime_dir,
            user,
            unlock,
            key_place,
            places,
        };
        local.block_on(&runtime, supervisor::run(launch, kept_key, stop_timeout))
    };
    Ok(exit_code(ended.map_err(|e| supervisor_failure(e, user_name.as_deref()))?))
}

/// The name that a document gives its guest, whatever else is wrong with it.
fn name_in(input: &Input) -> String {
    let xml = xml::parse(&input.source, &mut Diagnostics::new());
    xml.and_then(|xml| xml.child_text("name").map(str::to_owned)).unwrap_or_default()
}

/// Wipes what other guests have left. This one starts all the same if that cannot be done.
fn wipe_left_overs(runtime_dir: &Path) {
    for cleared in supervisor::wipe_left_overs(runtime_dir) {
        if let Err(e) = cleared.result {
            tracing::warn!("what is left in {} cannot be wiped: {e}", cleared.path.display());
        }
    }
}

/// The exit code of a guest, and a word about it where it is not 0.
fn exit_code(ended: Ended) -> ExitCode {
    let code = match ended {
        Ended::Interrupted(signal) => {
            eprintln!("stopped before the guest ran");
            KILLED + signal.number()
        }
        Ended::Ran(outcome) => {
            let code = code_of(&outcome);
            if outcome.crashed {
                eprintln!("error: the guest has crashed");
            } else if code != 0 {
                eprintln!("error: QEMU {}", outcome.ending);
                outcome.last_words.iter().for_each(|line| eprintln!("  {line}"));
            }
            code
        }
    };
    ExitCode::from(u8::try_from(code).unwrap_or(Exit::Internal as u8))
}

fn code_of(outcome: &Outcome) -> i32 {
    match outcome.ending {
        _ if outcome.crashed => FAILED,
        Ending::Killed(signal) => KILLED + signal,
        Ending::Exited(code) => code,
        Ending::Unknown if outcome.intended => 0,
        Ending::Unknown => FAILED,
    }
}
