//! The elements of lists and tuples.

use std::ops::Deref;

use super::Value;
use crate::error::{Error, Result};

/// Values in order, which know how deep they nest.
#[derive(Clone, Default)]
pub struct Items {
    values: Vec<Value>,
    nesting: usize,
}

/// Containers inside of one another. Chosen: JSON of requests is bounded to 128 by its parser.
const MAX_NESTING: usize = 200;

impl Items {
    /// These values.
    ///
    /// # Errors
    /// If they nest too deeply.
    pub(crate) fn new(values: Vec<Value>) -> Result<Self> {
        let nesting = 1 + values.iter().map(Value::nesting).max().unwrap_or(0);
        check_nesting(nesting)?;
        Ok(Self { values, nesting })
    }

    /// Levels of containers, this one included.
    pub(crate) fn nesting(&self) -> usize {
        self.nesting
    }

    pub(crate) fn into_values(self) -> Vec<Value> {
        self.values
    }
}

impl Deref for Items {
    type Target = [Value];

    fn deref(&self) -> &[Value] {
        &self.values
    }
}

/// Refuses what recursion over values could not bear.
pub(super) fn check_nesting(nesting: usize) -> Result<()> {
    if nesting > MAX_NESTING { Err(Error::render("lists and dictionaries nest too deeply")) } else { Ok(()) }
}
