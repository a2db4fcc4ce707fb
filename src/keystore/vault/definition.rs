//! A definition as the custom metadata of an entry: names and texts, which `vault kv metadata get` shows to people.
//!
//! The engine takes 64 texts of 512 printable bytes: other characters are percent-encoded, and longer texts go on in
//! `NAME.2`, `NAME.3`, ...

use std::collections::BTreeMap;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use uuid::Uuid;

use crate::secret::{SecretDefinition, Usage, UsageKind};
use crate::xml::Keyword;

/// What an entry has noted by it.
pub(super) type Notes = BTreeMap<String, String>;

/// Marks the entries that are secrets of vmward; its value is the version of this form.
const MARK: &str = "vmward";
const VERSION: &str = "1";
const USAGE: &str = "usage";
const ID: &str = "usage-id";
const DESCRIPTION: &str = "description";
const PRIVATE: &str = "private";
const VALUE_URI: &str = "value-uri";

/// The engine's limits.
const MAX_TEXT: usize = 512;
const MAX_NOTES: usize = 64;

const UNPRINTABLE: &AsciiSet = &CONTROLS.add(b'%');

/// Whether an entry is a secret of vmward.
pub(super) fn is_marked(notes: &Notes) -> bool {
    notes.contains_key(MARK)
}

/// A definition as notes, beside those that are other people's; `None` if it is too long for the engine.
pub(super) fn to_notes(definition: &SecretDefinition, existing: &Notes) -> Option<Notes> {
    let is_ours = |name: &str| {
        let name = name.split('.').next().unwrap_or(name);
        [MARK, USAGE, ID, DESCRIPTION, PRIVATE, VALUE_URI].contains(&name)
    };
    let mut notes: Notes =
        existing.iter().filter(|(name, _)| !is_ours(name)).map(|(k, v)| (k.clone(), v.clone())).collect();
    put(&mut notes, MARK, VERSION);
    if definition.private {
        put(&mut notes, PRIVATE, "yes");
    }
    if let Some(usage) = &definition.usage {
        put(&mut notes, USAGE, usage.kind.as_str());
        put(&mut notes, ID, &usage.id);
    }
    for (name, text) in [(DESCRIPTION, &definition.description), (VALUE_URI, &definition.value_uri)] {
        if let Some(text) = text {
            put(&mut notes, name, text);
        }
    }
    (notes.len() <= MAX_NOTES).then_some(notes)
}

fn put(notes: &mut Notes, name: &str, text: &str) {
    let text = utf8_percent_encode(text, UNPRINTABLE).to_string();
    // It is ASCII now: any byte ends a character.
    for (n, part) in text.as_bytes().chunks(MAX_TEXT).enumerate() {
        let name = if n == 0 { name.to_owned() } else { format!("{name}.{}", n + 1) };
        notes.insert(name, String::from_utf8_lossy(part).into_owned());
    }
}

fn take(notes: &Notes, name: &str) -> Result<Option<String>, String> {
    let Some(first) = notes.get(name) else { return Ok(None) };
    let mut text = first.clone();
    for n in 2.. {
        let Some(part) = notes.get(&format!("{name}.{n}")) else { break };
        text.push_str(part);
    }
    let text = percent_decode_str(&text).decode_utf8().map_err(|_| format!("its {name} is not UTF-8"))?;
    Ok(Some(text.into_owned()))
}

