//! What a text holds that nobody is to see when it is shown.

/// Attributes whose value is a password.
pub const SECRET_ATTRIBUTES: [&str; 1] = ["passwd"];

/// Elements whose text is a secret.
pub const SECRET_TEXTS: [&str; 1] = ["cookie"];

/// The text with stars for secrets, every byte where it was. It need not be well-formed: an error in it may be in the
/// very line that has the password.
pub fn masked(source: &str) -> String {
    let mut bytes = source.as_bytes().to_vec();
    let ends: [(&[&str], Ends); 2] = [(&SECRET_ATTRIBUTES, after_quote), (&SECRET_TEXTS, after_tag)];
    for (words, ends) in ends {
        for (start, word) in words.iter().flat_map(|word| source.match_indices(word)) {
            let after = start + word.len();
            if let Some((from, to)) = ends(&source[after..]) {
                let secret = &mut bytes[after + from..after + to];
                secret.iter_mut().filter(|b| !b.is_ascii_whitespace()).for_each(|b| *b = b'*');
            }
        }
    }
    // What was masked was whole characters.
    String::from_utf8(bytes).unwrap_or_default()
}

/// Where a secret begins and ends in what follows a word.
type Ends = fn(&str) -> Option<(usize, usize)>;

/// `='secret'`.
fn after_quote(rest: &str) -> Option<(usize, usize)> {
    let value = rest.trim_start().strip_prefix('=')?.trim_start();
    let quote = value.chars().next().filter(|c| ['\'', '"'].contains(c))?;
    let from = rest.len() - value.len() + 1;
    Some((from, rest[from..].find(quote).map_or(rest.len(), |len| from + len)))
}

/// `...>secret<`.
fn after_tag(rest: &str) -> Option<(usize, usize)> {
    let from = rest.find('>')? + 1;
    Some((from, rest[from..].find('<').map_or(rest.len(), |len| from + len)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_have_stars() {
        for (text, shown) in [
            ("<graphics passwd='hunter2' port='1'/>", "<graphics passwd='*******' port='1'/>"),
            ("<graphics passwd = \"a'ä\"/>", "<graphics passwd = \"****\"/>"),
            ("<graphics passwd='hunter2 port", "<graphics passwd='******* ****"),
            ("<graphics passwdValidTo='2027'/>", "<graphics passwdValidTo='2027'/>"),
            ("<cookie name='a'>b c</cookie><d>e</d>", "<cookie name='a'>* *</cookie><d>e</d>"),
            ("<a>passwd</a>", "<a>passwd</a>"),
        ] {
            assert_eq!(masked(text), shown);
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_moves(source in "(passwd|<cookie|[<>='\" \nä/]){0,12}") {
            let shown = masked(&source);
            proptest::prop_assert_eq!(shown.len(), source.len());
            let lines = |text: &str| text.bytes().enumerate().filter(|(_, b)| *b == b'\n').collect::<Vec<_>>();
            proptest::prop_assert_eq!(lines(&shown), lines(&source));
        }
    }
}
