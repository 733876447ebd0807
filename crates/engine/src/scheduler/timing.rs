//! Time that steps take, beside its prediction.

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

/// Ratio of elapsed time to predicted prefill time while there is a queue: answers take their share of each step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PrefillSlowdown {
    passed: f64,
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
