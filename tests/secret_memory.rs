//! What is left of a value in the memory of a process that has used it: nothing.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod memory;
mod user;

use std::fs;

use memory::{count, memory};
use user::User;
use uuid::Uuid;
use vmward::keystore::file::IdentitySources;
use vmward::keystore::{Keystores, ResolvedSecrets, StoreOptions};
use vmward::secret::{SecretDefinition, SecretLookup, SecretRef, UsageKind};
use vmward::xml::Span;

fn stores(user: &User) -> Keystores {
    let identity = IdentitySources { credentials: None, key_file: user.key() };
    Keystores::open(&[format!("file:{}", user.store().display())], &StoreOptions::new(identity)).unwrap()
}

fn resolve(user: &User, uuid: &str) -> ResolvedSecrets {
    let lookup = SecretLookup::Uuid(Uuid::try_parse(uuid).unwrap());
    stores(user)
        .resolve(&[SecretRef { lookup, kind: UsageKind::Volume, text: true, span: Span::default() }])
        .unwrap()
}

#[test]
fn a_value_is_in_memory_once_while_it_is_needed_and_not_at_all_afterwards() {
    let user = User::new();
    let made = SecretDefinition {
        uuid: Uuid::new_v4(),
        ephemeral: false,
        private: false,
        value_uri: None,
        description: None,
        usage: None,
    };
    stores(&user).generate(&made).unwrap();
    let mut generated = memory();
    generated.shrink_to_fit();
    let uuid = user.uuid(&["secret", "generate"], b"");
    drop(resolve(&user, &uuid));
    // First, because the other image holds the value itself.
    let mut after = memory();
    after.shrink_to_fit();
    let resolved = resolve(&user, &uuid);
    let during = memory();
    drop(resolved);
    // Only now does this process learn what to look for.
    let value = user.ok(&["secret", "get-value", &uuid], b"");
    let made = user.ok(&["secret", "get-value", &made.uuid.to_string()], b"");
    assert_eq!(count(&generated, &made[..16]), 0, "after it was encrypted");
    let identity = fs::read_to_string(user.key()).unwrap();
    let identity = identity.lines().last().unwrap().as_bytes();
    assert_eq!(value.len(), 44);
    assert_eq!(count(&during, &value), 1, "while it is needed");
    assert_eq!(count(&after, &value[..16]), 0, "after it was dropped");
    assert_eq!(count(&generated, &identity[..32]), 0, "the new identity");
    assert_eq!(count(&after, &identity[..32]), 0, "the keystore's identity");
}
