//! `secret-service:[collection=NAME][?attribute=value[&...]]`.

use percent_encoding::percent_decode_str;

/// A URI, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ServiceUri {
    /// The collection's alias or name.
    pub(super) collection: Option<String>,
    /// The attributes of an item.
    pub(super) attributes: Vec<(String, String)>,
}

impl ServiceUri {
    /// Takes a URI apart; what is wrong with it is said in words that follow "it is not a keystore: ".
    pub(super) fn parse(uri: &str) -> Result<Self, String> {
        let rest = uri.strip_prefix("secret-service:").ok_or("it does not begin with secret-service:")?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let collection = match path.strip_prefix("collection=") {
            Some(name) => Some(text("collection", name)?),
            None if path.is_empty() => None,
            None => {
                return Err(
                    "after the colon comes nothing, or the collection, as in secret-service:collection=NAME"
                        .into(),
                );
            }
        };
        let mut attributes: Vec<(String, String)> = Vec::new();
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or("an attribute has no '='")?;
            let (name, value) = (text("attribute's name", name)?, text("attribute", value)?);
            if attributes.iter().any(|(seen, _)| *seen == name) {
                return Err(format!("it has the attribute {name} twice"));
            }
            attributes.push((name, value));
        }
        Ok(Self { collection, attributes })
    }
}

fn text(what: &str, value: &str) -> Result<String, String> {
    match percent_decode_str(value).decode_utf8() {
        Ok(text) if text.is_empty() || text.contains(char::is_control) => {
            Err(format!("its {what} is empty or has control characters in it"))
        }
        Ok(text) => Ok(text.into_owned()),
        Err(_) => Err(format!("its {what} is not UTF-8")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_uri_is_taken_apart() {
        let parsed = |uri: &str| ServiceUri::parse(uri).unwrap();
        assert_eq!(parsed("secret-service:"), ServiceUri { collection: None, attributes: Vec::new() });
        assert_eq!(parsed("secret-service:collection=My%20keys").collection.as_deref(), Some("My keys"));
        let attributes = parsed("secret-service:?disk=web1&note=a%26b").attributes;
        assert_eq!(attributes, [("disk".into(), "web1".into()), ("note".into(), "a&b".into())]);
    }

    #[test]
    fn what_is_wrong_with_a_uri_is_said() {
        for (uri, says) in [
            ("secret-service:login", "after the colon"),
            ("secret-service:collection=", "empty"),
            ("secret-service:?a", "no '='"),
            ("secret-service:?a=", "empty"),
            ("secret-service:?a=b&a=c", "twice"),
            ("secret-service:?a=%ff", "not UTF-8"),
            ("secret-service:?a=%00", "control characters"),
        ] {
            let said = ServiceUri::parse(uri).unwrap_err();
            assert!(said.contains(says), "{uri}: {said}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken_apart_or_refused(rest in "[a-z%=&?\\PC]{0,60}") {
            let _ = ServiceUri::parse(&format!("secret-service:{rest}"));
        }
    }
}
