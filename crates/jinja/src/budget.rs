//! Limits of one rendering: steps and bytes of text.

use std::cell::Cell;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::text::Text;

/// Limits of one rendering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Number of expressions, statements and elements that may be visited.
    pub fuel: u64,
    /// Bytes of all strings that may be created, the output and intermediate ones.
    pub text_bytes: u64,
}

/// Remainder of the [`Limits`].
pub(crate) struct Budget {
    fuel: Cell<u64>,
    text_bytes: Cell<u64>,
}

impl Budget {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { fuel: Cell::new(limits.fuel), text_bytes: Cell::new(limits.text_bytes) }
    }

    /// Charges `steps`.
    pub(crate) fn step(&self, steps: usize) -> Result<()> {
        self.fuel.set(self.fuel.get().checked_sub(steps as u64).ok_or(Error::OutOfFuel)?);
        Ok(())
    }

    /// Charges `bytes` of text, before they are written.
    pub(crate) fn write(&self, bytes: usize) -> Result<()> {
        self.text_bytes.set(self.text_bytes.get().checked_sub(bytes as u64).ok_or(Error::TooMuchText)?);
        Ok(())
    }
}

/// A string under construction, charged as it grows.
pub(crate) struct Builder<'b> {
    text: Text,
    budget: &'b Budget,
}

impl<'b> Builder<'b> {
    pub(crate) fn new(budget: &'b Budget) -> Self {
        Self { text: Text::default(), budget }
    }

    pub(crate) fn push(&mut self, text: &Text) -> Result<()> {
        self.push_range(text, 0..text.len())
    }

    pub(crate) fn push_range(&mut self, text: &Text, bytes: Range<usize>) -> Result<()> {
        self.budget.write(bytes.len())?;
        self.text.push_range(text, bytes);
        Ok(())
    }

    /// Appends text of the template.
    pub(crate) fn push_str(&mut self, string: &str) -> Result<()> {
        self.push_from(string, None)
    }

    pub(crate) fn push_from(&mut self, string: &str, origin: Option<u32>) -> Result<()> {
        self.budget.write(string.len())?;
        self.text.push_from(string, origin);
        Ok(())
    }

    /// Appends `text` `count` times.
    pub(crate) fn repeat(&mut self, text: &Text, count: usize) -> Result<()> {
        self.budget.write(text.len().saturating_mul(count))?;
        for _ in 0..count {
            self.text.push_range(text, 0..text.len());
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> Text {
        self.text
    }
}
