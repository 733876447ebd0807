//! Interface to whatever shows the steps of a fetch.

use std::fmt;

/// Shows the steps of a fetch, for instance on a terminal.
pub trait Reporter {
    /// Announces one step. `line` has no line break.
    fn announce(&self, line: fmt::Arguments<'_>);

    /// Begins a transfer of `num_bytes` bytes; 0 if their number is unknown.
    fn begin(&self, label: &str, num_bytes: u64) -> Box<dyn Transfer>;
}

/// Progress of one transfer, which ends when this is dropped.
pub trait Transfer {
    /// Sets the bytes transferred so far.
    fn set(&mut self, num_bytes: u64);

    /// Adds to the bytes transferred so far.
    fn add(&mut self, num_bytes: u64);
}
