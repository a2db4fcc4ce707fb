//! The tree as text again.

use std::fmt;

use quick_xml::escape::{escape, partial_escape};

use super::Element;

impl Element {
    fn write(&self, f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
        write!(f, "{:1$}<{2}", "", depth * 2, self.name)?;
        for a in &self.attributes {
            write!(f, " {}='{}'", a.name, escape(a.value.as_str()))?;
        }
        if self.text.is_empty() && self.children.is_empty() {
            return writeln!(f, "/>");
        }
        write!(f, ">{}", partial_escape(self.text.as_str()))?;
        if !self.children.is_empty() {
            writeln!(f)?;
            for c in &self.children {
                c.write(f, depth + 1)?;
            }
            write!(f, "{:1$}", "", depth * 2)?;
        }
        writeln!(f, "</{}>", self.name)
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, 0)
    }
}
