//! Text to tree. Pure; no entity but XML's own five is resolved, nothing outside the text is looked at.

use std::cell::Cell;

use quick_xml::Reader;
use quick_xml::XmlVersion;
use quick_xml::events::{BytesStart, Event};

use super::{Attribute, Diagnostics, Element, Span};

/// Deeper trees are refused: libvirt's formats need less than twenty levels, and the tree is walked recursively.
const MAX_DEPTH: usize = 64;

/// Reads a document into its root element. Errors are pushed to `diagnostics`, and there is no tree then.
pub fn parse(source: &str, diagnostics: &mut Diagnostics) -> Option<Element> {
    let mut reader = Reader::from_str(source);
    reader.config_mut().check_comments = true;
    // The elements that are open, outermost first.
    let mut open: Vec<Element> = Vec::new();
    let mut root = None;
    loop {
        let start = position(reader.buffer_position());
        let event = match reader.read_event() {
            Ok(event) => event,
            Err(e) => {
                let at = position(reader.error_position()).min(source.len());
                diagnostics.error(
                    Span { start: at, end: end_of_tag(source, at) },
                    format!("not well-formed XML: {e}"),
                );
                return None;
            }
        };
        let span = Span { start, end: position(reader.buffer_position()) };
        match event {
            Event::Start(_) | Event::Empty(_) if open.is_empty() && root.is_some() => {
                diagnostics.error(span, "there is more than one root element");
                return None;
            }
            Event::Start(_) if open.len() == MAX_DEPTH => {
                diagnostics.error(span, format!("elements are nested more than {MAX_DEPTH} deep"));
                return None;
            }
            Event::Start(tag) => open.push(element(source, &tag, span, diagnostics)?),
            Event::Empty(tag) => {
                let done = element(source, &tag, span, diagnostics)?;
                close(done, &mut open, &mut root);
            }
            Event::End(_) => {
                if let Some(mut done) = open.pop() {
                    trim(&mut done, source);
                    close(done, &mut open, &mut root);
                }
            }
            Event::Text(text) => add_text(&text.xml10_content(), span, &mut open, diagnostics)?,
            Event::CData(text) => add_text(&text.xml10_content(), span, &mut open, diagnostics)?,
            Event::GeneralRef(reference) => {
                let content = format!("&{};", &*reference);
                match quick_xml::escape::unescape(&content) {
                    Ok(text) => add_text(&text, span, &mut open, diagnostics)?,
                    Err(e) => {
                        diagnostics.error(span, format!("not well-formed XML: {e}"));
                        return None;
                    }
                }
            }
            Event::DocType(_) => {
                diagnostics.error(span, "a document type definition is not read");
                return None;
            }
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
            Event::Eof => break,
        }
    }
    if let Some(unclosed) = open.last() {
        diagnostics.error(unclosed.span, format!("not well-formed XML: <{}> is not closed", unclosed.name));
        return None;
    }
    if root.is_none() {
        diagnostics.error(Span { start: 0, end: source.len().min(1) }, "there is no element in here");
    }
    root
}

