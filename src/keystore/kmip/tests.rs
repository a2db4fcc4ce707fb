//! What replies say; those in fixtures/fuzz/ttlv are a server's own.
#![allow(clippy::unwrap_used, reason = "this is a test")]

use std::time::Duration;

use crate::keystore::StoreOptions;
use crate::keystore::file::IdentitySources;

use super::message::{Refusal, answers, encode, identifiers, key_material, versions};
use super::ttlv::{Writer, decode};
use super::*;

/// What a reply to a request is taken for.
fn read<T>(
    reply: &[u8],
    request: Request<'_>,
    read: impl FnOnce(Result<&ttlv::Item<'_>, Refusal>) -> T,
) -> Result<T, &'static str> {
    let reply = decode(reply).unwrap();
    let mut answers = answers(&reply, &[request])?;
    assert_eq!(answers.len(), 1);
    Ok(read(answers.remove(0)))
}

macro_rules! reply {
    ($name:literal) => {
        include_bytes!(concat!("../../../fixtures/fuzz/ttlv/", $name))
    };
}

#[test]
fn objects_are_described_the_same_in_both_forms_of_attributes() {
    for reply in [&reply!("op0b-v1")[..], reply!("op0b-v2")] {
        let object =
            read(reply, Request::GetAttributes("3"), |a| Object::of("3".into(), a.unwrap())).unwrap();
        let definition = definition(&object).unwrap();
        let labels = labels(&definition);
        assert!(labels[1].starts_with("volume:/images/w"), "{labels:?}");
        assert!(object.names.iter().map(|(_, name)| name).eq(&labels), "{:?}", object.names);
        assert_eq!(record(&object).unwrap().serial, 1);
        assert!(object.created > 1_700_000_000 && !object.is_destroyed() && !object.is_active());
    }
}

#[test]
fn what_another_program_made_is_known_by_its_names() {
    let named = |names: &[&str]| {
        let mut object =
            read(reply!("op0b-v1"), Request::GetAttributes("3"), |a| Object::of("3".into(), a.unwrap()))
                .unwrap();
        object.names = names.iter().map(|name| (0, (*name).to_owned())).collect();
        object.applications.clear();
        definition(&object)
    };
    let uuid = "c5d7b1b4-1f5e-4f0e-9d2a-2f6c3a1b0e11";
    assert_eq!(named(&["x", uuid]).unwrap().uuid.to_string(), uuid);
    let usage = named(&[uuid, "tls:web1:key"]).unwrap().usage.unwrap();
    assert_eq!((usage.kind, &*usage.id), (UsageKind::Tls, "web1:key"));
    assert!(named(&["tls:web1"]).unwrap_err().contains("no name that is a UUID"));
}

#[test]
fn of_two_objects_the_one_with_the_greater_serial_number_is_the_newer() {
    let object = |id: &str, created: i64, record: Option<&str>| {
        let mut object =
            read(reply!("op0b-v1"), Request::GetAttributes(id), |a| Object::of(id.into(), a.unwrap()))
                .unwrap();
        object.created = created;
        object.applications =
            record.map(|text| (0, RECORD.to_owned(), text.to_owned())).into_iter().collect();
        object
    };
    let mut objects = [
        object("1", 5, Some("10 <secret/>")),
        object("2", 7, Some("9 <secret/>")),
        object("10", 8, None),
        object("9", 8, None),
        object("a", 9, None),
    ];
    in_order(&mut objects);
    assert_eq!(objects.map(|object| object.id), ["9", "10", "a", "2", "1"]);
}

#[test]
fn refusals_values_identifiers_and_versions_are_read() {
    let refusal =
        read(reply!("op03-v2-refused"), Request::Register(&[], None), |a| a.err()).unwrap().unwrap();
    assert_eq!(refusal.message, "Attribute index missing from multivalued attribute.");
    let len =
        read(reply!("op0a-v2"), Request::Get("1"), |a| key_material(a.unwrap()).map(<[u8]>::len)).unwrap();
    assert_eq!(len, Ok(44));
    let (reply, two) = (decode(reply!("op08-v2")).unwrap(), [Request::Locate(&[]); 2]);
    let found = answers(&reply, &two).unwrap();
    assert!(found.into_iter().all(|answer| identifiers(answer.unwrap()).count() == 1));
    let spoken = read(reply!("op1e-v1"), Request::DiscoverVersions, |a| versions(a.unwrap())).unwrap();
    assert!(message::Version::SPOKEN.iter().all(|version| spoken.contains(version)));
}

#[test]
fn an_answer_to_something_else_is_none() {
    assert_eq!(
        read(reply!("op0a-v2"), Request::Destroy("1"), |_| ()),
        Err("it is about another operation than the request")
    );
    let request = encode(message::Version::TWO, &[Request::Get("1")]);
    assert_eq!(read(&request, Request::Get("1"), |_| ()), Err("it is no response message"));
    let reply = decode(reply!("op0a-v2")).unwrap();
    let two = [Request::Get("1"), Request::Get("2")];
    assert!(answers(&reply, &two).unwrap_err().contains("not as many results"));
}

/// A Get payload with a key block that has this in it.
fn payload(object: u32, fill: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut w = Writer::with_capacity(0);
    w.structure(0x42_007c, |w| w.structure(object, |w| w.structure(0x42_0040, fill)));
    w.into_bytes().to_vec()
}

#[test]
fn keys_are_taken_raw_and_transparent_but_not_wrapped() {
    let transparent = payload(0x42_008f, |w| {
        w.structure(0x42_0045, |w| w.structure(0x42_0043, |w| w.bytes(0x42_003f, &[0, 255])));
    });
    assert_eq!(key_material(&decode(&transparent).unwrap()), Ok(&[0, 255][..]));
    let wrapped = payload(0x42_0085, |w| {
        w.structure(0x42_0046, |_| ());
        w.bytes(0x42_0045, b"x");
    });
    assert_eq!(key_material(&decode(&wrapped).unwrap()), Err("it is wrapped with another key"));
    for (object, why) in [(0x42_0085, "it has no key material"), (0x42_0064, "neither secret data nor")] {
        let nothing = payload(object, |_| ());
        assert!(key_material(&decode(&nothing).unwrap()).unwrap_err().contains(why));
    }
}

#[test]
fn ephemeral_secrets_and_objects_in_place_of_stores_are_refused() {
    let identity = IdentitySources { credentials: None, key_file: "/nonexistent".into() };
    let options = StoreOptions { timeout: Duration::from_millis(1), ..StoreOptions::new(identity) };
    let files = "ca=/c&cert=/d&key=/e";
    let store = KmipStore::from_uri(&format!("kmip://127.0.0.1?{files}"), &options).ok().unwrap();
    let mut definition =
        SecretDefinition::parse("<secret ephemeral='yes'/>", &mut Diagnostics::new()).unwrap();
    assert!(matches!(store.define(&definition), Err(KeystoreError::Unsupported { .. })));
    definition.ephemeral = false;
    assert!(
        matches!(store.define(&definition), Err(KeystoreError::Io { .. })),
        "there is no such certificate"
    );
    assert!(
        KmipStore::from_uri(&format!("kmip://h/name?{files}"), &options)
            .err()
            .unwrap()
            .contains("names one object")
    );
    assert!(
        KmipObject::from_uri(&format!("kmip://h?{files}"), &options)
            .err()
            .unwrap()
            .contains("names no object")
    );
}
