//! What is left of values that come from programs, from systemd and from libvirt's files: nothing.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod memory;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use memory::{count, memory};
use uuid::Uuid;
use vmward::keystore::file::IdentitySources;
use vmward::keystore::{Keystores, StoreOptions};
use vmward::secret::{SecretLookup, SecretRef, UsageKind};
use vmward::xml::Span;

/// Puts three values where this process does not see them being made: printed by a program, as a credential, as libvirt's
/// plain and its encrypted ones.
const MAKE: &str = r#"
    random() { head -c 24 /dev/urandom | base64 -w 0; }
    mkdir credentials libvirt
    random >printed
    printf '#!/bin/sh\n[ "$2" = 00000000-0000-0000-0000-000000000001 ] || exit 66\ncat "$(dirname "$0")/printed"\n' >program
    random >credentials/00000000-0000-0000-0000-000000000002
    random >plain
    echo '<secret><uuid>00000000-0000-0000-0000-000000000003</uuid></secret>' >libvirt/00000000-0000-0000-0000-000000000003.xml
    base64 -w 0 <plain >libvirt/00000000-0000-0000-0000-000000000003.base64
    head -c 32 /dev/urandom >key
    head -c 16 /dev/urandom >iv
    random >sealed
    hex() { od -An -v -tx1 "$1" | tr -d ' \n'; }
    openssl enc -aes-256-cbc -K "$(hex key)" -iv "$(hex iv)" -in sealed -out blocks
    echo '<secret><uuid>00000000-0000-0000-0000-000000000004</uuid></secret>' >libvirt/00000000-0000-0000-0000-000000000004.xml
    cat iv blocks | base64 -w 0 >libvirt/00000000-0000-0000-0000-000000000004.aes256cbc
    chmod 700 program
"#;

#[test]
fn values_of_other_places_are_in_memory_once_while_they_are_needed_and_not_at_all_afterwards() {
    if Command::new("openssl").arg("version").output().is_err() {
        println!("skipped: there is no openssl");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let dir = home.path();
    fs::set_permissions(dir, Permissions::from_mode(0o700)).unwrap();
    let made =
        Command::new("sh").args(["-euc", &format!("umask 077; {MAKE}")]).current_dir(dir).status().unwrap();
    assert!(made.success());
    let identity =
        IdentitySources { credentials: Some(dir.join("credentials")), key_file: dir.join("keystore.key") };
    let path = dir.display();
    let uris = [
        "credentials:".to_owned(),
        format!("libvirt:{path}/libvirt?key={path}/key"),
        format!("exec:{path}/program"),
    ];
    let secrets: Vec<_> = (1..=4)
        .map(|n| SecretRef {
            lookup: SecretLookup::Uuid(Uuid::from_u128(n)),
            kind: UsageKind::Volume,
            text: true,
            span: Span::default(),
        })
        .collect();
    let stores = Keystores::open(&uris, &StoreOptions::new(identity)).unwrap();
    drop(stores.resolve(&secrets).unwrap());
    // First, because the other image holds the values themselves.
    let mut after = memory();
    after.shrink_to_fit();
    let resolved = stores.resolve(&secrets).unwrap();
    let during = memory();
    drop(resolved);
    // Only now does this process learn what to look for.
    let files = ["printed", "credentials/00000000-0000-0000-0000-000000000002", "plain", "sealed"];
    for file in files {
        let value = fs::read(dir.join(file)).unwrap();
        assert_eq!(value.len(), 32);
        assert_eq!(count(&during, &value), 1, "{file} while it is needed");
        assert_eq!(count(&after, &value[..16]), 0, "{file} after it was dropped");
    }
    let base64 = fs::read(dir.join("libvirt/00000000-0000-0000-0000-000000000003.base64")).unwrap();
    assert_eq!(count(&after, &base64[..16]), 0, "the text of libvirt's file");
    let key = fs::read(dir.join("key")).unwrap();
    assert_eq!(count(&after, &key[..16]), 0, "the key of libvirt's values");
}
