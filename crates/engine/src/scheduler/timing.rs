//! Measured times of steps, and their ratio to the predicted times of prefill.

use tokens::Timestamp;

use crate::cost::Work;

/// A running step.
#[derive(Clone, Copy, Debug)]
pub(super) struct TimedStep {
    pub(super) began: Timestamp,
    pub(super) work: Work,
    /// Predicted time of its prompt rows, in microseconds.
    pub(super) prefill_micros: u64,
}

/// Ratio of the measured time of steps to the predicted time of their prompt rows, while requests wait. It is usually above 1, because
/// decode rows take a part of each step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PrefillSlowdown {
    /// Sum of the measured times; older steps weigh less.
    passed: f64,
    /// Sum of the predicted times of prompt rows, weighted alike.
    prefill: f64,
}

/// Weight of a step relative to the next one. Chosen: some 1000 steps are remembered, as many as a long queue takes.
const SLOWDOWN_MEMORY: f64 = 0.999;

impl PrefillSlowdown {
    pub(super) fn observe(&mut self, passed: f64, prefill: f64) {
        self.passed = SLOWDOWN_MEMORY * self.passed + passed;
        self.prefill = SLOWDOWN_MEMORY * self.prefill + prefill;
    }

    pub(super) fn ratio(self) -> f64 {
        if self.prefill > 0.0 { self.passed / self.prefill } else { 1.0 }
    }
}
