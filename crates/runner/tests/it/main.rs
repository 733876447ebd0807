//! The runner on small random models.

mod common;
mod engine;
mod formats;
mod invariants;
