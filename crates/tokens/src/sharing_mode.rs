//! KV of earlier requests that a request may use.

use std::fmt;
use std::str::FromStr;

/// KV of earlier requests that a request may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum SharingMode {
    /// None: every prompt token is computed. Exact.
    Off,
    /// Blocks with equal tokens and equal left context. Exact.
    #[default]
    Prefix,
    /// Also equal spans at any offset and in any order, moved to their new positions. Approximate.
    Span,
    /// As `Span`, also from donors with similar embeddings; of donors of the same text, selects the one whose left context has most
    /// in common with the request's. Approximate.
    Semantic,
    /// As `Span` where that has proven itself for requests like this one, and as `Prefix` elsewhere.
    Auto,
    /// Blocks as with `Prefix`; spans are searched and counted, but not used. Exact.
    Shadow,
}

/// Name that no sharing mode has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownSharingMode;

impl SharingMode {
    /// All modes, in the order of their declaration.
    pub const ALL: [Self; 6] = [Self::Off, Self::Prefix, Self::Span, Self::Semantic, Self::Auto, Self::Shadow];
    /// Names of all modes, in the same order.
    pub const NAMES: [&'static str; 6] = ["off", "prefix", "span", "semantic", "auto", "shadow"];

    /// Returns the name in the API and the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// True if spans are searched.
    #[must_use]
    pub fn searches_spans(self) -> bool {
        self.copies_spans() || self == Self::Shadow
    }

    /// True if spans may be copied.
    #[must_use]
    pub fn copies_spans(self) -> bool {
        matches!(self, Self::Span | Self::Semantic | Self::Auto)
    }
}

impl fmt::Display for SharingMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for SharingMode {
    type Err = UnknownSharingMode;

    fn from_str(name: &str) -> Result<Self, UnknownSharingMode> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == name).ok_or(UnknownSharingMode)
    }
}

impl fmt::Display for UnknownSharingMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected one of {}", SharingMode::NAMES.join(", "))
    }
}

impl std::error::Error for UnknownSharingMode {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_the_mode_that_has_it() {
        for (i, mode) in SharingMode::ALL.into_iter().enumerate() {
            assert_eq!((mode as usize, mode.as_str().parse()), (i, Ok(mode)));
            assert_eq!(mode.to_string(), format!("{mode:?}").to_lowercase());
        }
        for name in ["", "Span", "spans", "off "] {
            assert_eq!(name.parse::<SharingMode>(), Err(UnknownSharingMode), "{name}");
        }
    }
}
