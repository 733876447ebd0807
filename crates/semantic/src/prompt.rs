//! Prompts as this crate sees them: ids, and where independent pieces begin.

use tokens::{DonorId, TokenId, TokenRange};

use crate::{Segments, SpanMatch, Steps};

/// A prompt, target or donor.
#[derive(Clone, Copy, Debug)]
pub struct PromptView<'a> {
    /// Its tokens.
    pub tokens: &'a [TokenId],
    /// Its pieces.
    pub segments: &'a Segments,
}

impl PromptView<'_> {
    /// How many tokens it has.
    pub(crate) fn num_tokens(&self) -> u32 {
        self.tokens.len() as u32
    }

    /// The sentence that holds `pos`.
    pub(crate) fn sentence_at(&self, pos: u32) -> TokenRange {
        self.segments.sentence_at(pos, self.num_tokens())
    }

    /// The first segment that begins at `pos` or after it.
    pub(crate) fn first_segment_from(&self, pos: u32) -> Option<TokenRange> {
        self.segments.first_from(pos, self.num_tokens())
    }

    /// The segment that holds `pos`.
    pub(crate) fn segment_at(&self, pos: u32) -> TokenRange {
        self.segments.segment_at(pos, self.num_tokens())
    }
}

/// A prompt to be filled.
#[derive(Clone, Copy, Debug)]
pub struct PlanTarget<'a> {
    /// All of it.
    pub prompt: PromptView<'a>,
    /// End of its prefix hit: positions left of it are in the pool already.
    pub from: u32,
    /// Positions that are computed in any case. Sorted, disjoint.
    pub template: &'a [TokenRange],
}

/// What the planner asks about donors.
pub trait DonorPrompts {
    /// The prompt of `donor`; `None` if it is not kept any more.
    fn prompt_of(&self, donor: DonorId) -> Option<PromptView<'_>>;

    /// For each of `matches`, by ascending target position, how much it is preferred to equal spans of other donors; more is better,
    /// equals go to the younger donor. Counts its work in `steps`.
    ///
    /// It decides between matches of equal worth only: the place for what is known of their left contexts.
    fn preferences(&self, _target: &PlanTarget<'_>, matches: &[SpanMatch], _steps: &mut Steps) -> Vec<f32> {
        vec![0.0; matches.len()]
    }
}
