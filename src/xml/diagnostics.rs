//! What is said about a text, all of it at once, each at its place.

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

use super::mask::masked;

/// A range of bytes in the source text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

/// How much a diagnostic weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Nothing is started.
    Error,
    /// An error unless `--allow-unsupported` is given: the XML asks for what vmward cannot do.
    Unsupported,
    /// The same where it is the host that would have to do something (labels, control groups): QEMU's command line
    /// is what it would be, so it can be shown, but no guest is started.
    OutsideQemu,
    /// QEMU's command line can be shown with a stand-in for what is not known here, but no guest is ever started with it.
    StandIn,
    /// Said, but nothing is held up.
    Warning,
}

/// One thing to say about one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// How much it weighs.
    pub severity: Severity,
    /// One sentence, without a full stop.
    pub message: String,
    /// Where.
    pub span: Span,
    /// A second place that explains the first, with its label ("first defined here").
    pub related: Option<(Span, String)>,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Everything there is to say about one text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diagnostics {
    list: Vec<Diagnostic>,
}

impl Diagnostics {
    /// Nothing said yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn push(&mut self, severity: Severity, span: Span, message: impl Into<String>) -> &mut Diagnostic {
        self.list.push(Diagnostic { severity, message: message.into(), span, related: None, hint: None });
        self.list.last_mut().unwrap_or_else(|| unreachable!("just pushed"))
    }

    /// Says an error. The result takes a hint: `diagnostics.error(span, "...").hint("...")`.
    pub fn error(&mut self, span: Span, message: impl Into<String>) -> &mut Diagnostic {
        self.push(Severity::Error, span, message)
    }

    /// Says that vmward does not do what is asked for here.
    pub fn unsupported(&mut self, span: Span, message: impl Into<String>) -> &mut Diagnostic {
        self.push(Severity::Unsupported, span, message)
    }

    /// Says that the XML asks the host, not QEMU, for something that vmward does not do.
    pub fn outside_qemu(&mut self, span: Span, message: impl Into<String>) -> &mut Diagnostic {
        self.push(Severity::OutsideQemu, span, message)
    }

    /// Says that something has a stand-in in a command line that is shown.
    pub fn stand_in(&mut self, span: Span, message: impl Into<String>) -> &mut Diagnostic {
        self.push(Severity::StandIn, span, message)
    }

    /// Says something that holds nothing up.
    pub fn warning(&mut self, span: Span, message: impl Into<String>) -> &mut Diagnostic {
        self.push(Severity::Warning, span, message)
    }

    /// All of it, in the order of the text.
    pub fn sorted(&self) -> Vec<&Diagnostic> {
        let mut list: Vec<_> = self.list.iter().collect();
        list.sort_by_key(|d| d.span.start);
        list
    }

    /// Turns what is unsupported, and only that, into warnings (`--allow-unsupported`).
    pub fn allow_unsupported(&mut self) {
        self.weigh(&[Severity::Unsupported, Severity::OutsideQemu], Severity::Warning);
    }

    /// Turns what the host would have to do, and stand-ins, into warnings: nothing is going to be started.
    pub fn allow_showing(&mut self) {
        self.weigh(&[Severity::OutsideQemu, Severity::StandIn], Severity::Warning);
    }

    /// Turns what is unsupported into errors, where no option would do without it.
    pub fn refuse_unsupported(&mut self) {
        self.weigh(&[Severity::Unsupported, Severity::OutsideQemu, Severity::StandIn], Severity::Error);
    }

    fn weigh(&mut self, those: &[Severity], now: Severity) {
        for d in self.list.iter_mut().filter(|d| those.contains(&d.severity)) {
            d.severity = now;
        }
    }

    /// Whether anything here keeps a guest from starting.
    pub fn has_errors(&self) -> bool {
        self.list.iter().any(|d| d.severity != Severity::Warning)
    }

    /// Whether anything here is wrong, what is merely unsupported or not known here aside.
    pub fn has_hard_errors(&self) -> bool {
        self.list.iter().any(|d| d.severity == Severity::Error)
    }

    /// Whether nothing was said.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Adds what another reading of the same text said.
    pub fn append(&mut self, mut other: Diagnostics) {
        self.list.append(&mut other.list);
    }

    /// Shows everything as compilers do: `path:line:column`, the line with stars for passwords, a caret, the hint.
    pub fn render(&self, path: &str, source: &str) -> String {
        let source = &masked(source);
        let renderer = Renderer::plain();
        let mut out = String::new();
        for d in self.sorted() {
            let level = match d.severity {
                Severity::Warning => Level::WARNING,
                Severity::Error | Severity::Unsupported | Severity::OutsideQemu | Severity::StandIn => {
                    Level::ERROR
                }
            };
            let clamp = |s: Span| boundary(source, s.start.min(s.end))..boundary(source, s.end);
            let mut snippet =
                Snippet::source(source).path(path).annotation(AnnotationKind::Primary.span(clamp(d.span)));
            if let Some((span, label)) = &d.related {
                snippet = snippet.annotation(AnnotationKind::Context.span(clamp(*span)).label(label));
            }
            let mut group = level.primary_title(&d.message).element(snippet);
            let unsupported = matches!(d.severity, Severity::Unsupported | Severity::OutsideQemu);
            let hint = d
                .hint
                .as_deref()
                .or(unsupported.then_some("--allow-unsupported starts the guest without it"));
            if let Some(hint) = hint {
                group = group.element(Level::HELP.message(hint));
            }
            out.push_str(&renderer.render(&[group]));
            out.push('\n');
        }
        out
    }
}

/// The nearest place at or before `at` where a character begins: the reader of broken XML may stop within one.
fn boundary(source: &str, at: usize) -> usize {
    (0..=at.min(source.len())).rev().find(|&n| source.is_char_boundary(n)).unwrap_or(0)
}

impl Diagnostic {
    /// Says what to do about it.
    pub fn hint(&mut self, hint: impl Into<String>) -> &mut Self {
        self.hint = Some(hint.into());
        self
    }

    /// Points at a second place that explains the first.
    pub fn related(&mut self, span: Span, label: impl Into<String>) -> &mut Self {
        self.related = Some((span, label.into()));
        self
    }
}
