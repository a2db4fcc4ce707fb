//! What is in QEMU's sets of descriptors.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The paths of what QEMU has in sets of descriptors. QEMU itself knows it as `/dev/fdset/N`, and says so; people are told the
/// path. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct FdSetPaths(Arc<Mutex<BTreeMap<u32, String>>>);

impl FdSetPaths {
    /// Notes what is in a set.
    pub fn note(&self, set: u32, path: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(set, path.to_owned());
    }

    /// QEMU's words with paths in the place of sets, where they are known.
    pub fn put_into<'a>(&self, said: &'a str) -> Cow<'a, str> {
        const PREFIX: &str = "/dev/fdset/";
        if !said.contains(PREFIX) {
            return said.into();
        }
        let paths = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut parts = said.split(PREFIX);
        let mut text = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            let (number, rest) = part.split_at(end);
            match number.parse().ok().and_then(|set: u32| paths.get(&set)) {
                Some(path) => text.push_str(path),
                None => text.extend([PREFIX, number]),
            }
            text.push_str(rest);
        }
        text.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_told_by_their_paths() {
        let paths = FdSetPaths::default();
        assert_eq!(paths.put_into("Could not open '/dev/fdset/1'"), "Could not open '/dev/fdset/1'");
        paths.note(1, "/images/a");
        paths.note(12, "/images/b");
        assert_eq!(
            paths.put_into(r#"{"filename":"/dev/fdset/12"}: '/dev/fdset/1', /dev/fdset/2, /dev/fdset/"#),
            r#"{"filename":"/images/b"}: '/images/a', /dev/fdset/2, /dev/fdset/"#
        );
        paths.note(1, "/images/c");
        assert_eq!(paths.put_into("/dev/fdset/1"), "/images/c");
    }
}
