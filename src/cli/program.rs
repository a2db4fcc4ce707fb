//! A guest's XML on its way to a command line: which QEMU runs it, and what that can do.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use crate::domain::general::DomainType;
use crate::domain::{Domain, disk};
use crate::qemu::{self, Capabilities, CommandLine, ProbeError, SecretSource};
use crate::secret::SecretRef;
use crate::supervisor::{self, User};
use crate::xml::{Diagnostics, Element};

use super::config::Config;
use super::input::{Allow, Input};
use super::keystore_failure::unresolved_failure;
use super::{CliError, Exit};

/// The QEMU of guests that name no `<emulator>`.
pub(crate) const DEFAULT_EMULATOR: &str = "/usr/bin/qemu-system-x86_64";
/// What gives a program KVM.
const KVM: &str = "/dev/kvm";

/// A guest that is ready to be started, or looked at.
pub(crate) struct Guest {
    /// Its XML.
    pub xml: Element,
    /// What the XML says, with all that was assigned.
    pub domain: Domain,
    /// What its QEMU can do.
    pub capabilities: Capabilities,
    /// What QEMU is told.
    pub line: CommandLine,
}

/// Which QEMU a guest is built for.
#[derive(Clone, Copy)]
pub(crate) enum Target<'a> {
    /// That of this host.
    Host(&'a Config),
    /// QEMU 9.1 with everything in it, on a host that is not looked at.
    Latest,
}

/// The program that runs a guest.
pub(crate) fn emulator(domain: &Domain) -> PathBuf {
    PathBuf::from(domain.devices.emulator.as_deref().unwrap_or(DEFAULT_EMULATOR))
}

/// Reads a guest and builds its command line. Everything that is wrong with the XML is said at once.
pub(crate) fn build(input: &Input, allow: Allow, target: Target<'_>) -> Result<Guest, CliError> {
    let mut unavailable = None;
    let guest = input.understand(allow, |root, diagnostics| {
        let mut domain = Domain::from_xml(root, diagnostics)?;
        let capabilities = capabilities(&domain, target).map_err(|e| unavailable = Some(e)).ok()?;
        if let Target::Host(_) = target {
            for path in disk::leave_out_missing(&mut domain.devices.disks, |path| Path::new(path).exists()) {
                tracing::warn!(
                    "{path} is not there, and the guest starts without it (startupPolicy='optional')"
                );
            }
        }
        let line = qemu::build(&mut domain, &capabilities, diagnostics)?;
        Some(Guest { xml: root.clone(), domain, capabilities, line })
    });
    match unavailable {
        Some(e) => Err(e),
        None => guest,
    }
}

/// All that a start fetches from the keystores: what the XML names, and what `vmward.toml` names for it.
pub(crate) fn secrets(domain: &Domain, line: &CommandLine) -> Vec<SecretRef> {
    let of_line = line.secrets().filter_map(|secret| match &secret.source {
        SecretSource::Keystore(reference) => Some(reference.clone()),
        SecretSource::Xml(_) | SecretSource::Once(_) => None,
    });
    domain.secrets().into_iter().chain(of_line).collect()
}

/// Fetches a guest's secrets as a start does, and drops them: it counts that they are there.
pub(crate) fn require_secrets(wanted: &[SecretRef], config: &Config, input: &Input) -> Result<(), CliError> {
    let resolved = config.open_keystores()?.resolve(wanted);
    resolved.map(drop).map_err(|unresolved| unresolved_failure(&unresolved, &input.name, &input.source))
}

/// Says what is wrong with a guest; a host without QEMU is no fault of its XML. The result is what a start would fetch.
pub(crate) fn check(
    root: &Element,
    target: Target<'_>,
    user: Option<&User>,
    diagnostics: &mut Diagnostics,
) -> Option<Vec<SecretRef>> {
    let mut domain = Domain::from_xml(root, diagnostics)?;
    let capabilities = capabilities(&domain, target).unwrap_or_else(|_| Capabilities::latest());
    let line = qemu::build(&mut domain, &capabilities, diagnostics)?;
    line.say_unprovided(diagnostics);
    if let Target::Host(_) = target {
        supervisor::check_devices(&line.descriptors, diagnostics);
        supervisor::check_helpers(&line.helpers, root, user, diagnostics);
        supervisor::warn_of_slow_images(&domain.devices.disks, diagnostics);
    }
    supervisor::warn_of_large_images(&domain.devices.disks, diagnostics);
    Some(secrets(&domain, &line))
}

/// What the program that runs a guest can do.
fn capabilities(domain: &Domain, target: Target<'_>) -> Result<Capabilities, CliError> {
    let config = match target {
        Target::Host(config) => config,
        Target::Latest => return Ok(Capabilities::latest()),
    };
    let found = Capabilities::of_program(&emulator(domain), &config.paths.cache_dir);
    let mut capabilities = found.map_err(|e| {
        let hint = match e {
            ProbeError::Missing(_) => "install QEMU (Debian: qemu-system-x86), or name it in <emulator>",
            _ => "`vmward check` and `vmward argv --assume-latest` work without it",
        };
        CliError::new(Exit::Unavailable, "there is no QEMU to run the guest").caused_by(e).hint(hint)
    })?;
    capabilities.host.runtime_dir.clone_from(&config.paths.runtime_dir);
    capabilities.host.tls.clone_from(&config.tls);
    Ok(capabilities)
}

/// Fails where a guest asks for KVM and this user cannot have it.
pub(crate) fn require_kvm(domain: &Domain) -> Result<(), CliError> {
    if domain.general.kind != Some(DomainType::Kvm) {
        return Ok(());
    }
    let opened = OpenOptions::new().read(true).write(true).open(KVM);
    opened.map(drop).map_err(|e| {
        let hint = match e.kind() {
            std::io::ErrorKind::PermissionDenied => "become a member of the group kvm",
            _ => "switch virtualization on in the firmware, or run without it, slowly: <domain type='qemu'>",
        };
        CliError::new(Exit::Unavailable, format!("the guest asks for KVM, and {KVM} cannot be opened"))
            .caused_by(e)
            .hint(hint)
    })
}
