//! Sizes as people write them.

use crate::domain::size::unit_bytes;

/// Guests see whole sectors.
const SECTOR: u64 = 512;

/// `10G`, `10GiB` (powers of 1024), `10GB` (powers of 1000) or a number of bytes; rounded up to whole sectors,
/// so that the guest never gets less than was asked for.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim();
    let factor = if unit.is_empty() { Some(1) } else { unit_bytes(unit) };
    let (Ok(number), Some(factor)) = (number.parse::<u64>(), factor) else {
        return Err("a size is a whole number with a unit, as in 10G, 10GiB, 10GB or 10737418240".into());
    };
    round_up(number.checked_mul(factor).ok_or("the size is too large")?)
}

/// Whole sectors, at least one, and what a file offset can hold.
pub(super) fn round_up(bytes: u64) -> Result<u64, String> {
    match bytes.checked_next_multiple_of(SECTOR) {
        Some(0) => Err("a volume cannot be empty".into()),
        Some(bytes) if bytes <= i64::MAX as u64 => Ok(bytes),
        _ => Err("the size is too large".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("10G", 10 << 30),
            ("10GiB", 10 << 30),
            ("10 GiB", 10 << 30),
            ("10GB", 10_000_000_000u64.next_multiple_of(512)),
            ("1", 512),
            ("1024", 1024),
            ("1k", 1024),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "G", "-1G", "1.5G", "10X", "0", "0x10", "8E", "99999999999999999999", "16E"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
