//! Attribute values out of a closed list.

/// An enumeration whose values are words of the XML.
pub trait Keyword: Sized + Copy + 'static {
    /// Each value with its word, in the order in which they are shown.
    const WORDS: &'static [(&'static str, Self)];

    /// The value of a word.
    fn from_word(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(w, _)| *w == word).map(|(_, v)| *v)
    }

    /// The words, for an error message: `a, b or c`.
    fn expected() -> String {
        let words: Vec<_> = Self::WORDS.iter().map(|(w, _)| *w).collect();
        match words.split_last() {
            Some((last, [])) => (*last).to_owned(),
            Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
            None => String::new(),
        }
    }
}

/// Declares an enumeration together with its words in the XML:
///
/// ```
/// vmward::xml::keywords! {
///     /// A disk's bus.
///     pub enum Bus {
///         /// Virtio.
///         Virtio = "virtio",
///         /// SCSI.
///         Scsi = "scsi",
///     }
/// }
/// assert_eq!(Bus::Scsi.as_str(), "scsi");
/// ```
#[macro_export]
macro_rules! keywords {
    ($(#[$meta:meta])* $vis:vis enum $name:ident { $($(#[$vmeta:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        $vis enum $name { $($(#[$vmeta])* $variant),+ }

        impl $crate::xml::Keyword for $name {
            const WORDS: &'static [(&'static str, Self)] = &[$(($word, Self::$variant)),+];
        }

        impl $name {
            /// The word of the XML.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }
    };
}
pub use keywords;
