//! Work of planning spans, and its budget between two steps.

use std::collections::VecDeque;

use semantic::Steps;
use tokens::RequestId;

/// Maximum prompt tokens planned for between two steps; one prompt may be longer. Chosen: the longest common context, some
/// milliseconds.
const MAX_PLANNED_TOKENS_PER_STEP: usize = 1 << 17;

/// Statistics of plans, and postponed ones.
#[derive(Debug, Default)]
pub(super) struct PlanBook {
    /// Prompt tokens planned for since the last step.
    pub(super) num_tokens: usize,
    /// Waiting requests that arrived when the planning budget was used up.
    pub(super) postponed: VecDeque<RequestId>,
    pub(super) work: PlanningWork,
}

/// Work of all plans so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlanningWork {
    /// Number of plans.
    pub num_plans: u64,
    /// Maximum of prompt tokens planned for between two steps.
    pub max_tokens_per_step: usize,
    /// Steps of all plans.
    pub steps: Steps,
}

impl PlanBook {
    pub(super) fn has_time_for(&self, num_tokens: usize) -> bool {
        self.num_tokens == 0 || self.num_tokens + num_tokens <= MAX_PLANNED_TOKENS_PER_STEP
    }

    pub(super) fn record(&mut self, num_tokens: usize, steps: Steps) {
        self.num_tokens += num_tokens;
        self.work.num_plans += 1;
        self.work.steps += steps;
        self.work.max_tokens_per_step = self.work.max_tokens_per_step.max(self.num_tokens);
    }
}