fn position(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

/// Where the tag that starts at `at` ends, or its line if it does not.
fn end_of_tag(source: &str, at: usize) -> usize {
    source.get(at..).and_then(|rest| rest.find(['>', '\n'])).map_or(source.len(), |n| at + n)
}

fn element(source: &str, tag: &BytesStart<'_>, span: Span, diagnostics: &mut Diagnostics) -> Option<Element> {
    let mut element = Element { name: tag.name().as_ref().to_owned(), span, ..Element::default() };
    for attribute in tag.attributes() {
        let attribute = match attribute {
            Ok(a) => a,
            Err(e) => {
                diagnostics.error(span, format!("not well-formed XML: {e}"));
                return None;
            }
        };
        let name_span = place(source, attribute.key.as_ref());
        let value_span = place(source, &attribute.value);
        match attribute.normalized_value(XmlVersion::Implicit1_0) {
            Ok(value) => element.attributes.push(Attribute {
                name: attribute.key.as_ref().to_owned(),
                value: value.into_owned(),
                span: value_span,
                name_span,
                read: Cell::new(false),
            }),
            Err(e) => {
                diagnostics.error(value_span, format!("not well-formed XML: {e}"));
                return None;
            }
        }
    }
    Some(element)
}

/// Where a part that the reader borrowed from the source stands in it. The reader gives no positions of
/// attributes, but it never copies before values are unescaped.
fn place(source: &str, part: &str) -> Span {
    let start = (part.as_ptr() as usize).wrapping_sub(source.as_ptr() as usize).min(source.len());
    Span { start, end: (start + part.len()).min(source.len()) }
}

fn add_text(text: &str, span: Span, open: &mut [Element], diagnostics: &mut Diagnostics) -> Option<()> {
    match open.last_mut() {
        Some(parent) => {
            if parent.text.trim().is_empty() {
                parent.text_span.start = span.start;
            }
            parent.text_span.end = span.end;
            parent.text.push_str(text);
            Some(())
        }
        None if text.trim().is_empty() => Some(()),
        None => {
            diagnostics.error(span, "text outside of the root element");
            None
        }
    }
}

/// Indentation is no text: the value and its place are what is left without white space around it.
fn trim(element: &mut Element, source: &str) {
    element.text = element.text.trim().to_owned();
    let Span { start, end } = element.text_span;
    if let Some(raw) = source.get(start..end) {
        element.text_span.start = start + (raw.len() - raw.trim_start().len());
        element.text_span.end = (start + raw.trim_end().len()).max(element.text_span.start);
    }
}

fn close(done: Element, open: &mut [Element], root: &mut Option<Element>) {
    match open.last_mut() {
        Some(parent) => parent.children.push(done),
        None => {
            done.read.set(true);
            *root = Some(done);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(source: &str) -> String {
        let mut diagnostics = Diagnostics::new();
        assert!(parse(source, &mut diagnostics).is_none());
        diagnostics.render("t.xml", source)
    }

    #[test]
    fn positions_are_those_of_the_text() {
        let source = "<a>\n  <b x='1' yy=\"&lt;2\">  t&amp;u </b>\n</a>\n";
        let mut diagnostics = Diagnostics::new();
        let root = parse(source, &mut diagnostics).unwrap();
        assert!(diagnostics.is_empty());
        let b = root.child("b").unwrap();
        let yy = b.attribute("yy").unwrap();
        assert_eq!(yy.value, "<2");
        assert_eq!(&source[yy.span.start..yy.span.end], "&lt;2");
        assert_eq!(&source[yy.name_span.start..yy.name_span.end], "yy");
        assert_eq!(b.text(), "t&u");
        assert_eq!(&source[b.text_span.start..b.text_span.end], "t&amp;u");
        assert_eq!(&source[b.span.start..b.span.end], "<b x='1' yy=\"&lt;2\">");
    }

    #[test]
    fn what_nobody_read_is_reported() {
        let source = "<a k='1'>\n  <b z='2'/>\n  <c><d/>text</c>\n</a>";
        let mut diagnostics = Diagnostics::new();
        let root = parse(source, &mut diagnostics).unwrap();
        root.child("c").unwrap();
        root.report_unread(&mut diagnostics);
        let messages: Vec<_> = diagnostics.sorted().iter().map(|d| d.message.clone()).collect();
        assert_eq!(
            messages,
            [
                "vmward does not honour the attribute 'k' of <a>",
                "vmward does not honour <b> in <a>",
                "vmward does not honour <d> in <c>",
                "vmward does not honour text in <c>",
            ]
        );
        assert!(diagnostics.has_errors());
        diagnostics.allow_unsupported();
        assert!(!diagnostics.has_errors());
    }

    #[test]
    fn what_the_host_would_have_to_do_keeps_a_guest_from_starting_only() {
        let mut diagnostics = Diagnostics::new();
        diagnostics.outside_qemu(Span::default(), "no labels");
        assert!(diagnostics.has_errors());
        let mut allowed = diagnostics.clone();
        allowed.allow_showing();
        assert!(!allowed.has_errors());
        diagnostics.unsupported(Span::default(), "no such thing");
        diagnostics.allow_showing();
        assert!(diagnostics.has_errors());
        diagnostics.refuse_unsupported();
        assert!(diagnostics.has_hard_errors());
    }

    #[test]
    fn broken_documents_are_refused_at_their_line() {
        assert!(said("<a>\n<b>\n</a>").contains("t.xml:3:"), "{}", said("<a>\n<b>\n</a>"));
        assert!(said("<a>\n  <b>").contains("<b> is not closed"));
        assert!(said("").contains("no element"));
        assert!(said("<a/>\n<b/>").contains("t.xml:2:1"));
        assert!(said("<a/>x").contains("outside of the root"));
        assert!(said("<!DOCTYPE a [<!ENTITY e 'x'>]><a>&e;</a>").contains("document type"));
        assert!(said("<a>&e;</a>").contains("not well-formed"));
        assert!(said("<a x='1' x='2'/>").contains("not well-formed"));
        assert!(said(&"<a>".repeat(70)).contains("nested"));
    }

    #[test]
    fn written_and_read_again_it_is_the_same() {
        let made = Element::new("a")
            .with("x", "<'\"&>")
            .with_child(Element::new("b").with_text("1 < 2 & 3"))
            .with_child(Element::new("c"));
        let text = made.to_string();
        let mut diagnostics = Diagnostics::new();
        assert_eq!(parse(&text, &mut diagnostics), Some(made));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(source in "[<>/a='\"&;! \nä\\[\\]-]{0,60}") {
            let mut diagnostics = Diagnostics::new();
            let root = parse(&source, &mut diagnostics);
            proptest::prop_assert_eq!(root.is_none(), diagnostics.has_errors());
            diagnostics.render("t.xml", &source);
        }
    }
}
