//! `vmward argv`.

use std::convert::Infallible;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::domain::Domain;
use crate::qemu::{self, LaunchOptions, MASTER_KEY_FILE};
use crate::secret::SealedSecret;

use super::CliError;
use super::input::Input;
use super::program;

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
    /// Do not ask the keystores for the guest's secrets
    #[arg(long)]
    placeholder_secrets: bool,
    /// What vmward does not honour is a warning
    #[arg(long)]
    allow_unsupported: bool,
}

/// Prints QEMU's command line, its secrets redacted.
pub(crate) fn run(args: &ArgvArgs) -> Result<ExitCode, CliError> {
    let input = Input::read(&args.guest)?;
    let mut failed = None;
    let built = input.understand(args.allow_unsupported, |root, diagnostics| {
        let mut domain = Domain::from_xml(root, diagnostics)?;
        match program::capabilities(&domain, args.assume_latest) {
            Ok(capabilities) => {
                let line = qemu::build(&mut domain, &capabilities, diagnostics)?;
                Some((domain, capabilities, line))
            }
            Err(e) => {
                failed = Some(e);
                None
            }
        }
    });
    if let Some(e) = failed {
        return Err(e);
    }
    let (domain, capabilities, line) = built?;
    let options = LaunchOptions {
        master_key: PathBuf::from("/run/vmward").join(domain.name()).join(MASTER_KEY_FILE),
        monitor_fd: 3,
    };
    let emulator = program::emulator(&domain).display().to_string();
    let line = qemu::launch_arguments(&options, &domain, &capabilities, line);
    let redacted = || SealedSecret { data: "[redacted]".to_owned(), iv: "[redacted]".to_owned() };
    let Ok(arguments) = line.render(|_| Ok::<_, Infallible>(redacted()));
    if args.json {
        let all: Vec<_> = std::iter::once(emulator).chain(arguments).collect();
        println!("{}", serde_json::json!(all));
    } else {
        print!("{}", for_people(&emulator, &arguments));
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
