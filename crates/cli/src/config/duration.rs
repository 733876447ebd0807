//! Durations as users write them: `30s`, `500ms`, `2m`, or a bare number of seconds.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Duration in whole milliseconds. Prints in the largest unit that divides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Millis(pub(crate) u64);

/// Invalid duration.
#[derive(Debug, thiserror::Error)]
#[error("`{text}` is no duration: write a number and ms, s, m or h (seconds if none), in whole milliseconds, at most a year")]
pub(crate) struct InvalidDuration {
    text: String,
}

const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl Millis {
    /// Maximum of one year: no wait is longer, and clocks do not count much further.
    const MAX: Self = Self::seconds(365 * 24 * 3600);

    /// Returns `n` seconds.
    pub(crate) const fn seconds(n: u64) -> Self {
        Self(n * 1_000)
    }

    /// Converts to the standard library's type.
    pub(crate) const fn get(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl FromStr for Millis {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, InvalidDuration> {
        let invalid = || InvalidDuration { text: text.to_owned() };
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let unit = if unit.is_empty() { "s" } else { unit.trim() };
        let &(_, unit_ms) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(invalid)?;
        in_millis(number, unit_ms).map(Self).filter(|time| *time <= Self::MAX).ok_or_else(invalid)
    }
}

/// Multiplies `number` by `unit_ms`; `None` if it is no decimal number, is too large, or gives no whole number of milliseconds.
fn in_millis(number: &str, unit_ms: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let is_empty = whole.is_empty() && fraction.is_empty();
    let digits = fraction.trim_end_matches('0');
    let scale = 10_u64.checked_pow(u32::try_from(digits.len()).ok()?)?;
    let parse = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse::<u64>().ok() };
    let whole_ms = parse(whole)?.checked_mul(unit_ms)?;
    let scaled = parse(digits)?.checked_mul(unit_ms)?;
    (!is_empty && scaled.is_multiple_of(scale)).then(|| whole_ms.checked_add(scaled / scale)).flatten()
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let &(unit, unit_ms) = UNITS.iter().find(|(_, ms)| self.0 > 0 && self.0.is_multiple_of(*ms)).unwrap_or(&("s", 1_000));
        write!(f, "{}{unit}", self.0 / unit_ms)
    }
}

impl Serialize for Millis {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Millis {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `None`: an error.
    #[track_caller]
    fn check(text: &str, expected_ms: Option<u64>) {
        assert_eq!(text.parse::<Millis>().ok().map(|duration| duration.0), expected_ms, "{text}");
    }

    #[test]
    fn a_bare_number_is_seconds() {
        check("30", Some(30_000));
        check("0", Some(0));
    }

    #[test]
    fn units_scale() {
        check("500ms", Some(500));
        check("2 m", Some(120_000));
        check("1h", Some(3_600_000));
    }

    #[test]
    fn fractions_are_whole_milliseconds() {
        check("1.5s", Some(1_500));
        check("0.010", Some(10));
        check(".5m", Some(30_000));
        check("2.h", Some(7_200_000));
        check("0.0001", None);
        check("0.5ms", None);
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "s", "-1s", "1.2.3", ".", "1e3", "3 days", "99999999999999999h", "8761h", "18446744073709551615ms"] {
            check(text, None);
        }
    }

    #[test]
    fn printing_and_parsing_lose_nothing() {
        for ms in [0, 1, 999, 1_000, 90_000, 7_200_000] {
            check(&Millis(ms).to_string(), Some(ms));
        }
    }
}
