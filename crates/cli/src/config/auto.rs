//! Setting that is either given or left to the daemon.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// `"auto"`, or a value. A file can thus show every key, also those with no fixed default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Auto<T> {
    /// The daemon decides at start.
    Auto,
    /// The operator decided.
    Set(T),
}

impl<T> Auto<T> {
    /// Returns the operator's value, if there is one.
    pub(crate) fn value(self) -> Option<T> {
        match self {
            Self::Auto => None,
            Self::Set(value) => Some(value),
        }
    }

    /// Borrows the value.
    pub(crate) const fn as_ref(&self) -> Auto<&T> {
        match self {
            Self::Auto => Auto::Auto,
            Self::Set(value) => Auto::Set(value),
        }
    }
}

impl<T: FromStr> FromStr for Auto<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        if text == "auto" { Ok(Self::Auto) } else { text.parse().map(Self::Set) }
    }
}

impl<T: fmt::Display> fmt::Display for Auto<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Set(value) => value.fmt(f),
        }
    }
}

impl<T: Serialize> Serialize for Auto<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Set(value) => value.serialize(serializer),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Auto<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = toml::Value::deserialize(deserializer)?;
        if value.as_str() == Some("auto") {
            return Ok(Self::Auto);
        }
        T::deserialize(value).map(Self::Set).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct File {
        threads: Auto<usize>,
    }

    /// `None`: an error.
    #[track_caller]
    fn check(text: &str, expected: Option<Auto<usize>>) {
        let parsed = toml::from_str::<File>(text).ok();
        assert_eq!(parsed.as_ref().map(|file| file.threads), expected);
        if let Some(file) = parsed {
            assert_eq!(toml::to_string(&file).unwrap().trim(), text);
        }
    }

    #[test]
    fn auto_and_values_round_trip() {
        check("threads = \"auto\"", Some(Auto::Auto));
        check("threads = 3", Some(Auto::Set(3)));
    }

    #[test]
    fn a_value_of_another_type_is_refused() {
        check("threads = \"three\"", None);
        check("threads = -1", None);
    }
}
