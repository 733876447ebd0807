//! Iteration, length and membership.

use super::{Object, Value};
use crate::budget::Budget;
use crate::error::{Error, Result};
use crate::text::Text;

impl Value {
    /// Returns its elements, each charged to the budget.
    ///
    /// # Errors
    /// If it has none.
    pub(crate) fn elements(&self, budget: &Budget) -> Result<Vec<Self>> {
        let items = match self {
            Self::Undefined(_) => Vec::new(),
            Self::List(items) | Self::Tuple(items) => {
                budget.step(items.len())?;
                items.to_vec()
            }
            Self::Dict(dict) => {
                budget.step(dict.len())?;
                dict.keys().cloned().collect()
            }
            Self::Str(text) => {
                budget.step(text.len())?;
                characters(text)
            }
            Self::Object(object) => match &**object {
                Object::View(_, items) | Object::Group(items) => items.to_vec(),
                Object::Generator(items) => items.take().into_values(),
                _ => return Err(self.not_iterable()),
            },
            _ => return Err(self.not_iterable()),
        };
        if matches!(self, Self::Object(_)) {
            budget.step(items.len())?;
        }
        Ok(items)
    }

    fn not_iterable(&self) -> Error {
        Error::render(format!("'{}' object is not iterable", self.type_name()))
    }

    pub(crate) fn is_iterable(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::List(_) | Self::Tuple(_) | Self::Dict(_) | Self::Str(_) => true,
            Self::Object(object) => {
                matches!(&**object, Object::View(..) | Object::Generator(_) | Object::Group(_) | Object::Loop(_))
            }
            _ => false,
        }
    }

    /// Evaluates Python's `len`.
    pub(crate) fn length(&self) -> Result<usize> {
        match self {
            Self::Undefined(_) => Ok(0),
            Self::List(items) | Self::Tuple(items) => Ok(items.len()),
            Self::Dict(dict) => Ok(dict.len()),
            Self::Str(text) => Ok(text.as_str().chars().count()),
            Self::Object(object) => match &**object {
                Object::View(_, items) => Ok(items.len()),
                Object::Group(_) => Ok(2),
                Object::Loop(state) => Ok(state.len()),
                _ => Err(self.no_length()),
            },
            _ => Err(self.no_length()),
        }
    }

    fn no_length(&self) -> Error {
        Error::render(format!("object of type '{}' has no len()", self.type_name()))
    }

    /// Evaluates Python's `needle in self`.
    pub(crate) fn contains(&self, needle: &Self, budget: &Budget) -> Result<bool> {
        match (self, needle) {
            (Self::Str(text), Self::Str(part)) => {
                budget.step(text.len() / 64)?;
                Ok(text.as_str().contains(part.as_str()))
            }
            (Self::Str(_), other) => {
                other.defined()?;
                Err(Error::render(format!("'in <string>' requires string as left operand, not {}", other.type_name())))
            }
            (Self::Dict(dict), key) => match key {
                // Jinja's undefined values are hashable, and equal no key.
                Self::Undefined(_) => Ok(false),
                key => Ok(dict.get(key)?.is_some()),
            },
            (Self::None | Self::Bool(_) | Self::Int(_) | Self::Float(_), _) => {
                Err(Error::render(format!("argument of type '{}' is not iterable", self.type_name())))
            }
            _ => Ok(self.elements(budget)?.iter().any(|item| item.equals(needle))),
        }
    }
}

/// Returns each character as a string.
fn characters(text: &Text) -> Vec<Value> {
    text.as_str().char_indices().map(|(at, c)| Value::text(text.slice(at..at + c.len_utf8()))).collect()
}
