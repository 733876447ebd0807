//! Types that deserialize from objects only, and names that deserialize from strings only.
//!
//! Derived code also reads a struct from an array of its fields, and a name from an object with that one field. JSON clients mean neither,
//! so such a value is reported as an error.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{Deserializer, Error, MapAccess, Visitor};

/// Derived implementation of a type, which `#[serde(remote = "Self")]` keeps apart from the public one.
pub(crate) trait Derived: Sized {
    /// Deserializes with the derived implementation.
    fn derived<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error>;
}

/// Deserializes `T` from an object only.
pub(crate) struct FromObject<T>(pub(crate) PhantomData<T>);

impl<'de, T: Derived> Visitor<'de> for FromObject<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<T, A::Error> {
        T::derived(MapAccessDeserializer::new(fields))
    }
}

/// Deserializes `T` from a string only.
pub(crate) struct FromName<T>(pub(crate) PhantomData<T>);

impl<'de, T: Derived> Visitor<'de> for FromName<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<T, E> {
        T::derived(StrDeserializer::new(name))
    }
}

/// Makes `$type`, which derives with `remote = "Self"`, deserialize from an object only (or, with `name`, from a string only).
macro_rules! read_only_from {
    ($method:ident, $visitor:ident, $type:ty) => {
        impl $crate::object::Derived for $type {
            fn derived<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                // Inherent functions take precedence over the trait's, so this calls the derived one.
                Self::deserialize(deserializer)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.$method($crate::object::$visitor(std::marker::PhantomData::<Self>))
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                Self::serialize(self, serializer)
            }
        }
    };
}

pub(crate) use read_only_from;
