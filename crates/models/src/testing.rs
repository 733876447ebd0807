//! Reporter for tests.

use std::fmt;

use crate::{Reporter, Transfer};

/// Shows nothing.
pub(crate) struct Silent;

impl Reporter for Silent {
    fn announce(&self, _: fmt::Arguments<'_>) {}

    fn begin(&self, _: &str, _: u64) -> Box<dyn Transfer> {
        Box::new(Self)
    }
}

impl Transfer for Silent {
    fn set(&mut self, _: u64) {}

    fn add(&mut self, _: u64) {}
}
