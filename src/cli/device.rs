//! `vmward attach-device` and `vmward detach-device`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::supervisor::control::DomainProxy;
use crate::supervisor::control::api::diagnostics;

use super::CliError;
use super::control::{Guest, GuestArgs, block_on};
use super::input::{Allow, Input};

/// Arguments of `vmward attach-device`.
#[derive(clap::Args)]
pub(crate) struct AttachArgs {
    #[command(flatten)]
    guest: GuestArgs,
    /// The XML of the <disk>; - reads it from the standard input
    #[arg(value_name = "DISK.xml")]
    disk: PathBuf,
    /// What vmward does not honour is a warning
    #[arg(long)]
    allow_unsupported: bool,
}

/// Arguments of `vmward detach-device`.
#[derive(clap::Args)]
pub(crate) struct DetachArgs {
    #[command(flatten)]
    guest: GuestArgs,
    /// The disk's target, or the file with its XML
    #[arg(value_name = "TARGET|DISK.xml")]
    disk: String,
    /// How long the guest may take to let go of it, in seconds
    #[arg(long, value_name = "S")]
    timeout: Option<u32>,
}

/// Runs `vmward attach-device`.
pub(crate) fn attach(args: &AttachArgs) -> Result<ExitCode, CliError> {
    let input = Input::read(&args.disk)?;
    let attached = block_on(async {
        let mut guest = Guest::connect(&args.guest.name).await?;
        let unsupported = args.allow_unsupported.then_some(true);
        let reply = guest.connection.attach_device(&input.source, unsupported).await;
        guest.result(reply, Some(&input))
    })?;
    eprint!("{}", diagnostics(&attached.warnings).render(&input.name, &input.source));
    eprintln!("{} is plugged in as {}", attached.target, attached.alias);
    Ok(ExitCode::SUCCESS)
}

/// Runs `vmward detach-device`.
pub(crate) fn detach(args: &DetachArgs) -> Result<ExitCode, CliError> {
    let target = target(&args.disk)?;
    block_on(async {
        let mut guest = Guest::connect(&args.guest.name).await?;
        let reply = guest.connection.detach_device(&target, args.timeout).await;
        guest.result(reply, None)
    })?;
    eprintln!("{target} is unplugged");
    Ok(ExitCode::SUCCESS)
}

/// The target that was given, or that of the XML file that was.
fn target(disk: &str) -> Result<String, CliError> {
    // Targets are like `vda`: what looks like a path is one.
    if disk != "-" && !disk.contains(['/', '.']) {
        return Ok(disk.to_owned());
    }
    // Only the target counts: the disk that runs is the one that was plugged in, whatever the file says now.
    Input::read(Path::new(disk))?.understand(Allow::Unsupported, |root, diagnostics| {
        let Some(target) = root.child("target").filter(|_| root.name == "disk") else {
            diagnostics.error(root.span, "this is no <disk> with a <target>");
            return None;
        };
        target.require("dev", diagnostics).map(str::to_owned)
    })
}
