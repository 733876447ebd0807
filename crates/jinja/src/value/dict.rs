//! Insertion-ordered dictionaries.

use std::collections::HashMap;

use super::Value;
use super::items::check_nesting;
use crate::error::{Error, Result};

/// A dictionary.
#[derive(Clone, Default)]
pub struct Dict {
    entries: Vec<(Value, Value)>,
    index: HashMap<Key, usize>,
    /// Nested container levels of its values.
    inner_nesting: usize,
}

/// Identity of a key: equal keys have the same identity.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    None,
    Int(i128),
    /// Bits of a floating-point number that is not whole.
    Float(u64),
    Str(Box<str>),
    Tuple(Vec<Key>),
}

impl Key {
    /// Returns the key for `value`.
    ///
    /// # Errors
    /// If it is mutable, as lists are.
    pub(crate) fn of(value: &Value) -> Result<Self> {
        Ok(match value {
            Value::None => Self::None,
            Value::Bool(value) => Self::Int(i128::from(*value)),
            Value::Int(number) => Self::Int(*number),
            Value::Float(number) if number.fract() == 0.0 && number.abs() < 1e30 => Self::Int(*number as i128),
            Value::Float(number) => Self::Float(number.to_bits()),
            Value::Str(text) => Self::Str(text.as_str().into()),
            Value::Tuple(items) => Self::Tuple(items.iter().map(Self::of).collect::<Result<_>>()?),
            other => return Err(Error::render(format!("unhashable type: '{}'", other.type_name()))),
        })
    }
}

impl Dict {
    /// Sets `key`; replaces the value of an equal key.
    ///
    /// # Errors
    /// If `key` is unhashable, or `value` nests too deeply.
    pub(crate) fn insert(&mut self, key: Value, value: Value) -> Result<()> {
        let hashed = Key::of(&key)?;
        self.inner_nesting = self.inner_nesting.max(value.nesting()).max(key.nesting());
        check_nesting(1 + self.inner_nesting)?;
        match self.index.get(&hashed) {
            Some(&at) => self.entries[at].1 = value,
            None => {
                self.index.insert(hashed, self.entries.len());
                self.entries.push((key, value));
            }
        }
        Ok(())
    }

    /// Returns the value of the string `key`.
    pub(crate) fn get_str(&self, key: &str) -> Option<&Value> {
        self.get_key(&Key::Str(key.into()))
    }

    pub(crate) fn get(&self, key: &Value) -> Result<Option<&Value>> {
        Ok(self.get_key(&Key::of(key)?))
    }

    fn get_key(&self, key: &Key) -> Option<&Value> {
        self.index.get(key).map(|&at| &self.entries[at].1)
    }

    /// Returns the number of nested container levels, including this one.
    pub(crate) fn nesting(&self) -> usize {
        1 + self.inner_nesting
    }

    /// Removes all entries.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn entries(&self) -> &[(Value, Value)] {
        &self.entries
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &Value> {
        self.entries.iter().map(|(key, _)| key)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &Value> {
        self.entries.iter().map(|(_, value)| value)
    }

    pub(crate) fn equals(&self, other: &Self) -> bool {
        let has_equal = |(key, &at): (&Key, &usize)| other.get_key(key).is_some_and(|value| value.equals(&self.entries[at].1));
        self.len() == other.len() && self.index.iter().all(has_equal)
    }
}
