//! How long a start waits for its secrets: `cargo bench --bench keystore`.

use std::fs;
use std::hint::black_box;
use std::time::{Duration, Instant};

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
        let by_uuid = |n| SecretLookup::Uuid(Uuid::from_u128(n));
        let by_usage = |n| SecretLookup::Usage(format!("/images/{n}.qcow2"));
        println!("{NEEDED} secrets out of {total}:");
        println!("  index made anew       {:?}", measure(1, || resolve(&stores, 1, by_usage)));
        println!("  by UUID               {:?}", measure(20, || resolve(&stores, NEEDED, by_uuid)));
        println!("  by usage              {:?}", measure(20, || resolve(&stores, NEEDED, by_usage)));
        println!("  one secret by usage   {:?}", measure(20, || resolve(&stores, 1, by_usage)));
    }
}

/// A store in which only the secrets that are needed have values.
fn filled(home: &TempDir, total: u128) -> Keystores {
    let dir = home.path().join("secrets");
    let identity = IdentitySources { credentials: None, key_file: home.path().join("key") };
    let stores =
        Keystores::open(&[format!("file:{}", dir.display())], &StoreOptions::new(identity)).expect("a store");
    for n in 0..total {
        let definition = SecretDefinition {
            uuid: Uuid::from_u128(n),
            ephemeral: false,
            private: false,
            value_uri: None,
            recipients: Vec::new(),
            description: None,
            usage: Some(Usage { kind: UsageKind::Volume, id: format!("/images/{n}.qcow2") }),
        };
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
