//! Where the time of a step goes.

use std::ops::AddAssign;
use std::time::{Duration, Instant};

/// Time that the thread of the engine spent in each phase of a step.
///
/// A device that works while the thread goes on is waited for in the phase that reads something back: the sum is right, and a phase
/// may hold the end of the one before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepTimings {
    /// Zeros and copies of blocks.
    pub copies: Duration,
    /// Spans moved to their positions.
    pub moves: Duration,
    /// Moved spans compared with a fresh layer 0.
    pub check: Duration,
    /// Moved spans measured, for the choice of tokens to recompute.
    pub probe: Duration,
    /// The part of `probe` that compares and asks, by the device's clock where it has one.
    pub scoring: Duration,
    /// The batch made, and its rows run through all layers.
    pub forward: Duration,
    /// Logits, log probabilities of prompts, tokens chosen.
    pub sample: Duration,
}

/// Splits the time that passes into laps.
pub(crate) struct Stopwatch(Instant);

impl StepTimings {
    /// All phases together.
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

    /// Time since the start or the last lap.
    pub(crate) fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.0, now)
    }
}
