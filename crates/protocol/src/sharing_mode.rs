//! Serde adapter for [`SharingMode`]: a mode is the string of its name. For `#[serde(with = "…")]`.

use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokens::SharingMode;

/// Serializes a mode as its name.
///
/// # Errors
/// If the serializer fails.
pub fn serialize<S: Serializer>(mode: &SharingMode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(mode.as_str())
}

/// Deserializes a mode from its name.
///
/// # Errors
/// If the value is no string, or no mode has this name.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SharingMode, D::Error> {
    deserializer.deserialize_str(NameVisitor)
}

/// The same for a mode that may be absent.
pub mod optional {
    use super::{Deserialize, Deserializer, Name, Serialize, Serializer, SharingMode};

    /// Serializes a mode as its name.
    ///
    /// # Errors
    /// If the serializer fails.
    pub fn serialize<S: Serializer>(mode: &Option<SharingMode>, serializer: S) -> Result<S::Ok, S::Error> {
        mode.map(Name).serialize(serializer)
    }

    /// Deserializes a mode from its name.
    ///
    /// # Errors
    /// If the value is neither a string nor null, or no mode has this name.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SharingMode>, D::Error> {
        Ok(Option::<Name>::deserialize(deserializer)?.map(|Name(mode)| mode))
    }
}

/// Mode that serde knows how to write and read.
#[derive(Serialize, Deserialize)]
struct Name(#[serde(with = "self")] SharingMode);

struct NameVisitor;

impl Visitor<'_> for NameVisitor {
    type Value = SharingMode;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<SharingMode, E> {
        name.parse().map_err(|_| E::unknown_variant(name, &SharingMode::NAMES))
    }
}
