//! Trade of quality for speed: a policy with its ratio, and a bound on the deviation.

use std::fmt;
use std::str::FromStr;

use engine::{Repair, RepairError};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use server::deviation_preset;

/// Policy as requests write it: `impact@0.15`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RepairSetting(pub(crate) Repair);

/// Bound as requests write it: a number, or a preset's name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Deviation {
    /// At least 0.
    Number(f64),
    /// Preset that the server knows.
    Preset(String),
}

/// Invalid deviation bound.
#[derive(Debug, thiserror::Error)]
#[error("`{text}` is no deviation: write a number of at least 0, or strict, balanced or fast")]
pub(crate) struct InvalidDeviation {
    text: String,
}

impl FromStr for RepairSetting {
    type Err = RepairError;

    fn from_str(text: &str) -> Result<Self, RepairError> {
        text.parse().map(Self)
    }
}

impl fmt::Display for RepairSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for RepairSetting {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RepairSetting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Deviation {
    /// Returns the bound as a number.
    pub(crate) fn bound(&self) -> f32 {
        match self {
            Self::Number(bound) => *bound as f32,
            Self::Preset(name) => deviation_preset(name).expect("a preset is made of a known name"),
        }
    }
}

impl FromStr for Deviation {
    type Err = InvalidDeviation;

    fn from_str(text: &str) -> Result<Self, InvalidDeviation> {
        if deviation_preset(text).is_some() {
            return Ok(Self::Preset(text.to_owned()));
        }
        let bound = text.parse().ok().filter(|bound: &f64| *bound >= 0.0 && bound.is_finite());
        bound.map(Self::Number).ok_or_else(|| InvalidDeviation { text: text.to_owned() })
    }
}

impl Serialize for Deviation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Number(bound) => bound.serialize(serializer),
            Self::Preset(name) => name.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Deviation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = match toml::Value::deserialize(deserializer)? {
            toml::Value::String(text) => text,
            number => number.to_string(),
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct File {
        repair: RepairSetting,
        max_deviation: Deviation,
    }

    #[track_caller]
    fn check(text: &str, bound: f32) {
        let file: File = toml::from_str(text).unwrap();
        assert_eq!(file.max_deviation.bound(), bound);
        assert_eq!(toml::to_string(&file).unwrap().trim(), text);
    }

    #[test]
    fn settings_round_trip() {
        check("repair = \"impact@0.15\"\nmax_deviation = 0.25", 0.25);
        check("repair = \"epic\"\nmax_deviation = \"balanced\"", deviation_preset("balanced").unwrap());
        assert_eq!("0".parse::<Deviation>().unwrap().bound(), 0.0);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in ["-1", "loose", "NaN", ""] {
            assert!(text.parse::<Deviation>().is_err(), "{text}");
        }
        assert!("impact@2".parse::<RepairSetting>().is_err());
    }
}
