//! The configured keystores: whether each answers, how fast, and what will soon be wrong with it.

use std::collections::BTreeSet;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::cli::keystore_failure::keystore_failure;
use crate::keystore::{Keystore, KeystoreError, Keystores, Listing};
use crate::secret::SecretLookup;

use super::Finding;

const ABOUT: &str = "keystore";
/// What a store may take beyond its own deadline, so that it is the store that says what was wrong.
const MARGIN: Duration = Duration::from_secs(1);

/// What is said of all of them, store by store. All are asked at the same time, and none waits for one that hangs.
pub(super) fn findings(keystores: Keystores, timeout: Duration) -> Vec<Finding> {
    let keystores = Arc::new(keystores);
    let count = keystores.stores.len();
    let (sender, receiver) = mpsc::channel();
    for n in 0..count {
        let (keystores, sender) = (Arc::clone(&keystores), sender.clone());
        // Not waited for: it ends with this process, whatever it waits for.
        thread::spawn(move || {
            look(&keystores, keystores.stores[n].as_ref(), &|finding| {
                let _ = sender.send((n, Some(finding)));
            });
            let _ = sender.send((n, None));
        });
    }
    drop(sender);
    let deadline = Instant::now() + timeout + MARGIN;
    let mut found: Vec<Vec<Finding>> = (0..count).map(|_| Vec::new()).collect();
    let mut waiting: BTreeSet<usize> = (0..count).collect();
    while !waiting.is_empty() {
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok((n, Some(finding))) => found[n].push(finding),
            Ok((n, None)) => {
                waiting.remove(&n);
            }
            Err(_) => break,
        }
    }
    for n in waiting {
        let uri = keystores.stores[n].uri();
        let seconds = timeout.as_secs_f32();
        let late = match found[n].is_empty() {
            true => Finding::error(ABOUT, format!("{uri} did not answer within {seconds} s"))
                .hint("a start of a guest would wait for it just as long"),
            false => Finding::warning(ABOUT, format!("{uri} could not say all of this within {seconds} s")),
        };
        found[n].push(late);
    }
    found.into_iter().flatten().collect()
}

/// Asks one store, and says each thing as soon as it is known.
fn look(keystores: &Keystores, store: &dyn Keystore, say: &dyn Fn(Finding)) {
    let uri = store.uri();
    let started = Instant::now();
    // A lookup, as a start does one, whatever it finds.
    if let Err(e) = store.find(&SecretLookup::Uuid(Uuid::new_v4()), None) {
        return say(failed(uri, e));
    }
    let took = started.elapsed();
    say(Finding::ok(ABOUT, format!("{uri} answers a lookup in {:.1} ms", took.as_secs_f64() * 1000.0)));
    match store.list() {
        Ok(listing) => contents(keystores, store, listing, say),
        Err(KeystoreError::Unsupported { .. }) => {}
        Err(e) => say(failed(uri, e)),
    }
    match store.health() {
        Ok(health) => {
            for h in health {
                let message = format!("{uri}: {}", h.message);
                say(if h.warning {
                    Finding::warning(h.about, message)
                } else {
                    Finding::ok(h.about, message)
                });
            }
        }
        Err(e) => say(failed(uri, e)),
    }
}

/// What is in a store, and whether the key to its values is there: one of them is read, and dropped.
fn contents(keystores: &Keystores, store: &dyn Keystore, listing: Listing, say: &dyn Fn(Finding)) {
    let (uri, count) = (store.uri(), listing.definitions.len());
    let plural = if count == 1 { "" } else { "s" };
    say(Finding::ok(ABOUT, format!("{uri} has {count} secret{plural}")));
    if !listing.broken.is_empty() {
        let said: Vec<_> = listing.broken.iter().map(ToString::to_string).collect();
        say(Finding::error(ABOUT, format!("{uri}: {}", said.join("; "))));
    }
    // Of a store that others add to, one need not be able to read anything.
    let here = listing.definitions.iter().filter(|d| d.value_uri.is_none() && !store.is_shared());
    for definition in here {
        match store.has_value(definition).and_then(|has| if has { store.value(definition) } else { Ok(None) })
        {
            Ok(None) => {}
            Ok(Some(_)) => break,
            Err(e) => {
                say(failed(uri, e));
                break;
            }
        }
    }
    // Of values that are elsewhere, one of each place.
    let mut places = BTreeSet::new();
    for definition in listing.definitions {
        let Some(place) = definition.value_uri.as_deref().map(place) else { continue };
        if !places.insert(place.to_owned()) {
            continue;
        }
        let (uuid, place) = (definition.uuid, place.to_owned());
        match keystores.secret(store, definition).has_value() {
            Ok(true) => say(Finding::ok(ABOUT, format!("{uri}: {place} has the value of {uuid}"))),
            Ok(false) => say(Finding::warning(ABOUT, format!("{uri}: {place} has no value of {uuid}"))),
            Err(e) => say(failed(uri, e)),
        }
    }
}

/// A URI as far as it names a server, a token or a program.
fn place(uri: &str) -> &str {
    let authority = uri.find("://").map_or(0, |at| at + 3);
    let end = uri[authority..].find(['/', ';', '?', '#']).map_or(uri.len(), |at| authority + at);
    &uri[..end]
}

fn failed(uri: &str, error: KeystoreError) -> Finding {
    let failure = keystore_failure(error);
    let cause = failure.source.map_or(String::new(), |e| format!(" ({e})"));
    // The failures of servers name the store themselves.
    let named = if failure.message.contains(uri) { String::new() } else { format!("{uri}: ") };
    Finding { hint: failure.hint, ..Finding::error(ABOUT, format!("{named}{}{cause}", failure.message)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_one_server_have_one_place() {
        assert_eq!(place("vault+https://host:8200/mount/path#field"), "vault+https://host:8200");
        assert_eq!(place("kmip://host:5696?cert=/x"), "kmip://host:5696");
        assert_eq!(place("exec:/usr/bin/pass"), "exec:");
        assert_eq!(place("pkcs11:token=disks;object=a"), "pkcs11:token=disks");
        assert_eq!(place(""), "");
    }
}
