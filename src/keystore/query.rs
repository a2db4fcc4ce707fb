//! What the URIs of keystores say after a `?`: `name=value`, joined by `&`, percent-encoded.

use percent_encoding::percent_decode_str;

/// A URI without its scheme, taken apart.
pub(super) struct Parts {
    /// What stands before the `?`.
    pub(super) path: String,
    /// What stands after it, in its order.
    pub(super) query: Vec<(String, String)>,
}

impl Parts {
    /// Takes apart what follows `scheme:`, or says what is wrong with it.
    pub(super) fn of(uri: &str, scheme: &str) -> Result<Self, String> {
        let rest = uri.strip_prefix(scheme).and_then(|rest| rest.strip_prefix(':')).unwrap_or(uri);
        let (path, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
        let pair = |pair: &str| {
            let (name, value) =
                pair.split_once('=').ok_or_else(|| format!("'{pair}' is not of the form name=value"))?;
            Ok((decode(name)?, decode(value)?))
        };
        let query = query.map(|query| query.split('&').map(pair).collect::<Result<_, String>>());
        Ok(Self { path: decode(path)?, query: query.transpose()?.unwrap_or_default() })
    }
}

/// Percent-decodes a part of a URI. NUL is in no name, argument and path.
fn decode(text: &str) -> Result<String, String> {
    match percent_decode_str(text).decode_utf8() {
        Ok(decoded) if !decoded.contains('\0') => Ok(decoded.into_owned()),
        _ => Err(format!("'{text}' does not stand for text")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_keeps_its_order_and_loses_its_percent_signs() {
        let parts = Parts::of("exec:/a%20b?arg=x%26y&arg=&env=A=B", "exec").unwrap();
        assert_eq!(parts.path, "/a b");
        let query: Vec<_> = parts.query.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(query, [("arg", "x&y"), ("arg", ""), ("env", "A=B")]);
        assert!(Parts::of("exec:/a", "exec").unwrap().query.is_empty());
        for wrong in ["exec:/a?", "exec:/a?b", "exec:/a?b=%ff", "exec:/a?b=%00", "exec:/%00"] {
            assert!(Parts::of(wrong, "exec").is_err(), "{wrong}");
        }
    }
}
