//! Predicted cost of a prompt.

/// Predicted cost of one prompt, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Cost of computing everything right of the prefix hit.
    pub full_ms: f64,
    /// Cost of the plan.
    pub reuse_ms: f64,
}

impl Estimate {
    /// Returns the saving; negative if reuse costs more than it saves.
    #[must_use]
    pub fn saved_ms(&self) -> f64 {
        self.full_ms - self.reuse_ms
    }
}
