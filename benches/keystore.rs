//! How long a start waits for its secrets: `cargo bench --bench keystore`.

use std::fs::{self, Permissions};
use std::hint::black_box;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use nix::unistd::{getegid, geteuid};
use tempfile::TempDir;
use uuid::Uuid;
use vmward::keystore::file::IdentitySources;
use vmward::keystore::{Keystores, StoreOptions};
use vmward::secret::{SecretDefinition, SecretLookup, SecretRef, Usage, UsageKind};
use vmward::xml::Span;

/// How many secrets the guest of the measurement needs.
const NEEDED: u128 = 100;

fn main() {
    for total in [100, 10_000] {
        let home = TempDir::new().expect("a directory");
        let stores = filled(&home, total);
        println!("{NEEDED} secrets out of {total}:");
        println!("  index made anew       {:?}", measure(1, || resolve(&stores, 1, by_usage)));
        lookups(&stores);
    }
    if !geteuid().is_root() {
        println!("a shared keystore: not measured, its recipients.txt has to be root's");
        return;
    }
    for total in [100, 10_000] {
        // In memory, because each secret of it is synced to disk while the store is filled.
        let home = TempDir::new_in("/dev/shm").expect("a directory");
        let stores = filled_shared(&home, total);
        println!("{NEEDED} secrets out of {total} of a shared keystore:");
        lookups(&stores);
    }
}

fn by_uuid(n: u128) -> SecretLookup {
    SecretLookup::Uuid(Uuid::from_u128(n))
}

fn by_usage(n: u128) -> SecretLookup {
    SecretLookup::Usage(format!("/images/{n}.qcow2"))
}

fn lookups(stores: &Keystores) {
    println!("  by UUID               {:?}", measure(20, || resolve(stores, NEEDED, by_uuid)));
    println!("  by usage              {:?}", measure(20, || resolve(stores, NEEDED, by_usage)));
    println!("  one secret by usage   {:?}", measure(20, || resolve(stores, 1, by_usage)));
}

fn definition(n: u128) -> SecretDefinition {
    SecretDefinition {
        uuid: Uuid::from_u128(n),
        ephemeral: false,
        private: false,
        value_uri: None,
        recipients: Vec::new(),
        description: None,
        usage: Some(Usage { kind: UsageKind::Volume, id: format!("/images/{n}.qcow2") }),
    }
}

/// A store in which only the secrets that are needed have values.
fn filled(home: &TempDir, total: u128) -> Keystores {
    let dir = home.path().join("secrets");
    let stores = open(home, &format!("file:{}", dir.display()));
    for n in 0..total {
        let definition = definition(n);
        if n < NEEDED {
            stores.generate(&definition).expect("a secret");
        } else {
            // As a restored backup would be: define() syncs each one to disk.
            let path = dir.join(format!("{}.xml", definition.uuid));
            fs::write(path, definition.to_xml().to_string()).expect("a file");
        }
    }
    stores
}

/// The same with a store of several users.
fn filled_shared(home: &TempDir, total: u128) -> Keystores {
    // A store of one's own makes the key.
    let own = home.path().join("own");
    open(home, &format!("file:{}", own.display())).generate(&definition(0)).expect("a secret");
    let dir = home.path().join("secrets");
    fs::create_dir(&dir).expect("a directory");
    fs::set_permissions(&dir, Permissions::from_mode(0o3775)).expect("its mode");
    fs::copy(own.join("recipients.txt"), dir.join("recipients.txt")).expect("a file");
    let stores = open(home, &format!("file:{}?group={}", dir.display(), getegid()));
    for n in 0..total {
        if n < NEEDED {
            stores.generate(&definition(n)).expect("a secret");
        } else {
            stores.define(&definition(n)).expect("a secret");
        }
    }
    stores
}

fn open(home: &TempDir, uri: &str) -> Keystores {
    let identity = IdentitySources { credentials: None, key_file: home.path().join("key") };
    Keystores::open(&[uri], &StoreOptions::new(identity)).expect("a store")
}

fn resolve(stores: &Keystores, count: u128, lookup: impl Fn(u128) -> SecretLookup) {
    let one = |n| SecretRef { lookup: lookup(n), kind: UsageKind::Volume, text: true, span: Span::default() };
    let secrets: Vec<_> = (0..count).map(one).collect();
    black_box(stores.resolve(&secrets).expect("all of them"));
}

/// The median of some runs.
fn measure(runs: usize, mut work: impl FnMut()) -> Duration {
    let mut times: Vec<_> = (0..runs)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[runs / 2]
}
