//! `vmward snapshot`.

use std::path::Path;
use std::process::ExitCode;

use clap::Subcommand;
use jiff::Timestamp;
use serde_json::json;

use crate::supervisor::control::DomainProxy;
use crate::supervisor::control::api::{Snapshot, SnapshotDisk};

use super::control::{Guest, GuestArgs, block_on, block_on_briefly};
use super::{CliError, output};

/// Arguments of `vmward snapshot`.
#[derive(clap::Args)]
pub(crate) struct SnapshotArgs {
    #[command(subcommand)]
    command: SnapshotCommand,
}

#[derive(Subcommand)]
enum SnapshotCommand {
    /// Have a guest write to overlays from now on; one on an encrypted disk is encrypted
    Create(CreateArgs),
    /// List a guest's snapshots, the oldest first
    List(ListArgs),
    /// Merge what was written since a snapshot into what was before, and remove its overlays
    Delete(DeleteArgs),
}

/// Arguments of `vmward snapshot create`.
#[derive(clap::Args)]
struct CreateArgs {
    #[command(flatten)]
    guest: GuestArgs,
    /// The snapshot's name
    #[arg(value_name = "SNAPSHOT")]
    snapshot: String,
    /// A disk of it (repeatable), and where its overlay is to be [default: every disk that the guest writes to, the
    /// overlay of IMAGE.EXT in IMAGE.SNAPSHOT.qcow2 beside it]
    #[arg(long = "disk", value_name = "TARGET[=FILE]", value_parser = disk)]
    disks: Vec<SnapshotDisk>,
    /// The secret of encrypted overlays [default: that of the image below]
    #[arg(long, value_name = "UUID|USAGE")]
    secret: Option<String>,
}

/// Arguments of `vmward snapshot list`.
#[derive(clap::Args)]
struct ListArgs {
    #[command(flatten)]
    guest: GuestArgs,
    /// Print an array of objects
    #[arg(long)]
    json: bool,
}

/// Arguments of `vmward snapshot delete`.
#[derive(clap::Args)]
struct DeleteArgs {
    #[command(flatten)]
    guest: GuestArgs,
    /// The snapshot's name
    #[arg(value_name = "SNAPSHOT")]
    snapshot: String,
}

fn disk(text: &str) -> Result<SnapshotDisk, String> {
    let (target, file) = text.split_once('=').map_or((text, None), |(target, file)| (target, Some(file)));
    if target.is_empty() || file == Some("") {
        return Err("it takes TARGET or TARGET=FILE".into());
    }
    let absolute = |file: &str| {
        let path = std::path::absolute(Path::new(file)).map_err(|e| e.to_string())?;
        path.into_os_string().into_string().map_err(|_| "the working directory is not UTF-8 text".to_owned())
    };
    Ok(SnapshotDisk { target: target.to_owned(), overlay: file.map(absolute).transpose()? })
}

/// Runs `vmward snapshot`.
pub(crate) fn run(args: SnapshotArgs) -> Result<ExitCode, CliError> {
    match args.command {
        SnapshotCommand::Create(args) => create(&args),
        SnapshotCommand::List(args) => list(&args),
        SnapshotCommand::Delete(args) => delete(&args),
    }
}

fn create(args: &CreateArgs) -> Result<ExitCode, CliError> {
    let made = block_on(async {
        let mut guest = Guest::connect(&args.guest.name).await?;
        let connection = &mut guest.connection;
        let reply = connection.create_snapshot(&args.snapshot, &args.disks, args.secret.as_deref()).await;
        guest.result(reply, None)
    })?;
    for disk in &made.snapshot.disks {
        eprintln!("{} writes to {}", disk.target, disk.overlay.as_deref().unwrap_or_default());
    }
    let guest = &args.guest.name;
    eprintln!(
        "the guest's next start needs the XML that `vmward dumpxml {guest}` prints: one that names the images \
         below would destroy the snapshot"
    );
    Ok(ExitCode::SUCCESS)
}

fn list(args: &ListArgs) -> Result<ExitCode, CliError> {
    let list = block_on_briefly(async {
        let mut guest = Guest::connect(&args.guest.name).await?;
        let reply = guest.connection.list_snapshots().await;
        guest.result(reply, None)
    })?;
    if args.json {
        output::line(json!(list.snapshots))?;
    } else {
        output::text(list.snapshots.iter().map(for_people).collect::<String>())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A line for each of its disks.
fn for_people(snapshot: &Snapshot) -> String {
    let created = i64::try_from(snapshot.created).ok().and_then(|s| Timestamp::from_second(s).ok());
    let created = created.map(|t| t.to_string()).unwrap_or_default();
    let disk = |d: &SnapshotDisk| {
        format!("{}  {created}  {}  {}\n", snapshot.name, d.target, d.overlay.as_deref().unwrap_or_default())
    };
    snapshot.disks.iter().map(disk).collect()
}

fn delete(args: &DeleteArgs) -> Result<ExitCode, CliError> {
    let deleted = block_on(async {
        let mut guest = Guest::connect(&args.guest.name).await?;
        let reply = guest.connection.delete_snapshot(&args.snapshot).await;
        guest.result(reply, None)
    })?;
    for path in &deleted.kept {
        eprintln!("warning: {path} could not be removed, and nothing needs it any more");
    }
    eprintln!("the snapshot '{}' is deleted", args.snapshot);
    Ok(ExitCode::SUCCESS)
}
