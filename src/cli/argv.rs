//! `vmward argv`.

use std::convert::Infallible;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::output;
use crate::qemu::{self, LaunchOptions, MASTER_KEY_FILE, MONITOR_FD};
use crate::secret::SealedSecret;

use super::config::Config;
use super::input::{Allow, Input};
use super::program::{self, Guest, Target};
use super::{CliError, Global};

/// Arguments of `vmward argv`.
#[derive(clap::Args)]
pub(crate) struct ArgvArgs {
    /// The guest's domain XML; - reads it from the standard input
    #[arg(value_name = "GUEST.xml")]
    guest: PathBuf,
    /// Print a JSON array of strings
    #[arg(long)]
    json: bool,
    /// Take QEMU 9.1 for granted, without looking at this host
    #[arg(long)]
    assume_latest: bool,
    /// Do not look whether the guest's secrets are in the keystores
    #[arg(long)]
    placeholder_secrets: bool,
    /// What vmward does not honour is a warning
    #[arg(long)]
    allow_unsupported: bool,
}

/// Prints QEMU's command line, its secrets redacted.
pub(crate) fn run(global: &Global, args: &ArgvArgs) -> Result<ExitCode, CliError> {
    let input = Input::read(&args.guest)?;
    let config = Config::load(global)?;
    let target = if args.assume_latest { Target::Latest } else { Target::Host(&config) };
    let allow = Allow::Shown { unsupported: args.allow_unsupported };
    let Guest { domain, capabilities, line, .. } = program::build(&input, allow, target)?;
    if !args.placeholder_secrets {
        program::require_secrets(&program::secrets(&domain, &line), &config, &input)?;
    }
    let options = LaunchOptions {
        master_key: capabilities.host.lib_dir(domain.name()).join(MASTER_KEY_FILE),
        monitor_fd: MONITOR_FD,
        hold: false,
    };
    let emulator = program::emulator(&domain).display().to_string();
    let line = qemu::launch_arguments(&options, &domain, &capabilities, line);
    let redacted = || SealedSecret { data: "[redacted]".to_owned(), iv: "[redacted]".to_owned() };
    let Ok(arguments) = line.render(|_| Ok::<_, Infallible>(redacted()));
    if args.json {
        let all: Vec<_> = std::iter::once(emulator).chain(arguments).collect();
        output::line(serde_json::json!(all))?;
    } else {
        output::text(for_people(&emulator, &arguments))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One option per line, quoted for a shell.
fn for_people(emulator: &str, arguments: &[String]) -> String {
    let mut text = quoted(emulator);
    for argument in arguments {
        // An option starts a line, its value follows.
        text.push_str(if argument.starts_with('-') { " \\\n  " } else { " " });
        text.push_str(&quoted(argument));
    }
    text.push('\n');
    text
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=,.:/+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_get_one_option_per_line() {
        let arguments = ["-S", "-name", "guest=a b", "-device", r#"{"x":"it's"}"#].map(str::to_owned);
        insta::assert_snapshot!(for_people("/usr/bin/qemu", &arguments), @r#"
        /usr/bin/qemu \
          -S \
          -name 'guest=a b' \
          -device '{"x":"it'\''s"}'
        "#);
    }
}
