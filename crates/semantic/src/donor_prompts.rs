//! Donors as the planner sees them.

use tokens::DonorId;

use crate::{PlanTarget, PromptView, SpanMatch, Steps};

/// The planner's view of donors.
pub trait DonorPrompts {
    /// Returns the prompt of `donor`; `None` if it is not kept any more.
    fn prompt_of(&self, donor: DonorId) -> Option<PromptView<'_>>;

    /// Returns for each of `matches`, by ascending target position, its preference over equal spans of other donors; more is better, equals
    /// go to the younger donor. Counts its work in `steps`.
    ///
    /// Preferences decide between matches of equal value only, by their left contexts.
    fn preferences(&self, _target: &PlanTarget<'_>, matches: &[SpanMatch], _steps: &mut Steps) -> Vec<f32> {
        vec![0.0; matches.len()]
    }
}
