//! Objects that are read from objects, and names that are read from strings.
//!
//! The derived code also reads a struct from an array of its fields, and a name from an object with that one field. JSON's clients mean
//! neither: such a value is a mistake that has to be told.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{Deserializer, Error, MapAccess, Visitor};

/// The derived code of a type, which `#[serde(remote = "Self")]` keeps apart from what others call.
pub(crate) trait Derived: Sized {
    /// Reads it as derived.
    fn derived<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error>;
}

/// Reads `T` from an object and from nothing else.
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

/// Reads `T` from a string and from nothing else.
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

/// Has `$type`, which derives with `remote = "Self"`, read from an object only (or, with `name`, from a string only).
macro_rules! read_only_from {
    ($method:ident, $visitor:ident, $type:ty) => {
        impl $crate::object::Derived for $type {
            fn derived<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                // The derived function goes before that of the trait.
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
