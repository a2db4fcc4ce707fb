//! XML as people wrote it: a tree in which every part knows its place in the text, and the
//! diagnostics that point there. What libvirt calls domain, secret and volume XML is read through this.
//!
//! Each accessor of [`Element`] marks what it returns as read. Whatever nobody asked for is, by
//! construction, something vmward does not honour: [`Element::report_unread`] says so at its line.

mod diagnostics;
mod element;
mod keyword;
mod mask;
mod parse;
mod write;

pub use diagnostics::{Diagnostic, Diagnostics, Severity, Span};
pub use element::{Attribute, Element};
pub use keyword::{Keyword, keywords};
pub use mask::{SECRET_ATTRIBUTES, SECRET_TEXTS};
pub use parse::parse;