/// The definition that notes hold, or what is wrong with them.
pub(super) fn from_notes(uuid: Uuid, notes: &Notes) -> Result<SecretDefinition, String> {
    match notes.get(MARK).map(String::as_str) {
        Some(VERSION) => {}
        _ => return Err("it was written by another version of vmward".to_owned()),
    }
    let usage = match (take(notes, USAGE)?, take(notes, ID)?) {
        (None, None) => None,
        (Some(kind), Some(id)) => {
            let kind = UsageKind::WORDS.iter().find(|(word, _)| *word == kind);
            let (_, kind) = kind.ok_or("its usage is none that vmward knows")?;
            Some(Usage { kind: *kind, id })
        }
        _ => return Err(format!("{USAGE} and {ID} go together")),
    };
    let private = match notes.get(PRIVATE).map(String::as_str) {
        None | Some("no") => false,
        Some("yes") => true,
        Some(_) => return Err(format!("{PRIVATE} is yes or no")),
    };
    let (description, value_uri) = (take(notes, DESCRIPTION)?, take(notes, VALUE_URI)?);
    let (ephemeral, recipients) = (false, Vec::new());
    let definition = SecretDefinition { uuid, ephemeral, private, description, usage, value_uri, recipients };
    definition.check_text().map_err(|e| e.to_string())?;
    Ok(definition)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn definition(id: &str, description: &str) -> SecretDefinition {
        SecretDefinition {
            uuid: Uuid::nil(),
            ephemeral: false,
            private: true,
            description: Some(description.to_owned()),
            usage: Some(Usage { kind: UsageKind::Iscsi, id: id.to_owned() }),
            value_uri: None,
            recipients: Vec::new(),
        }
    }

    #[test]
    fn people_can_read_it() {
        let notes =
            to_notes(&definition("iqn.2026-11.example:disk", "Größe: 50%\nzwei"), &Notes::new()).unwrap();
        let expected = [
            ("description", "Gr%C3%B6%C3%9Fe: 50%25%0Azwei"),
            ("private", "yes"),
            ("usage", "iscsi"),
            ("usage-id", "iqn.2026-11.example:disk"),
            ("vmward", "1"),
        ];
        assert!(notes.iter().map(|(k, v)| (k.as_str(), v.as_str())).eq(expected), "{notes:?}");
    }

    #[test]
    fn other_peoples_notes_stay_and_old_parts_go() {
        let mut existing = to_notes(&definition("a", &"x".repeat(2000)), &Notes::new()).unwrap();
        assert_eq!(existing.len(), 8);
        existing.insert("owner".to_owned(), "ops".to_owned());
        let notes = to_notes(&definition("a", "short"), &existing).unwrap();
        assert_eq!((notes.len(), notes["owner"].as_str()), (6, "ops"));
        assert_eq!(to_notes(&definition("a", &"ä".repeat(6000)), &Notes::new()), None);
    }

    #[test]
    fn damaged_notes_are_said_to_be() {
        let good = to_notes(&definition("a", "b"), &Notes::new()).unwrap();
        for (name, text) in [
            ("usage", "disk"),
            ("usage-id", "%ff"),
            ("private", "maybe"),
            ("vmward", "2"),
            ("description", " x "),
        ] {
            let mut notes = good.clone();
            notes.insert(name.to_owned(), text.to_owned());
            assert!(from_notes(Uuid::nil(), &notes).is_err(), "{name}");
            notes.remove(name);
            assert_eq!(
                from_notes(Uuid::nil(), &notes).is_err(),
                matches!(name, "usage" | "usage-id" | "vmward")
            );
        }
    }

    proptest! {
        #[test]
        fn it_comes_back_as_it_was(id in "\\PC{1,700}", description in "[\\PC\n\t]{1,700}") {
            let definition = definition(&id, &description);
            if definition.check_text().is_ok() {
                let notes = to_notes(&definition, &Notes::new()).unwrap();
                prop_assert!(notes.values().all(|v| v.len() <= MAX_TEXT && v.bytes().all(|b| (0x20..0x7f).contains(&b))));
                prop_assert_eq!(from_notes(Uuid::nil(), &notes), Ok(definition));
            }
        }

        #[test]
        fn no_notes_are_too_strange(notes in prop::collection::btree_map("(vmward|usage|usage-id(.2)?|private|description)", "\\PC{0,9}", 0..7)) {
            let _ = from_notes(Uuid::nil(), &notes);
        }
    }
}
