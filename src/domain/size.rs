//! Sizes with units, as libvirt writes them: `<memory unit='GiB'>4</memory>`.

use crate::xml::{Diagnostics, Element, Span};

/// Bytes in a KiB, the unit of sizes that name none.
pub const KIB: u64 = 1024;
/// Bytes in a MiB.
pub const MIB: u64 = 1024 * KIB;

/// The number of bytes in a unit: `b`, `bytes`, or a prefix `k` to `e` alone or with `iB` (powers of 1024) or
/// `B` (powers of 1000), in any case.
pub fn unit_bytes(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_lowercase();
    if unit == "b" || unit == "bytes" || unit == "byte" {
        return Some(1);
    }
    let power = "kmgtpe".find(unit.chars().next()?)? as u32 + 1;
    match &unit[1..] {
        "" | "ib" => Some(1024_u64.pow(power)),
        "b" => Some(1000_u64.pow(power)),
        _ => None,
    }
}

/// A number with its unit: `2M`, `1024KiB`.
pub fn parse(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit = if digits == text.len() { Some(1) } else { unit_bytes(text[digits..].trim()) };
    text[..digits].parse::<u64>().ok()?.checked_mul(unit?)
}

/// The text of an element times its unit, in bytes; `default` is the unit in bytes if `unit` is not given.
pub fn of_element(element: &Element, default: u64, diagnostics: &mut Diagnostics) -> Option<u64> {
    scaled(element.text(), element.text_place(), element, "unit", default, diagnostics)
}

/// The value of an attribute times the unit in another one, in bytes.
pub fn of_attribute(
    element: &Element,
    name: &str,
    unit: &str,
    default: u64,
    diagnostics: &mut Diagnostics,
) -> Option<u64> {
    let value = element.attribute(name)?;
    scaled(&value.value, value.span, element, unit, default, diagnostics)
}

fn scaled(
    number: &str,
    place: Span,
    element: &Element,
    unit: &str,
    default: u64,
    diagnostics: &mut Diagnostics,
) -> Option<u64> {
    let unit = match element.attribute(unit) {
        None => default,
        Some(unit) => match unit_bytes(&unit.value) {
            Some(bytes) => bytes,
            None => {
                diagnostics
                    .error(unit.span, format!("'{}' is not a unit of sizes", unit.value))
                    .hint("units are b, KiB, MiB, GiB, TiB, and KB, MB, ... for powers of 1000");
                return None;
            }
        },
    };
    let Ok(number) = number.trim().parse::<u64>() else {
        diagnostics.error(place, format!("'{number}' is not a size"));
        return None;
    };
    let bytes = number.checked_mul(unit);
    if bytes.is_none() {
        diagnostics.error(place, "the size is too large");
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_1024_or_1000() {
        for (unit, bytes) in [
            ("b", 1),
            ("bytes", 1),
            ("k", KIB),
            ("KiB", KIB),
            ("KB", 1000),
            ("M", MIB),
            ("mib", MIB),
            ("GB", 1_000_000_000),
            ("TiB", 1 << 40),
            ("E", 1 << 60),
        ] {
            assert_eq!(unit_bytes(unit), Some(bytes), "{unit}");
        }
        for wrong in ["", "x", "KiBi", "iB", "Ki"] {
            assert_eq!(unit_bytes(wrong), None, "{wrong}");
        }
    }
}
