// What is fuzzed: each decoder that reads what others wrote, as a function that must not panic, whatever it is given.
// Included by the cargo-fuzz targets and by tests/decoders.rs, which tries a kept corpus and mutations of it.
//
// A new one is a function here, a row in DECODERS, a directory in fixtures/fuzz with one or more good inputs, and a file in
// fuzz_targets with its [[bin]].

use vmward::domain::Domain;
use vmward::keystore::file::IdentitySources;
use vmward::keystore::{Keystores, StoreOptions};
use vmward::luks::{DIGEST_FIELDS, Luks1Header, LuksHeader};
use vmward::qemu::{self, Capabilities};
use vmward::secret::SecretDefinition;
use vmward::volume::{SlotId, VolumeXml};
use vmward::xml::{self, Diagnostics, Element};

/// A decoder.
type Decoder = fn(&[u8]);

/// Their names, which are those of their directories.
#[allow(dead_code, reason = "each fuzz target uses one of them")]
pub const DECODERS: &[(&str, Decoder)] = &[
    #[cfg(feature = "kmip")]
    ("ttlv", ttlv),
    #[cfg(feature = "vault")]
    ("vault-reply", vault_reply),
    ("identities", identities),
    ("secret-xml", secret_xml),
    ("volume-xml", volume_xml),
    ("domain-xml", domain_xml),
    ("luks-header", luks_header),
    ("keystore-uri", keystore_uri),
    ("qmp", qmp),
    ("state", state),
];

/// Replies of KMIP servers.
#[cfg(feature = "kmip")]
pub fn ttlv(data: &[u8]) {
    vmward::keystore::kmip::read_reply(data);
}

/// Replies of Vault servers.
#[cfg(feature = "vault")]
pub fn vault_reply(data: &[u8]) {
    vmward::keystore::vault::read_reply(data);
}

/// Files with the keys of file keystores.
pub fn identities(data: &[u8]) {
    let _ = vmward::keystore::file::parse_identities(data);
}

/// Secret XML: what is read and can be written is the same when it is read again.
pub fn secret_xml(data: &[u8]) {
    let Ok(source) = std::str::from_utf8(data) else { return };
    let mut diagnostics = Diagnostics::new();
    let found = SecretDefinition::parse(source, &mut diagnostics);
    diagnostics.render("secret.xml", source);
    if let Some(found) = found.filter(|found| found.check_text().is_ok()) {
        let again = SecretDefinition::parse(&found.to_xml().to_string(), &mut Diagnostics::new());
        assert_eq!(again.as_ref(), Some(&found));
    }
}

/// Volume XML.
pub fn volume_xml(data: &[u8]) {
    with_xml(data, |root, diagnostics| _ = VolumeXml::from_xml(root, diagnostics));
}

/// Domain XML, up to the command line that it makes.
pub fn domain_xml(data: &[u8]) {
    with_xml(data, |root, diagnostics| {
        if let Some(mut domain) = Domain::from_xml(root, diagnostics) {
            qemu::build(&mut domain, &Capabilities::latest(), diagnostics);
        }
    });
}

fn with_xml(data: &[u8], read: impl FnOnce(&Element, &mut Diagnostics)) {
    let Ok(source) = std::str::from_utf8(data) else { return };
    let mut diagnostics = Diagnostics::new();
    if let Some(root) = xml::parse(source, &mut diagnostics) {
        read(&root, &mut diagnostics);
    }
    diagnostics.render("some.xml", source);
}

/// Headers of LUKS images.
pub fn luks_header(data: &[u8]) {
    if let Ok(LuksHeader::V1(header)) = LuksHeader::parse(data) {
        for (_, slot) in header.active_slots() {
            header.material(slot);
        }
        let encoded = header.encode();
        for n in 0..header.slots.len() {
            let _ = encoded[Luks1Header::slot_entry(n)].len();
            if let Some(slot) = SlotId::of(&header, n) {
                assert_eq!(slot.to_string().parse(), Ok(slot));
            }
        }
        let _ = (header.suite(), header.opening_cost(), &encoded[DIGEST_FIELDS]);
    }
}

/// URIs of keystores; nothing is connected to.
pub fn keystore_uri(data: &[u8]) {
    let Ok(uri) = std::str::from_utf8(data) else { return };
    let identity =
        IdentitySources { credentials: Some("/run/credentials".into()), key_file: "/nonexistent".into() };
    let _ = Keystores::open(&[uri], &StoreOptions::new(identity));
}

/// What comes over QEMU's monitor.
pub fn qmp(data: &[u8]) {
    let _ = vmward::qmp::read_frames(data);
}

/// What an earlier supervisor left for the next one.
pub fn state(data: &[u8]) {
    let _ = vmward::supervisor::read_state(data, &Capabilities::latest());
}
