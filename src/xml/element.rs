//! The tree, and how it is read.

use std::cell::Cell;
use std::str::FromStr;

use super::{Diagnostics, Keyword, Span};

/// An attribute with its place.
#[derive(Debug, Clone)]
pub struct Attribute {
    /// Its name, prefix included.
    pub name: String,
    /// Its value, entities resolved.
    pub value: String,
    /// Where the value stands, without the quotes.
    pub span: Span,
    /// Where the name stands.
    pub name_span: Span,
    pub(super) read: Cell<bool>,
}

/// An element with its place, its attributes, its children and its text.
#[derive(Debug, Clone, Default)]
pub struct Element {
    /// Its name, prefix included.
    pub name: String,
    /// Where its start tag stands.
    pub span: Span,
    /// Its attributes, in the order of the text.
    pub attributes: Vec<Attribute>,
    /// Its child elements, in the order of the text.
    pub children: Vec<Element>,
    /// Its character data, trimmed, entities resolved.
    pub text: String,
    /// Where the character data stands.
    pub text_span: Span,
    pub(super) read: Cell<bool>,
    pub(super) text_read: Cell<bool>,
}

impl Element {
    /// An element that is made, not read: it has no place.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// The same with one more attribute.
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.set(name, value);
        self
    }

    /// The same with text.
    pub fn with_text(mut self, text: impl Into<String>) -> Self {
        self.text = text.into();
        self
    }

    /// The same with one more child.
    pub fn with_child(mut self, child: Element) -> Self {
        self.children.push(child);
        self
    }

    /// Sets or replaces an attribute.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        let value = value.into();
        match self.attributes.iter_mut().find(|a| a.name == name) {
            Some(a) => a.value = value,
            None => self.attributes.push(Attribute {
                name: name.to_owned(),
                value,
                span: Span::default(),
                name_span: Span::default(),
                read: Cell::new(false),
            }),
        }
    }

    /// The attribute of that name; it counts as read.
    pub fn attribute(&self, name: &str) -> Option<&Attribute> {
        let found = self.attributes.iter().find(|a| a.name == name)?;
        found.read.set(true);
        Some(found)
    }

    /// The value of the attribute of that name; it counts as read.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.attribute(name).map(|a| a.value.as_str())
    }

    /// The value of an attribute that must be there and not empty.
    pub fn require(&self, name: &str, diagnostics: &mut Diagnostics) -> Option<&str> {
        match self.attribute(name) {
            Some(a) if a.value.is_empty() => {
                diagnostics.error(a.name_span, format!("attribute '{name}' of <{}> is empty", self.name));
                None
            }
            Some(a) => Some(&a.value),
            None => {
                diagnostics.error(self.span, format!("<{}> lacks the attribute '{name}'", self.name));
                None
            }
        }
    }

    /// The value of an attribute out of a closed list.
    pub fn keyword<K: Keyword>(&self, name: &str, diagnostics: &mut Diagnostics) -> Option<K> {
        let a = self.attribute(name)?;
        let found = K::from_word(&a.value);
        if found.is_none() {
            diagnostics.error(
                a.span,
                format!(
                    "'{}' is not a value of '{name}' in <{}>; it takes {}",
                    a.value,
                    self.name,
                    K::expected()
                ),
            );
        }
        found
    }

    /// The value of an attribute that must be there, out of a closed list.
    pub fn require_keyword<K: Keyword>(&self, name: &str, diagnostics: &mut Diagnostics) -> Option<K> {
        self.require(name, diagnostics)?;
        self.keyword(name, diagnostics)
    }

    /// `yes` or `no`.
    pub fn yes_no(&self, name: &str, diagnostics: &mut Diagnostics) -> Option<bool> {
        self.one_of(name, ("yes", "no"), diagnostics)
    }

    /// `on` or `off`.
    pub fn on_off(&self, name: &str, diagnostics: &mut Diagnostics) -> Option<bool> {
        self.one_of(name, ("on", "off"), diagnostics)
    }

    fn one_of(&self, name: &str, (yes, no): (&str, &str), diagnostics: &mut Diagnostics) -> Option<bool> {
        let a = self.attribute(name)?;
        if a.value == yes {
            return Some(true);
        }
        if a.value != no {
            diagnostics.error(
                a.span,
                format!(
                    "'{}' is not a value of '{name}' in <{}>; it takes {yes} or {no}",
                    a.value, self.name
                ),
            );
            return None;
        }
        Some(false)
    }

    /// A decimal number, in the range of its type.
    pub fn number<N: FromStr>(&self, name: &str, diagnostics: &mut Diagnostics) -> Option<N> {
        let a = self.attribute(name)?;
        let found = a.value.parse().ok();
        if found.is_none() {
            diagnostics.error(
                a.span,
                format!("'{}' is not a number that '{name}' in <{}> can take", a.value, self.name),
            );
        }
        found
    }

    /// A number in decimal, or in hexadecimal after `0x`.
    pub fn hex_number(&self, name: &str, diagnostics: &mut Diagnostics) -> Option<u64> {
        let a = self.attribute(name)?;
        let found = match a.value.strip_prefix("0x").or_else(|| a.value.strip_prefix("0X")) {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => a.value.parse().ok(),
        };
        if found.is_none() {
            diagnostics.error(
                a.span,
                format!("'{}' is not a number that '{name}' in <{}> can take", a.value, self.name),
            );
        }
        found
    }

    /// The first child of that name; it counts as read, further ones do not.
    pub fn child(&self, name: &str) -> Option<&Element> {
        let found = self.children.iter().find(|c| c.name == name)?;
        found.read.set(true);
        Some(found)
    }

    /// The only child of that name: a second one is an error.
    pub fn only_child(&self, name: &str, diagnostics: &mut Diagnostics) -> Option<&Element> {
        let found = self.child(name)?;
        for extra in self.children.iter().filter(|c| c.name == name).skip(1) {
            extra.mark_read();
            diagnostics
                .error(extra.span, format!("<{}> has more than one <{name}>", self.name))
                .related(found.span, "the first one");
        }
        Some(found)
    }

    /// All children of that name; they count as read.
    pub fn children<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |c| {
            let same = c.name == name;
            if same {
                c.read.set(true);
            }
            same
        })
    }

    /// The text; it counts as read.
    pub fn text(&self) -> &str {
        self.text_read.set(true);
        &self.text
    }

    /// The text of the child of that name, if it is there and not empty.
    pub fn child_text(&self, name: &str) -> Option<&str> {
        self.child(name).map(Element::text).filter(|t| !t.is_empty())
    }

    /// Where the text stands, or the start tag if there is none.
    pub fn text_place(&self) -> Span {
        if self.text.is_empty() { self.span } else { self.text_span }
    }

    /// Everything in here counts as read: its content is not vmward's to understand.
    pub fn mark_read(&self) {
        self.read.set(true);
        self.text_read.set(true);
        self.attributes.iter().for_each(|a| a.read.set(true));
        self.children.iter().for_each(Element::mark_read);
    }

    /// Says of each part that was never asked for that vmward does not honour it.
    pub fn report_unread(&self, diagnostics: &mut Diagnostics) {
        for a in self.attributes.iter().filter(|a| !a.read.get() && !a.name.starts_with("xmlns")) {
            diagnostics.unsupported(
                Span { start: a.name_span.start, end: a.span.end },
                format!("vmward does not honour the attribute '{}' of <{}>", a.name, self.name),
            );
        }
        if !self.text.is_empty() && !self.text_read.get() {
            diagnostics
                .unsupported(self.text_span, format!("vmward does not honour text in <{}>", self.name));
        }
        for c in &self.children {
            if c.read.get() {
                c.report_unread(diagnostics);
            } else {
                diagnostics
                    .unsupported(c.span, format!("vmward does not honour <{}> in <{}>", c.name, self.name));
            }
        }
    }
}

// Two elements are equal if they say the same; where they stand and who has read them does not count.
impl PartialEq for Element {
    fn eq(&self, other: &Self) -> bool {
        let attributes = |e: &Self| -> Vec<(String, String)> {
            e.attributes.iter().map(|a| (a.name.clone(), a.value.clone())).collect()
        };
        self.name == other.name
            && self.text == other.text
            && attributes(self) == attributes(other)
            && self.children == other.children
    }
}
