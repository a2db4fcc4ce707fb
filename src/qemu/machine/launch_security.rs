//! The object that protects a guest's memory from the host.

use serde_json::json;

use crate::domain::Domain;
use crate::domain::launch_security::{LaunchSecurity, Protection};
use crate::qemu::plan::object;
use crate::qemu::properties::Properties;
use crate::qemu::{Capabilities, CommandLine, JsonObject, Preparation};
use crate::xml::Diagnostics;

/// The object's id, as libvirt has it.
pub(super) const ID: &str = "lsec0";

/// Adds the object.
pub(super) fn arguments(
    domain: &Domain,
    capabilities: &Capabilities,
    line: &mut CommandLine,
    diagnostics: &mut Diagnostics,
) {
    let Some(security) = &domain.launch_security else { return };
    let kind = match security.protection {
        Protection::Sev => "sev-guest",
        Protection::SevSnp => "sev-snp-guest",
    };
    if !capabilities.has_object(kind) {
        diagnostics
            .error(security.span, format!("this QEMU has no '{}'", security.protection.as_str()))
            .hint("sev-snp needs QEMU 9.1 or later");
    }
    let host = capabilities.host.memory_encryption();
    let (c_bit, reduced) =
        (security.c_bit.or(host.map(|h| h.0)), security.reduced_bits.or(host.map(|h| h.1)));
    if c_bit.is_none() || reduced.is_none() {
        diagnostics
            .error(security.span, "the host's processor cannot encrypt memory")
            .hint("for another host: <cbitpos> and <reducedPhysBits>");
    }
    let mut told = object(json!({"qom-type": kind, "id": ID}));
    told.put_some("cbitpos", c_bit);
    told.put_some("reduced-phys-bits", reduced);
    match security.protection {
        Protection::Sev => sev(domain, security, capabilities, &mut told, line),
        Protection::SevSnp => snp(security, &mut told),
    }
    line.json("-object", told);
}

fn sev(
    domain: &Domain,
    security: &LaunchSecurity,
    capabilities: &Capabilities,
    told: &mut JsonObject,
    line: &mut CommandLine,
) {
    told.put("policy", security.policy);
    let files = [
        ("dh-cert-file", "dh_cert.base64", &security.certificate),
        ("session-file", "session.base64", &security.session),
    ];
    for (property, name, contents) in files {
        let Some(contents) = contents else { continue };
        let path = capabilities.host.lib_dir(domain.name()).join(name);
        told.put(property, json!(path));
        line.preparations.push(Preparation::Write { path, contents: contents.clone() });
    }
    told.put_some("kernel-hashes", security.kernel_hashes);
}

fn snp(security: &LaunchSecurity, told: &mut JsonObject) {
    told.put_some("kernel-hashes", security.kernel_hashes);
    told.put("policy", security.policy);
    for (property, value) in &security.blobs {
        told.put(property, value.as_str());
    }
    told.put_some("author-key-enabled", security.author_key);
    told.put_some("vcek-disabled", security.vcek.map(|allowed| !allowed));
}
