//! Elements of lists and tuples.

use std::ops::Deref;

use super::Value;
use crate::error::{Error, Result};

/// Values in order, with their nesting level.
#[derive(Clone, Default)]
pub struct Items {
    values: Vec<Value>,
    nesting: usize,
}

/// Maximum nesting of containers. Chosen: JSON of requests is bounded to 128 by its parser.
const MAX_NESTING: usize = 200;

impl Items {
    /// Creates the items from `values`.
    ///
    /// # Errors
    /// If they nest too deeply.
    pub(crate) fn new(values: Vec<Value>) -> Result<Self> {
        let nesting = 1 + values.iter().map(Value::nesting).max().unwrap_or(0);
        check_nesting(nesting)?;
        Ok(Self { values, nesting })
    }

    /// Returns the number of nested container levels, including this one.
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

/// Refuses nesting too deep for recursion over values.
pub(super) fn check_nesting(nesting: usize) -> Result<()> {
    if nesting > MAX_NESTING { Err(Error::render("lists and dictionaries nest too deeply")) } else { Ok(()) }
}
