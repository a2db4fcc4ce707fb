//! The command line: arguments, output, exit codes. One file per group of commands.

mod argv;
mod check;
mod completions;
mod config;
mod confinement;
mod control;
mod device;
mod doctor;
mod error;
mod input;
mod install_units;
mod keystore_failure;
mod log;
mod monitor;
mod output;
mod password;
mod program;
mod recipients;
mod run;
mod secret;
mod snapshot;
mod status;
mod supervisor_failure;
mod value_source;
mod volume;

pub use error::{CliError, Exit};

use std::num::NonZero;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use control::Button;

/// Runs one QEMU guest per process from a libvirt domain XML, with encrypted disks.
#[derive(Parser)]
#[command(name = "vmward", version, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options that every command takes.
#[derive(clap::Args)]
pub(crate) struct Global {
    /// Search this keystore (repeatable, in order) instead of the configured ones
    #[arg(long, global = true, value_name = "URI")]
    pub keystore: Vec<String>,
    /// How long a keystore may take to answer [default: keystore-timeout of vmward.toml, or 10]
    #[arg(long, global = true, value_name = "SECONDS")]
    pub keystore_timeout: Option<NonZero<u32>>,
}

#[derive(Subcommand)]
enum Command {
    /// Start a guest and stay with it until it ends
    Run(run::RunArgs),
    /// Say everything that is wrong with a guest's XML
    Check(check::CheckArgs),
    /// Print the QEMU command line of a guest, its secrets redacted
    Argv(argv::ArgvArgs),
    /// List the guests that run
    List(status::ListArgs),
    /// Say how a guest is
    Status(status::StatusArgs),
    /// Print the XML of a running guest, with the addresses and aliases it was given
    Dumpxml(control::GuestArgs),
    /// Press a guest's power button
    Shutdown(control::ShutdownArgs),
    /// End a guest at once
    Destroy(control::GuestArgs),
    /// Shut a guest down and start it again
    Reboot(control::GuestArgs),
    /// Press a guest's reset button
    Reset(control::GuestArgs),
    /// Stop a guest's processors
    Suspend(control::GuestArgs),
    /// Let a suspended guest go on
    Resume(control::GuestArgs),
    /// Plug a disk into a running guest
    AttachDevice(device::AttachArgs),
    /// Take a disk out of a running guest
    DetachDevice(device::DetachArgs),
    /// Change the medium of a running guest's drive
    ChangeMedia(device::MediaArgs),
    /// Make, list and delete snapshots of a running guest's disks
    Snapshot(snapshot::SnapshotArgs),
    /// Set, limit or remove the password of a guest's VNC or SPICE display
    SetPassword(password::SetPasswordArgs),
    /// Make a disk of a running guest larger
    Blockresize(device::ResizeArgs),
    /// Have a guest use the certificates that are there now
    ReloadTls(control::GuestArgs),
    /// Send QEMU a monitor command, past all of vmward's checks
    Qmp(monitor::QmpArgs),
    /// Print what happens in a guest, one JSON object per line
    Events(control::GuestArgs),
    /// Check whether this machine can keep vmward's promises
    Doctor(doctor::DoctorArgs),
    /// Install systemd's units for guests
    InstallUnits(install_units::InstallUnitsArgs),
    /// Print completions for a shell, or the manual page
    Completions(completions::CompletionsArgs),
    /// Make, show and remove secrets
    Secret(secret::SecretArgs),
    /// Make and inspect encrypted disk images
    Volume(volume::VolumeArgs),
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return if e.use_stderr() { Exit::Usage.into() } else { ExitCode::SUCCESS };
        }
    };
    let result = match cli.command {
        Command::Run(args) => run::run(&cli.global, &args),
        Command::Check(args) => check::run(&cli.global, &args),
        Command::Argv(args) => argv::run(&cli.global, &args),
        Command::List(args) => status::list(&args),
        Command::Status(args) => status::status(&args),
        Command::Dumpxml(args) => status::dumpxml(&args),
        Command::Shutdown(args) => control::shutdown(&args),
        Command::Destroy(args) => control::press(Button::Destroy, &args),
        Command::Reboot(args) => control::press(Button::Reboot, &args),
        Command::Reset(args) => control::press(Button::Reset, &args),
        Command::Suspend(args) => control::press(Button::Suspend, &args),
        Command::Resume(args) => control::press(Button::Resume, &args),
        Command::AttachDevice(args) => device::attach(&args),
        Command::DetachDevice(args) => device::detach(&args),
        Command::ChangeMedia(args) => device::change_media(&args),
        Command::Snapshot(args) => snapshot::run(args),
        Command::SetPassword(args) => password::set(&args),
        Command::Blockresize(args) => device::resize(&args),
        Command::ReloadTls(args) => password::reload_tls(&args),
        Command::Qmp(args) => monitor::qmp(&args),
        Command::Events(args) => monitor::events(&args),
        Command::Doctor(args) => doctor::run(&cli.global, &args),
        Command::InstallUnits(args) => install_units::run(&args),
        Command::Completions(args) => completions::run(Cli::command(), &args),
        Command::Secret(args) => secret::run(&cli.global, args),
        Command::Volume(args) => volume::run(&cli.global, args),
    };
    match result {
        Ok(code) => code,
        Err(e) => e.report(),
    }
}
