//! Memory sizes as users write them: `512MiB`, `2GiB`, `1.5GB`, `4096`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Size in bytes. Prints in the largest binary unit that divides it, so that printing and parsing lose nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ByteSize(pub(crate) u64);

/// Invalid memory size.
#[derive(Debug, thiserror::Error)]
#[error("`{text}` is no size: write a number and B, KiB, MiB, GiB, TiB, KB, MB, GB or TB")]
pub(crate) struct InvalidSize {
    text: String,
}

/// Largest first, because printing takes the first that divides. `K` alone is read as `KiB`.
const BINARY_UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
const DECIMAL_UNITS: [(&str, u64); 4] = [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("KB", 1_000)];

impl ByteSize {
    /// Returns `n` MiB.
    pub(crate) const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// Returns `n` GiB.
    pub(crate) const fn gib(n: u64) -> Self {
        Self(n << 30)
    }
}

impl FromStr for ByteSize {
    type Err = InvalidSize;

    fn from_str(text: &str) -> Result<Self, InvalidSize> {
        let invalid = || InvalidSize { text: text.to_owned() };
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let unit_bytes = bytes_of_unit(unit.trim()).ok_or_else(invalid)?;
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(unit_bytes).map(Self).ok_or_else(invalid);
        }
        let fraction: f64 = number.parse().map_err(|_| invalid())?;
        let bytes = fraction * unit_bytes as f64;
        // Up to 2^53 an f64 holds every whole number of bytes.
        if bytes.is_finite() && bytes < (1_u64 << 53) as f64 { Ok(Self(bytes as u64)) } else { Err(invalid()) }
    }
}

/// Returns the bytes of a unit; `None` for an unknown unit. No unit means bytes.
fn bytes_of_unit(unit: &str) -> Option<u64> {
    if unit.is_empty() || unit.eq_ignore_ascii_case("b") {
        return Some(1);
    }
    let named = BINARY_UNITS.iter().chain(&DECIMAL_UNITS).find(|(name, _)| name.eq_ignore_ascii_case(unit));
    let short = || BINARY_UNITS.iter().find(|(name, _)| name[..1].eq_ignore_ascii_case(unit));
    named.or_else(short).map(|&(_, bytes)| bytes)
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match BINARY_UNITS.iter().find(|(_, bytes)| self.0 > 0 && self.0.is_multiple_of(*bytes)) {
            Some((unit, bytes)) => write!(f, "{}{unit}", self.0 / bytes),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `None`: an error.
    #[track_caller]
    fn check(text: &str, expected: Option<u64>) {
        assert_eq!(text.parse::<ByteSize>().ok().map(|size| size.0), expected, "{text}");
    }

    #[test]
    fn units_are_binary_with_an_i_and_decimal_without() {
        check("2GiB", Some(2 << 30));
        check("2GB", Some(2_000_000_000));
        check("512 mib", Some(512 << 20));
        check("3K", Some(3072));
        check("1.5GiB", Some(3 << 29));
        check("4096", Some(4096));
        check("10B", Some(10));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "GiB", "-1GiB", "2 gigs", "1.2.3MiB", "99999999999TiB", "1e9"] {
            check(text, None);
        }
    }

    #[test]
    fn printing_and_parsing_lose_nothing() {
        for bytes in [0, 1, 1000, 1024, 1536, 1 << 20, 3 << 30, (3 << 30) + 1] {
            let size = ByteSize(bytes);
            check(&size.to_string(), Some(bytes));
        }
        assert_eq!(ByteSize(1536 << 20).to_string(), "1536MiB");
    }
}
