//! `vmward list`, `vmward status`, `vmward dumpxml`: what runs, and how.

use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use zlink::futures_util::stream::{self, StreamExt};

use crate::cli::output;
use crate::supervisor::control::DomainProxy;
use crate::supervisor::control::api::Status;
use crate::supervisor::live_xml;
use crate::volume;
use crate::xml::{self, Diagnostics, Element};

use super::config::Paths;
use super::control::{Guest, GuestArgs, block_on, block_on_briefly};
use super::{CliError, Exit};

/// How long `list` waits for each guest: one that is busy must not hold up the others.
const LIST_DEADLINE: Duration = Duration::from_secs(5);

/// How many guests are asked at the same time.
const AT_ONCE: usize = 64;

/// Arguments of `vmward list`.
#[derive(clap::Args)]
pub(crate) struct ListArgs {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// Arguments of `vmward status`.
#[derive(clap::Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    guest: GuestArgs,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// What `list` found in a lib dir.
enum Found {
    Running(Box<Status>),
    /// The supervisor is gone, or does not answer.
    Silent(&'static str),
}

/// Runs `vmward list`.
pub(crate) fn list(args: &ListArgs) -> Result<ExitCode, CliError> {
    let names = names()?;
    let found: Vec<(String, Found)> = block_on(async {
        let looks = names.into_iter().map(|name| async move {
            let state = look(&name).await;
            (name, state)
        });
        Ok(stream::iter(looks).buffered(AT_ONCE).collect().await)
    })?;
    if args.json {
        let list: Vec<Value> = found
            .iter()
            .map(|(name, found)| match found {
                Found::Running(status) => json!(status),
                Found::Silent(state) => json!({ "name": name, "state": state }),
            })
            .collect();
        output::line(Value::Array(list))?;
        return Ok(ExitCode::SUCCESS);
    }
    let width = found.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0).max("NAME".len());
    output::line(format_args!("{:width$}  {:<16}  {:>8}", "NAME", "STATE", "QEMU"))?;
    for (name, found) in &found {
        match found {
            Found::Running(s) => output::line(format_args!("{name:width$}  {:<16}  {:>8}", s.state, s.qemu))?,
            Found::Silent(state) => output::line(format_args!("{name:width$}  {state:<16}  {:>8}", "-"))?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The names and the XML of the guests that run and answer.
pub(crate) fn running() -> Result<Vec<(String, String)>, CliError> {
    let names = names()?;
    block_on(async {
        let mut running = Vec::new();
        for name in names {
            let Ok(mut guest) = Guest::connect(&name).await else { continue };
            let reply = tokio::time::timeout(LIST_DEADLINE, guest.connection.dump_xml()).await;
            if let Ok(Ok(Ok(live))) = reply {
                running.push((name, live.xml));
            }
        }
        Ok(running)
    })
}

/// A disk of a running guest.
pub(crate) struct DiskInUse {
    /// The guest.
    pub guest: String,
    /// The disk's target.
    pub target: String,
    /// Whether vmward has unlocked it.
    pub unlocked_outside: bool,
}

/// The disks of running guests on an image, whose path is canonical, or `rbd:POOL/IMAGE`.
pub(crate) fn disks_on(image: &Path) -> Result<Vec<DiskInUse>, CliError> {
    let names = names()?;
    block_on(async {
        let mut found = Vec::new();
        for name in names {
            let Ok(mut guest) = Guest::connect(&name).await else { continue };
            let asked = async { (guest.connection.dump_xml().await, guest.connection.status().await) };
            let Ok((Ok(Ok(live)), Ok(Ok(status)))) = tokio::time::timeout(LIST_DEADLINE, asked).await else {
                continue;
            };
            let targets = targets_on(&live.xml, image);
            found.extend(status.disks.into_iter().filter(|d| targets.contains(&d.target)).map(|d| {
                DiskInUse { guest: name.clone(), target: d.target, unlocked_outside: d.unlocked_outside }
            }));
        }
        Ok(found)
    })
}

/// The targets of a guest's disks that are on an image.
fn targets_on(xml: &str, image: &Path) -> Vec<String> {
    let Some(mut root) = xml::parse(xml, &mut Diagnostics::new()) else { return Vec::new() };
    let Some(devices) = live_xml::devices(&mut root) else { return Vec::new() };
    let is_on = |source: &Element| match source.get("protocol") {
        Some("rbd") => source.get("name").is_some_and(|name| Path::new(&format!("rbd:{name}")) == image),
        _ => source
            .get("file")
            .or(source.get("dev"))
            .is_some_and(|path| volume::canonical(Path::new(path)) == image),
    };
    let disks = devices.children.iter().filter(|e| e.name == "disk" && e.child("source").is_some_and(is_on));
    disks.filter_map(live_xml::target).map(str::to_owned).collect()
}

/// The lib dirs there are, sorted.
fn names() -> Result<Vec<String>, CliError> {
    let runtime = Paths::from_environment()?.runtime_dir;
    let entries = match fs::read_dir(&runtime) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => {
            let exit = match e.kind() {
                io::ErrorKind::PermissionDenied => Exit::NoPermission,
                _ => Exit::Unavailable,
            };
            let message = format!("the running guests in {} cannot be listed", runtime.display());
            return Err(CliError::new(exit, message).caused_by(e));
        }
    };
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    Ok(names)
}

async fn look(name: &str) -> Found {
    let mut guest = match Guest::connect(name).await {
        Ok(guest) => guest,
        Err(e) if e.exit == Exit::NoPermission => return Found::Silent("another user's"),
        Err(_) => return Found::Silent("dead"),
    };
    match tokio::time::timeout(LIST_DEADLINE, guest.connection.status()).await {
        Ok(Ok(Ok(status))) => Found::Running(Box::new(status)),
        _ => Found::Silent("not answering"),
    }
}

/// Runs `vmward status`.
pub(crate) fn status(args: &StatusArgs) -> Result<ExitCode, CliError> {
    let status = block_on_briefly(async {
        let mut guest = Guest::connect(&args.guest.name).await?;
        let reply = guest.connection.status().await;
        guest.result(reply, None)
    })?;
    if args.json {
        output::line(json!(status))?;
    } else {
        output::text(for_people(&status))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn for_people(s: &Status) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut text = String::new();
    let mut line = |what: &str, value: &str| text.push_str(&format!("{what:<12}{value}\n"));
    line("Name", &s.name);
    line("UUID", &s.uuid);
    line("State", &s.state);
    line("Running for", &duration(now.saturating_sub(s.started)));
    line("QEMU", &format!("{} (process {})", s.version, s.qemu));
    line("Supervisor", &format!("process {}", s.supervisor));
    for disk in &s.disks {
        let encrypted = match (disk.encrypted, disk.unlocked_outside) {
            (true, true) => ", encrypted, unlocked by vmward",
            (true, false) => ", encrypted",
            (false, _) => "",
        };
        line("Disk", &format!("{} ({}){encrypted}", disk.target, disk.alias));
    }
    for helper in &s.helpers {
        let how = match (&helper.process, &helper.ended) {
            (Some(process), _) => format!("process {process}"),
            (None, ended) => ended.clone().unwrap_or_default(),
        };
        line("Helper", &format!("{} ({}), {how}", helper.program, helper.device));
    }
    text
}

fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// Runs `vmward dumpxml`.
pub(crate) fn dumpxml(args: &GuestArgs) -> Result<ExitCode, CliError> {
    let live = block_on_briefly(async {
        let mut guest = Guest::connect(&args.name).await?;
        let reply = guest.connection.dump_xml().await;
        guest.result(reply, None)
    })?;
    output::line(live.xml.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_show_their_two_largest_units() {
        let shown: Vec<_> = [5, 65, 3_700, 90_000].map(duration).into();
        assert_eq!(shown, ["5 s", "1 min 5 s", "1 h 1 min", "1 d 1 h"]);
    }
}
