//! Time spent in each phase of a step.

use std::ops::AddAssign;
use std::time::{Duration, Instant};

/// Time that the engine thread spent in each phase of a step.
///
/// An asynchronous device is waited for in the phase that reads something back: the sum is right, but a phase may include the end of the
/// one before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepTimings {
    /// Zeroing and copying of blocks.
    pub copies: Duration,
    /// Moving of spans to their positions.
    pub moves: Duration,
    /// Comparison of moved spans with a fresh layer 0.
    pub check: Duration,
    /// Measurement of moved spans, for the selection of tokens to recompute.
    pub probe: Duration,
    /// Part of `probe` that compares and sums attention, by the device's clock if it has one.
    pub scoring: Duration,
    /// Building of the batch, and its rows run through all layers.
    pub forward: Duration,
    /// Logits, log probabilities of prompts, sampling.
    pub sample: Duration,
}

/// Splits elapsed time into laps.
pub(crate) struct Stopwatch(Instant);

impl StepTimings {
    /// Returns the sum of all phases.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.copies + self.moves + self.check + self.probe + self.forward + self.sample
    }
}

impl AddAssign for StepTimings {
    fn add_assign(&mut self, other: Self) {
        self.copies += other.copies;
        self.moves += other.moves;
        self.check += other.check;
        self.probe += other.probe;
        self.scoring += other.scoring;
        self.forward += other.forward;
        self.sample += other.sample;
    }
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Returns the time since the start or the last lap.
    pub(crate) fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.0, now)
    }
}
