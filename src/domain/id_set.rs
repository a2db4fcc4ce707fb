//! Sets of small numbers as libvirt writes them: `0-3,5,^2`.

use std::collections::BTreeSet;
use std::fmt;

use crate::xml::{Diagnostics, Element};

/// libvirt's limit for the number of a processor or node.
const MAX_ID: u32 = 16384;

/// Numbers of processors or NUMA nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdSet(BTreeSet<u32>);

impl IdSet {
    /// Reads `0-3,5,^2`; `^` takes numbers out again.
    pub fn parse(text: &str) -> Option<Self> {
        let mut set = BTreeSet::new();
        for part in text.split(',').map(str::trim) {
            let (part, remove) = part.strip_prefix('^').map_or((part, false), |p| (p, true));
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (first.trim().parse::<u32>().ok()?, last.trim().parse::<u32>().ok()?);
            if last < first || last > MAX_ID {
                return None;
            }
            for id in first..=last {
                if remove {
                    set.remove(&id);
                } else {
                    set.insert(id);
                }
            }
        }
        Some(Self(set))
    }

    /// Reads the set in an attribute; an empty one is an error.
    pub fn from_attribute(element: &Element, name: &str, diagnostics: &mut Diagnostics) -> Option<Self> {
        let attribute = element.attribute(name)?;
        let set = Self::parse(&attribute.value).filter(|s| !s.0.is_empty());
        if set.is_none() {
            diagnostics
                .error(attribute.span, format!("'{}' is not a set of numbers", attribute.value))
                .hint("write it like 0-3,5");
        }
        set
    }

    /// The numbers from 0 to before `n`.
    pub fn first(n: u32) -> Self {
        Self((0..n).collect())
    }

    /// The numbers, smallest first.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().copied()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether that one is in it.
    pub fn contains(&self, id: u32) -> bool {
        self.0.contains(&id)
    }

    /// The largest.
    pub fn last(&self) -> Option<u32> {
        self.0.last().copied()
    }

    /// The first number that is in both.
    pub fn common(&self, other: &Self) -> Option<u32> {
        self.0.intersection(&other.0).next().copied()
    }

    /// Those in either.
    pub fn with(&self, other: &Self) -> Self {
        Self(&self.0 | &other.0)
    }

    /// Those that are not in the other.
    pub fn without(&self, other: &Self) -> Self {
        Self(&self.0 - &other.0)
    }

    /// Runs of numbers, each with its first and last.
    pub fn ranges(&self) -> Vec<(u32, u32)> {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for id in self.iter() {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == id => *last = id,
                _ => ranges.push((id, id)),
            }
        }
        ranges
    }
}

impl fmt::Display for IdSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (first, last)) in self.ranges().into_iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_read_and_written() {
        for (text, written) in
            [("0", "0"), ("3,1,2", "1-3"), ("0-3,^1,7", "0,2-3,7"), (" 1 - 2 , 4", "1-2,4")]
        {
            assert_eq!(IdSet::parse(text).unwrap().to_string(), written, "{text}");
        }
        for wrong in ["", "a", "3-1", "1,,2", "-1", "0-99999"] {
            assert_eq!(IdSet::parse(wrong), None, "{wrong}");
        }
    }
}
