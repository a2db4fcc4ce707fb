//! `vmward attach-device`, `detach-device`, `change-media` and `blockresize`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::supervisor::control::DomainProxy;
use crate::supervisor::control::api::diagnostics;
use crate::volume;

use super::control::{Guest, GuestArgs, block_on};
use super::input::{Allow, Input};
use super::{CliError, Exit};

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

/// Arguments of `vmward change-media`.
#[derive(clap::Args)]
pub(crate) struct MediaArgs {
    #[command(flatten)]
    guest: GuestArgs,
    /// The drive's target
    #[arg(value_name = "TARGET")]
    target: String,
    /// A plain raw image; or the XML of the <disk> with the new medium, in a file *.xml or (-) on the standard input
    #[arg(value_name = "IMAGE|DISK.xml", required_unless_present = "eject", conflicts_with = "eject")]
    source: Option<PathBuf>,
    /// Leave the drive empty
    #[arg(long)]
    eject: bool,
    /// Change it even if the guest has locked the tray
    #[arg(long)]
    force: bool,
    /// What vmward does not honour is a warning
    #[arg(long)]
    allow_unsupported: bool,
}

/// Arguments of `vmward blockresize`.
#[derive(clap::Args)]
pub(crate) struct ResizeArgs {
    #[command(flatten)]
    guest: GuestArgs,
    /// The disk's target
    #[arg(value_name = "TARGET")]
    target: String,
    /// What the guest is to see: 10G or 10GiB (powers of 1024), 10GB (powers of 1000), or bytes
    #[arg(value_name = "SIZE", value_parser = volume::parse_size)]
    size: u64,
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

/// Runs `vmward change-media`.
pub(crate) fn change_media(args: &MediaArgs) -> Result<ExitCode, CliError> {
    let (mut xml, mut image) = (None, None);
    if let Some(source) = &args.source {
        if source.as_os_str() == "-" || source.extension().is_some_and(|e| e == "xml") {
            xml = Some(Input::read(source)?);
        } else {
            let path = std::path::absolute(source).ok().and_then(|p| p.into_os_string().into_string().ok());
            let wrong = || CliError::new(Exit::Usage, "the path of an image is UTF-8 text");
            image = Some(path.ok_or_else(wrong)?);
        }
    }
    let changed = block_on(async {
        let mut guest = Guest::connect(&args.guest.name).await?;
        let (force, unsupported) = (args.force.then_some(true), args.allow_unsupported.then_some(true));
        let source = xml.as_ref().map(|input| input.source.as_str());
        let connection = &mut guest.connection;
        let reply = connection.change_media(&args.target, source, image.as_deref(), force, unsupported).await;
        // Of an image that was only named there is no text to point at.
        let named = Input { name: "change-media".to_owned(), source: String::new() };
        guest.result(reply, Some(xml.as_ref().unwrap_or(&named)))
    })?;
    if let Some(input) = &xml {
        eprint!("{}", diagnostics(&changed.warnings).render(&input.name, &input.source));
    }
    eprintln!("{} {}", args.target, if args.eject { "is empty" } else { "has its new medium" });
    Ok(ExitCode::SUCCESS)
}

/// Runs `vmward blockresize`.
pub(crate) fn resize(args: &ResizeArgs) -> Result<ExitCode, CliError> {
    block_on(async {
        let mut guest = Guest::connect(&args.guest.name).await?;
        let reply = guest.connection.resize_disk(&args.target, args.size).await;
        guest.result(reply, None)
    })?;
    eprintln!("{} has {} bytes", args.target, args.size);
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
